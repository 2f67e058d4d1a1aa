"""Thresholds against all thresholds tried one by one; splitting worked out by hand."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from interp.concepts.scores.detection import best_cuts, counts, detectors


def f1(on, wanted):
    return 2 * (on & wanted).sum() / (on.sum() + wanted.sum())


def test_a_clean_cut_by_hand():
    score, cut = best_cuts(csr_array(np.array([[3.0], [2], [1], [0]])), np.array([[1], [1], [0], [0]], bool))
    assert score.tolist() == [[1.0]] and cut.tolist() == [[1.5]]


def test_equal_codes_fall_on_the_same_side():
    score, cut = best_cuts(csr_array(np.array([[2.0], [2], [0]])), np.array([[1], [0], [0]], bool))
    assert score.tolist() == [[2 / 3]] and cut.tolist() == [[1.0]]


def test_best_cuts_are_the_best_of_all():
    random = np.random.default_rng(0)
    codes = np.round(random.random((40, 6)) * (random.random((40, 6)) < 0.6), 1)  # with ties
    codes[:, 5] = 0
    wanted = random.random((40, 3)) < 0.4
    score, cut = best_cuts(csr_array(codes), wanted)
    for latent in range(6):
        for value in range(3):
            tried = [
                f1(codes[:, latent] > t, wanted[:, value])
                for t in np.unique(codes[codes[:, latent] > 0, latent]) - 1e-9
            ]
            assert abs(score[latent, value] - max(tried, default=0)) < 1e-12
            if tried:
                assert abs(f1(codes[:, latent] > cut[latent, value], wanted[:, value]) - max(tried)) < 1e-12


def test_a_split_value_takes_its_latents_and_a_whole_one_does_not():
    wanted = np.zeros((90, 2), bool)
    wanted[:60, 0], wanted[60:, 1] = True, True
    codes = np.zeros((90, 4))
    codes[:30, 0] = codes[30:60, 1] = codes[60:, 2] = 1  # value 0 is split in two halves; value 1 has one latent
    codes[::2, 3] = 0.5  # half of all rows, at random as it were: F1 0.57 for value 0
    best = detectors(csr_array(codes), wanted)
    assert {latent for latent, _ in best.unions[0]} == {0, 1} and best.unions[1] == ((2, 0.5),)
    assert f1(best.any_on(csr_array(codes))[:, 0], wanted[:, 0]) == 1
    assert abs(f1(best.on(csr_array(codes))[:, 0], wanted[:, 0]) - 2 / 3) < 1e-12


def test_a_gain_below_three_hundredths_is_no_split():
    wanted, codes = np.ones((200, 1), bool), np.zeros((200, 2))
    codes[:192, 0] = codes[192:, 1] = 1  # F1 0.98, and 1 with the other
    best = detectors(csr_array(codes), wanted)
    assert best.unions == (((0, 0.5),),)


def test_nothing_on_is_no_detector():
    best = detectors(csr_array((4, 3)), np.ones((4, 2), bool))
    assert best.latent.tolist() == [-1, -1] and not best.on(csr_array(np.ones((4, 3)))).any()
    assert not best.any_on(csr_array(np.ones((4, 3)))).any()


def test_counts_make_f1():
    random = np.random.default_rng(1)
    on, wanted = random.random((30, 2)) < 0.5, random.random((30, 2)) < 0.5
    sums = counts(on, wanted, np.arange(30) // 5)
    assert sums.shape == (6, 2, 2)
    for value in range(2):
        top, bottom = sums[:, value].sum(0)
        assert abs(top / bottom - f1(on[:, value], wanted[:, value])) < 1e-12
