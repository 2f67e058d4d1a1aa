"""Every cell of a patching grid is one run with one edit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import InterpError, PairError, SiteError
from interp.interventions.edits import Replace
from interp.interventions.run import run
from interp.models.site import Site
from interp.patching import activation
from interp.patching.activation import PatchResult, patch
from interp.tasks.pairs import PromptPair, Task

EVEN = Task(
    "keys",
    (
        PromptPair("The key to the cabinets", "The keys to the cabinets", " is", " are"),
        PromptPair("The dog near the cars", "The dogs near the cars", " is", " are"),
    ),
    "this test",
)
UNEVEN = Task("uneven", (*EVEN.pairs, PromptPair("The key", "The keys", " is", " are")), "this test")


@pytest.fixture(scope="module")
def runs(speaking):
    """{task: (encoded, clean run, corrupted run)} with everything captured."""
    found = {}
    for task in (EVEN, UNEVEN):
        encoded = task.encode(speaking)
        parts = ["resid_pre", "z", "v", "mlp_act", "attn_pattern", "attn_out", "embed"]
        found[task.name] = (encoded, *(run(speaking, p, (), parts) for p in (encoded.clean, encoded.corrupted)))
    return found


def difference(logits, encoded):
    return (logits.gather(1, encoded.answer[:, None]) - logits.gather(1, encoded.wrong_answer[:, None]))[:, 0].numpy()


def cell(model, base, source, encoded, sites, positions, units=None):
    """One run; a position beyond a prompt's end is not measured for that prompt."""
    lengths = base.lengths.tolist()
    rows = list(range(len(lengths)))
    if isinstance(positions, int) and positions >= 0:
        rows = [b for b in rows if positions < lengths[b]]
    edits = [Replace(site, source, positions=positions, rows=rows, units=units) for site in sites]
    values = difference(run(model, base, edits).last_logits(), encoded)
    values[[b for b in range(len(lengths)) if b not in rows]] = np.nan
    return values


def close(found, expected, atol=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("task", [EVEN, UNEVEN], ids=lambda task: task.name)
def test_resid_pre_over_layers_and_positions(speaking, runs, task, direction):
    encoded, clean, corrupted = runs[task.name]
    base, source = (encoded.corrupted, clean) if direction == "denoising" else (encoded.clean, corrupted)
    result = patch(speaking, task, "resid_pre", direction=direction)
    width = encoded.clean.ids.shape[1]
    x = result.data["logit_difference"]
    assert x.dims == ("layer", "pos", "example") and x.shape == (3, width, len(task))
    for layer in range(3):
        for position in range(width):
            expected = cell(speaking, base, source, encoded, [Site("resid_pre", layer)], position)
            close(x.values[layer, position], expected)
    ends = [difference(r.last_logits(), encoded) for r in (clean, corrupted)]
    close(result.data["logit_difference_clean"], ends[0])
    close(result.data["logit_difference_corrupted"], ends[1])
    effect = x.values - ends[direction == "denoising"]
    close(result.data["logit_difference_effect"], np.nanmean(effect, -1))
    assert result.data["logit_difference"].attrs["unit"] == "logits"
    assert [int(v) for v in result.data["layer"]] == [0, 1, 2]
    assert np.isnan(x.values[:, -1, -1]).all() == (task is UNEVEN)
    naive = patch(speaking, task, "resid_pre", direction=direction, exact="naive")
    close(x.values, naive.data["logit_difference"].values)
    assert result.provenance["rows_run"] < naive.provenance["rows_run"]
    assert result.provenance["rows_run"] + result.provenance["rows_skipped"] == 3 * width * len(task)


@pytest.mark.parametrize(
    ("arguments", "dims", "shape"),
    [
        (dict(part="z"), ("layer", "head"), (3, 4)),
        (dict(part="v"), ("layer", "head"), (3, 2)),
        (dict(part="z", over=("layer", "head", "pos")), ("layer", "head", "pos"), (3, 4, 5)),
        (dict(part="z", over=("pos", "layer")), ("layer", "pos"), (3, 5)),
        (dict(part="blocks.0.attn.hook_z", over=("layer",), positions=-1), ("layer",), (3,)),
        (dict(part="attn_pattern", positions=-1), ("layer", "head"), (3, 4)),
        (dict(part="resid_pre", window=3), ("layer", "pos"), (3, 5)),
        (dict(part="resid_pre", window=2, layers=[1, 2]), ("layer", "pos"), (2, 5)),
        (dict(part="mlp_act", over=("layer", "unit"), units=[3, 7], positions=[1, -1]), ("layer", "unit"), (3, 2)),
        (dict(part="mlp_act", over=("layer", "pos"), units=[3, 7]), ("layer", "pos"), (3, 5)),
        (dict(part="mlp_act", over=("unit",), layers=[1], positions=-1), ("unit",), (40,)),
        (dict(part="resid_pre", over=("pos",), layers=[0, 2]), ("pos",), (5,)),
        (dict(part="embed"), ("pos",), (5,)),
        (dict(part="attn_out", over=("layer",)), ("layer",), (3,)),
    ],
    ids=str,
)  # fmt: skip
def test_grids(speaking, runs, arguments, dims, shape):
    encoded, clean, _ = runs["keys"]
    result = patch(speaking, EVEN, **arguments)
    x = result.data["logit_difference"]
    assert x.dims == (*dims, "example") and x.shape == (*shape, 2)
    part = arguments["part"].replace("blocks.0.attn.hook_z", "z")
    layers, window = arguments.get("layers", [0, 1, 2]), arguments.get("window", 1)
    for index in np.ndindex(*shape):
        where = {axis: int(x[axis][i]) for axis, i in zip(dims, index, strict=True)}
        near = set()
        for centre in [where["layer"]] if "layer" in where else layers:
            near |= {n for n in range(centre - window // 2, centre - window // 2 + window) if 0 <= n < 3}
        sites = [Site(part)] if part == "embed" else [Site(part, n, where.get("head")) for n in sorted(near)]
        units = [where["unit"]] if "unit" in where else arguments.get("units")
        positions = where.get("pos", arguments.get("positions"))
        if sum(index) % 3 and np.prod(shape) > 12:
            continue  # every third cell of the large grids
        close(x.values[index], cell(speaking, encoded.corrupted, clean, encoded, sites, positions, units))
    naive = patch(speaking, EVEN, exact="naive", **arguments)
    close(x.values, naive.data["logit_difference"].values)


def test_one_pair_every_metric(speaking):
    pair = EVEN.pairs[0]
    result = patch(speaking, pair, "resid_pre", metric=list(activation.METRICS))
    encoded = Task("one", (pair,), "").encode(speaking)
    clean = run(speaking, encoded.clean, (), ["resid_pre"])
    for position in range(5):
        edits = [Replace(Site("resid_pre", 1), clean, positions=position)]
        logits = run(speaking, encoded.corrupted, edits).last_logits()[0]
        logp, answer = logits.log_softmax(-1), int(encoded.answer[0])
        reference = clean.last_logits()[0].log_softmax(-1)
        expected = {
            "logit_difference": logits[answer] - logits[encoded.wrong_answer[0]],
            "probability": logp[answer].exp(),
            "log_probability": logp[answer],
            "negative_kl": -(reference.exp() * (reference - logp)).sum(),
            "negative_rank": -(logits > logits[answer]).sum(),
            "accuracy": logits.argmax() == answer,
        }
        for name, value in expected.items():
            close(float(result.data[name][1, position, 0]), float(value))
    assert list(result.data["token"].values) == ["The", " key | keys", " to", " the", " cabinets"]
    close(result.data["negative_kl_clean"], 0, 1e-12)


def apart(task, runs):
    """The task with each pair turned so that its clean prompt has the larger difference: gaps of one sign."""
    encoded, clean, corrupted = runs[task.name]
    gaps = difference(clean.last_logits(), encoded) - difference(corrupted.last_logits(), encoded)
    turned = [
        p if gap > 0 else PromptPair(p.corrupted, p.clean, p.answer, p.wrong_answer)
        for p, gap in zip(task.pairs, gaps, strict=True)
    ]
    keep = [pair for pair, gap in zip(turned, gaps, strict=True) if abs(gap) > np.abs(gaps).max() / 3]
    return Task("apart", (*keep, *keep), "this test")


def test_patching_everything_recovers_everything(speaking, runs):
    task = apart(UNEVEN, runs)
    result = patch(speaking, task, "resid_pre", over=("layer",))
    close(result.recovered()["recovered"], np.ones(3))
    noising = patch(speaking, task, "resid_pre", over=("layer",), direction="noising")
    close(noising.recovered()["recovered"], np.zeros(3))
    grid = patch(speaking, task, "resid_pre")
    share = grid.recovered()
    assert (share["recovered"].values[:, 0] == 0).all()  # the same first token
    assert share["layer"].equals(grid.data["layer"]) and share["recovered"].dims == ("layer", "pos")
    assert not (share["low"] > share["recovered"]).any() and not (share["high"] < share["recovered"]).any()
    edited, corrupted, clean = (grid.data[f"logit_difference{x}"].values for x in ("", "_corrupted", "_clean"))
    for layer, position in np.ndindex(edited.shape[:2]):
        scored = np.isfinite(edited[layer, position])
        expected = (edited[layer, position] - corrupted)[scored].mean() / (clean - corrupted)[scored].mean()
        close(share["recovered"].values[layer, position], expected)


def test_recovered_refuses_a_gap_of_nothing(speaking):
    """A pair and its reverse have a mean gap of exactly zero."""
    a = EVEN.pairs[0]
    task = Task("both ways", (a, PromptPair(a.corrupted, a.clean, a.answer, a.wrong_answer)), "")
    result = patch(speaking, task, "resid_pre")
    with pytest.raises(PairError, match="to recover.*Use the values themselves"):
        result.recovered()
    same = Task("same", (PromptPair("The key to", "The key to", " is", " are"),), "")
    with pytest.raises(PairError, match="to recover"):
        patch(speaking, same, "resid_pre").recovered()


def test_save_and_load(speaking, tmp_path):
    result = patch(speaking, UNEVEN, "resid_pre", metric=["logit_difference", "probability"])
    result.save(tmp_path / "patch.nc")
    back = PatchResult.load(tmp_path / "patch.nc")
    assert back.data.identical(result.data) and back.provenance == result.provenance
    assert back.summary() == result.summary() and "PatchResult" in back.summary()
    assert back.provenance["weights"] == speaking.weights_hash
    assert back.title == "Denoising resid_pre · uneven (3 pairs) · tiny-smol"
    assert len(back.to_dataframe()) > 0


def test_groups_of_pairs_and_checkpoints_change_no_value(speaking, tmp_path, monkeypatch):
    expected = patch(speaking, UNEVEN, "resid_pre")
    monkeypatch.setattr(activation, "groups", lambda *_: [range(2), range(2, 3)])
    split = patch(speaking, UNEVEN, "resid_pre", checkpoint=tmp_path)
    close(split.data["logit_difference"].values, expected.data["logit_difference"].values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pairs_0000", "pairs_0001"]
    again = patch(speaking, UNEVEN, "resid_pre", checkpoint=tmp_path)
    assert again.data.identical(split.data)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(part="resid_per"), SiteError, "resid_pre"),
        (dict(part="z", layers=[3]), SiteError, "the nearest is 2"),
        (dict(over=("layer", "head")), SiteError, "'resid_pre' has no heads"),
        (dict(over=("layer", "position")), SiteError, "no axis 'position'. Did you mean 'pos'|no axis 'position'"),
        (dict(over=("layer", "layer")), SiteError, "name each one once"),
        (dict(over=()), SiteError, "at least one"),
        (dict(part="embed", over=("layer",)), SiteError, "belongs to no layer"),
        (dict(positions=1), SiteError, "patched together"),
        (dict(part="attn_pattern", over=("unit",)), SiteError, "keys on its last axis"),
        (dict(window=0), InterpError, "patches nothing"),
        (dict(metric="logit_diff"), InterpError, "'logit_difference'"),
        (dict(over=("layer",), positions=9), InterpError, "position 9 is outside"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(speaking, arguments, error, message):
    with pytest.raises(error, match=message):
        patch(speaking, EVEN, **arguments)


def test_pairs_that_do_not_fit_are_refused(speaking):
    with pytest.raises(PairError):
        patch(speaking, PromptPair("The key", "The keys to", " is", " are"))
    with pytest.raises(PairError):
        patch(speaking, PromptPair("The key", "The keys", " unquestionably so", " are"))


def test_float32_values_stay_close(speaking, tokenizer):
    import copy

    from interp.models.load import load

    small = load(copy.deepcopy(speaking.network).float(), tokenizer)
    a, b = (patch(m, EVEN, "resid_pre").data["logit_difference"].values for m in (small, speaking))
    close(a, b, 1e-3)
    assert torch.float32 == small.dtype
