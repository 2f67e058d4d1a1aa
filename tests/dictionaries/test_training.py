"""Training: known directions are found, killed trainings go on, bad losses stop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dictionaries.kinds import LATENTS, MAKERS, K

from interp.dictionaries.activations import InMemory
from interp.dictionaries.kinds import KINDS
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.topk import TopK
from interp.dictionaries.training import Training, TrainingResult, train
from interp.errors import InterpError, LoadError, ShapeError

QUICK = Training(steps=250, batch=256, learning_rate=1e-2, dead_after=5000, resample_every=50)
SHORT = Training(steps=12, batch=16, learning_rate=3e-3, dead_after=16, resample_every=4, seed=3)


def matched(dictionary, planted):
    """How well each planted direction is matched by its best atom: the mean cosine."""
    atoms = F.normalize(dictionary.directions(), dim=1)
    return float((planted.directions @ atoms.T).max(1).values.mean())


@pytest.mark.parametrize(
    ("kind", "steps", "rate", "settings"),
    [
        ("topk", 250, 1e-2, {}),
        ("batch_topk", 400, 2e-2, {}),
        ("matryoshka", 400, 2e-2, {"prefixes": (30, LATENTS), "k": 3}),  # there are 24 directions, and no levels
        ("jumprelu", 600, 2e-2, {"sparsity": 0.03}),
        ("gated", 500, 2e-2, {"sparsity": 0.2}),
        ("matching_pursuit", 250, 1e-2, {}),
    ],
)
def test_planted_directions_are_found(kind, steps, rate, settings, planted):
    given = {"k": K} if "topk" in kind or kind == "matching_pursuit" else {}
    d = KINDS[kind](planted.read, LATENTS, **(given | settings))
    before = matched(d, planted)
    train(d, InMemory(planted.x), replace(QUICK, steps=steps, learning_rate=rate))
    assert matched(d, planted) > 0.88 > 0.6 > before
    torch.testing.assert_close(d.atoms.detach().norm(dim=1), torch.ones(LATENTS), atol=1e-5, rtol=0)


def test_in_rows_of_the_same_covariance_without_directions_none_are_found(planted):
    factor = torch.linalg.cholesky(torch.cov(planted.x.T).double())
    noise = torch.randn(len(planted.x), 16, generator=torch.Generator().manual_seed(9)).double() @ factor.T
    d, control = (TopK(planted.read, LATENTS, 3) for _ in range(2))
    found = train(d, InMemory(planted.x), QUICK)
    flat = train(control, InMemory((noise + planted.x.double().mean(0)).float()), QUICK)
    assert matched(control, planted) < 0.8 < 0.95 < matched(d, planted)
    last = slice(-20, None)
    assert found.data["unexplained"][last].mean() < 0.5 * flat.data["unexplained"][last].mean()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_killed_training_goes_on_to_the_same_curve(kind, planted, tmp_path, monkeypatch):
    rows = InMemory(planted.x[:1000])

    def made():
        d = MAKERS[kind](planted.read)
        if kind in ("jumprelu", "gated"):  # of which half are on at first
            with torch.no_grad():
                d.bias[:4] = -100.0
        return d

    whole = made()
    result = train(whole, rows, SHORT)
    assert float(result.data["dead"].max()) > 0  # so that reviving and resampling have their part in what is compared

    class Killed(Exception):
        pass

    def until(steps):
        def progress(items, _):
            for item in items:
                if item == steps:
                    raise Killed
                yield item

        return progress

    for end in (5, 9):
        with pytest.raises(Killed):
            train(made(), rows, SHORT, progress=until(end), checkpoint=tmp_path / "state", every=2)
    started = []
    resumed = made()
    again = train(resumed, rows, SHORT, checkpoint=tmp_path / "state", every=2,
                  progress=lambda items, _: started.append(items[0]) or items)  # fmt: skip
    assert started == [8]
    for name in result.data:
        np.testing.assert_array_equal(again.data[name].values, result.data[name].values)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_of_another_training_or_damaged_are_refused(planted, tmp_path):
    rows, file = InMemory(planted.x[:1000]), tmp_path / "state"
    train(TopK(planted.read, LATENTS, 3), rows, SHORT, checkpoint=file)
    for d, r, t in [
        (TopK(planted.read, LATENTS, 4), rows, SHORT),
        (TopK(planted.read, LATENTS, 3, seed=1), rows, SHORT),
        (TopK(planted.read, LATENTS, 3), InMemory(planted.x[:999]), SHORT),
        (TopK(planted.read, LATENTS, 3), rows, Training(steps=13)),
    ]:
        with pytest.raises(InterpError, match="another training"):
            train(d, r, t, checkpoint=file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match="damaged"):
        train(TopK(planted.read, LATENTS, 3), rows, SHORT, checkpoint=file)


@pytest.mark.parametrize("when", ["loss", "gradient"])
def test_what_is_not_finite_stops_with_the_state_of_the_step_before(when, planted, monkeypatch):
    d = TopK(planted.read, LATENTS, 3)
    loss, states = d.loss, []

    def failing(*args):
        found = loss(*args)
        states.append({name: p.clone() for name, p in d.state_dict().items()})
        if len(states) == 4 and when == "loss":
            return type(found)(found.total * torch.inf, found.unexplained, found.codes)
        if len(states) == 4:
            d.bias.register_hook(lambda grad: grad * torch.nan)
        return found

    monkeypatch.setattr(d, "loss", failing)
    result = train(d, InMemory(planted.x), SHORT)
    assert "step 3" in result.provenance["stopped"] and "stopped" in result.summary()
    assert int(result.data["loss"].notnull().sum()) == 3
    for name, p in d.state_dict().items():
        assert torch.equal(p, states[-1][name])


def test_resampling_begins_dead_latents_anew_along_what_is_explained_badly(planted):
    d = TopK(planted.read, LATENTS, 2, aux=0)
    with torch.no_grad():
        d.bias[:20] = -100.0  # never on
    train(d, InMemory(planted.x), Training(steps=12, batch=512, learning_rate=1e-4, dead_after=4096, resample_every=9))
    assert (d.bias[:20] > -1).all()
    living = d.encoder[20:].norm(dim=1).mean()
    torch.testing.assert_close(d.encoder[:20].norm(dim=1), (0.2 * living).expand(20), rtol=0.05, atol=0)


def test_training_of_a_transcoder_and_with_step_bins(planted):
    bins = torch.arange(len(planted.x)) % 2
    target = planted.codes @ torch.randn(24, 5, generator=torch.Generator().manual_seed(2))
    read = Standardisation.from_moments(Moments.of(planted.x, bins, 2), steps=[[0], [1]])
    write = Standardisation.from_moments(Moments.of(target, bins, 2), steps=[[0], [1]])
    d = TopK(read, 64, 4, write=write, conditioned=True)
    plan = Training(steps=400, batch=512, learning_rate=5e-3)
    result = train(d, InMemory(planted.x, target, bins), plan)
    assert float(result.data["unexplained"][-50:].mean()) < 0.25
    with pytest.raises(ShapeError, match="give rows with targets"):
        train(d, InMemory(planted.x, None, bins), plan)


def test_a_result_is_saved_and_loaded(planted, tmp_path):
    result = train(TopK(planted.read, LATENTS, 3), InMemory(planted.x), SHORT)
    result.save(tmp_path / "curve.nc")
    assert TrainingResult.load(tmp_path / "curve.nc").data.identical(result.data)
    assert "3.0 latents on per row" in result.summary()
    assert result.plot().data


def test_rates_rise_stay_and_fall():
    plan = Training(steps=100, learning_rate=1.0, warm_up=0.1, decay=0.2)
    rates = [plan.rate(step, 1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)]) and rates[-1] == pytest.approx(0.05)
    assert set(rates[9:81]) == {1.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"learning_rate": 0},
        {"warm_up": 0.9, "decay": 0.2},
        {"resample_every": 0},
        {"dead_after": 0},
    ],
)
def test_numbers_out_of_range(wrong):
    with pytest.raises(InterpError):
        Training(**wrong)


def test_no_rows(planted):
    with pytest.raises(InterpError, match="no rows"):
        train(TopK(planted.read, LATENTS, 3), InMemory(planted.x[:0]))
    with pytest.raises(ShapeError, match="needed are rows of 16"):
        train(TopK(planted.read, LATENTS, 3), InMemory(planted.x[:, :4]))
    with pytest.raises(ShapeError, match="Activations are not finite: nan in row 2, channel 0"):
        InMemory(planted.x[:3].clone().index_put((torch.tensor(2), torch.tensor(0)), torch.tensor(torch.nan)))
    with pytest.raises(ShapeError, match="2 bins for 3 rows"):
        InMemory(planted.x[:3], None, torch.zeros(2, dtype=torch.long))
