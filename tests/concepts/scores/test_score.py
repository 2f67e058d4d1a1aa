"""`score_dictionary` on planted truth: the true dictionary scores 1, shuffled labels and random atoms do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.concepts.scores import DictionaryScores, score_dictionary
from interp.concepts.scores.coded import coded, random_dictionary
from interp.dictionaries.activations import InMemory
from interp.dictionaries.standardise import Standardisation
from interp.dictionaries.topk import TopK
from interp.errors import InterpError, ShapeError
from interp.tasks.known_factors import KnownFactors

WIDTH, ROWS = 12, 480


def written(atoms, encoder=None, bias=0.0, k=2):
    """A TopK whose weights are given."""
    made = TopK(Standardisation.identity(WIDTH, "mid"), len(atoms), k)
    with torch.no_grad():
        made.atoms.copy_(torch.nn.functional.normalize(atoms, dim=1))
        made.encoder.copy_(made.atoms if encoder is None else encoder)
        made.bias.fill_(bias)
    return made


@pytest.fixture(scope="module")
def world():
    """Each row is the sum of one direction for its shape and one for its colour; rows of three activations."""
    random = np.random.default_rng(0)
    known = KnownFactors(
        {"shape": ("circle", "ring", "square"), "colour": ("red", "blue")},
        np.stack([random.integers(0, 3, ROWS), random.integers(0, 2, ROWS)], 1),
        np.arange(ROWS) // 4, region=np.repeat(np.arange(ROWS), 3),
    )  # fmt: skip
    basis = torch.from_numpy(np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0]).float()[:5]
    x = torch.from_numpy(known.indicators().astype(np.float32)) @ (2 * basis)
    x = x.repeat_interleave(3, 0) + 0.05 * torch.from_numpy(random.standard_normal((3 * ROWS, WIDTH))).float()
    return known, basis, InMemory(x)


@pytest.fixture(scope="module")
def scores(world):
    known, basis, activations = world
    return score_dictionary(
        {"true": written(basis)}, activations, known, untrained=(written(basis.flip(1)), activations)
    )


def test_the_planted_dictionary_scores_one(scores):
    true = scores.data.sel(dictionary="true")
    for name in ("mcc", "mean_f1", "coverage", "disentanglement", "informativeness"):
        assert float(true[name]) > 0.97, name
    assert float(true["explained"]) > 0.97 and float(true["l0"]) == 2 and float(true["dead"]) == 0
    assert (true["latent"].values == np.arange(5)).all() and (true["matched_latent"].values == np.arange(5)).all()
    assert (true["splitting"] == 1).all() and float(true["sparse_probing"].min()) > 0.97
    assert float(true["mcc_low"]) <= float(true["mcc"]) <= float(true["mcc_high"])
    assert (true["f1_low"] <= true["f1"]).all() and (true["f1"] <= true["f1_high"]).all()


def test_everything_stands_beside_it(scores):
    roles = dict(zip(scores.data["dictionary"].values.tolist(), scores.data["role"].values.tolist(), strict=True))
    assert roles == {
        "true": "dictionary", "random, 5, k = 2": "random", "PCA": "baseline", "ICA": "baseline",
        "raw channels": "baseline", "untrained model": "control", "supervised probe": "ceiling",
    }  # fmt: skip
    data = scores.data
    assert float(data["l0"].sel(dictionary="random, 5, k = 2")) <= 2
    for name in ("PCA", "ICA", "raw channels"):
        assert abs(float(data["explained"].sel(dictionary=name)) - 1) < 1e-6
    assert float(data["mean_f1"].sel(dictionary="supervised probe")) > 0.99
    for worse in ("random, 5, k = 2", "untrained model"):
        assert float(data["mcc"].sel(dictionary=worse)) < float(data["mcc"].sel(dictionary="true")) - 0.2


def test_shuffled_labels_are_chance(world):
    known, basis, activations = world
    found = score_dictionary({"true": written(basis)}, activations, known.shuffled(7)).data.sel(dictionary="true")
    assert abs(float(found["mcc"])) < 0.12 and float(found["coverage"]) == 0
    assert float(found["informativeness"]) < 0.55  # of three and two values that are equally frequent: 0.42


def test_a_random_dictionary_is_told_apart_and_named(world, scores):
    known, basis, activations = world
    assert scores.beats_random("mcc", "true") and "mean correlation" not in str(scores)
    random = random_dictionary(written(basis), 2, seed=50)
    found = score_dictionary({"guess": random}, activations, known)
    assert not found.beats_random("mcc", "guess")
    line = next(line for line in str(found).splitlines() if "no better than a random dictionary" in line)
    assert "guess" in line and "mean correlation" in line
    with pytest.raises(InterpError, match="'mc'"):
        found.beats_random("mc", "guess")


def test_an_absorbed_value(world):
    """Of the round things 4 % are rings, and a latent for rings says "round" as well."""
    _, basis, _ = world
    shape = np.where(np.arange(ROWS) % 2, 2, np.where(np.arange(ROWS) % 48 == 0, 1, 0))
    family = np.where(shape == 2, 1, 0)
    known = KnownFactors(
        {"shape": ("circle", "ring", "square"), "family": ("round", "angular")},
        np.stack([shape, family], 1), np.arange(ROWS) // 4, parents={"circle": "round", "ring": "round", "square": "angular"},
    )  # fmt: skip
    x = basis[torch.from_numpy(family)] + (torch.from_numpy(shape)[:, None] == 1) * basis[2]
    both = torch.stack([basis[0], basis[1], basis[0] + basis[2]])
    found = score_dictionary({"it": written(both, k=1)}, InMemory(x), known).data.sel(dictionary="it")
    assert found["absorption"].sel(value=["circle", "ring", "square"]).values.tolist() == [0, 1, 0]
    apart = score_dictionary({"it": written(basis[:3], k=2)}, InMemory(x), known).data.sel(dictionary="it")
    assert apart["absorption"].sel(value=["circle", "ring", "square"]).values.tolist() == [0, 0, 0]


def test_codes_are_those_of_the_dictionary(world):
    _, basis, activations = world
    one = coded("it", written(basis), activations)
    x = activations.whole.x
    dense = written(basis).encode(x).dense()
    np.testing.assert_allclose(one.codes.toarray(), dense.detach().numpy(), atol=1e-6)
    error = (x - written(basis)(x)).square().sum(1)
    np.testing.assert_allclose(one.error, error.detach().numpy(), atol=1e-5)


def test_what_is_seldom_is_not_scored(world):
    known, basis, activations = world
    values = known.values.copy()
    values[:, 0] = np.where(values[:, 0] == 1, 0, values[:, 0])
    values[0, 0] = 1
    seldom = KnownFactors(known.factors, values, known.group, known.region)
    found = score_dictionary({"true": written(basis)}, activations, seldom)
    assert found.provenance["seldom"] == ["ring"]
    assert found.data["f1"].sel(value="ring").isnull().all() and not found.data["f1"].sel(value="red").isnull().any()


def test_it_is_saved_drawn_and_tabled(scores, tmp_path):
    scores.save(tmp_path / "scores.nc")
    again = DictionaryScores.load(tmp_path / "scores.nc")
    assert again.data.identical(scores.data)
    assert len(scores.plot().data) == 3 and scores.plot_values().data
    assert scores.table().loc["true", "splitting"] == 1 and len(scores.table()) == 7


def test_refusals(world):
    known, basis, activations = world
    with pytest.raises(InterpError, match="No dictionary"):
        score_dictionary({}, activations, known)
    with pytest.raises(InterpError, match="'PCA' is the name"):
        score_dictionary({"PCA": written(basis)}, activations, known)
    with pytest.raises(ShapeError, match="speaks of 1440"):
        score_dictionary({"it": written(basis)}, InMemory(activations.whole.x[:9]), known)
    few = KnownFactors(known.factors, known.values[:8], known.group[:8])
    with pytest.raises(ShapeError, match="give at least 6"):
        score_dictionary({"it": written(basis)}, InMemory(activations.whole.x[:8]), few)
    other = TopK(Standardisation.identity(3), 5, 2)
    with pytest.raises(ShapeError, match="different widths"):
        score_dictionary({"it": written(basis), "other": other}, activations, known)
