"""The value of a variant is the metric of `run` with its edits, however it was found."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models.described import FAMILIES, captured, described, hooks_on, parts_of, ragged
from models.tiny import tiny

from interp.errors import InterpError, ShapeError
from interp.interventions import packed
from interp.interventions.edits import Ablate, Add, Gate, Knockout, Latents, Modulate, Replace, Scale, Swap, When
from interp.interventions.run import run
from interp.interventions.schedule import Savings, bytes_per_token
from interp.interventions.sweep import PackedSweep, forward_bytes, plan_sweep, sweep
from interp.models.load import describe
from interp.models.site import ATTENTION_PARTS, HEAD_PARTS, LAYER_PARTS, Site
from interp.tasks.metrics import (
    Accuracy,
    FunctionMetric,
    LogitDifference,
    LogProbability,
    NegativeKL,
    NegativeRank,
    Probability,
)

ANSWER, WRONG = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
NONE = Savings(False, False, False, False, False)
SAVINGS = {f"no {f.name}": dataclasses.replace(Savings(), **{f.name: False}) for f in dataclasses.fields(Savings)} | {
    "none": NONE
}
LINEAR = LogitDifference(ANSWER, WRONG)


def variants_of(model, part, source):
    """A dozen variants of one part: layers, positions, heads, neurons, several edits at and across sites."""
    layers, heads = ([0, 1, 2], model.heads_of(part)) if part in LAYER_PARTS else ([None], None)
    found = []
    for number, layer in enumerate(layers):
        site = Site(part, layer)
        found += [[Replace(site, source, positions=p)] for p in ((1, 3), (2, None), (0, -1))[number]]
        if heads and number:
            found.append([Replace(Site(part, layer, heads - 1), source, positions=None if number else 2)])
    first, last = Site(part, layers[0]), Site(part, layers[-1])
    found.append([])
    found.append([Replace(first, source, positions=3, rows=[0, 2]), Scale(last, 0.5, positions=-1)])
    if part in ATTENTION_PARTS:
        found.append([Scale(first, 0.5, positions=[1, 4]), Knockout(1, keys=[0, 1], positions=-1)])
        found.append([Knockout(0, keys=1, positions=[3, 4], head=2), Knockout(2, keys=1, positions=-1, head=1)])
    else:
        width = model.width_of(part)
        noise = torch.randn(width, generator=torch.Generator().manual_seed(0)).to(model.dtype)
        basis = torch.linalg.qr(torch.randn(width, 2, generator=torch.Generator().manual_seed(1))).Q.to(model.dtype)
        own = first if part not in HEAD_PARTS else Site(part, 0, 1)
        found.append(
            [
                Add(own, noise, 0.7, positions=2),
                Scale(first, 2.0, positions=[1, 2]),
                Replace(last, source, positions=-1),
            ]
        )
        found.append(
            [Replace(Site("resid_pre", 2), source, positions=1), Ablate(first, positions=torch.tensor([[6], [1], [5]]))]
        )
        found.append([Swap(last, source, basis, positions=[1, -1]), Replace(last, source, positions=3, units=[0, 2])])
        found.append([Add(own, noise, positions=4), Knockout(1, keys=2, positions=-1)])
        units = Latents(basis.T, basis.T + noise, 0.1 * noise[:2], torch.zeros(2, dtype=model.dtype))
        gate = Gate(noise, 0.0)
        found += [[Modulate(last, units, gain, 1.0, gate=gate)] for gain in (1.0, 2.0, [0.0, 1.0])]
        found.append(
            [Add(own, noise, keep_norm=True), Swap(last, source, basis, gate=gate), Replace(own, 0.5, gate=gate)]
        )
    return found


def whole_passes(model, *args, **kwargs):
    """All variants as rows of one plain hooked forward pass: the naive way, faster."""
    return sweep(dataclasses.replace(model, not_replayable="the oracle of this test"), *args, **kwargs)


def close(a, b, atol):
    assert a.values.keys() == b.values.keys()
    for name, x in a.values.items():
        torch.testing.assert_close(x, b.values[name], rtol=0, atol=atol)
        torch.testing.assert_close(a.base[name], b.base[name], rtol=0, atol=atol)


def _all(model, family, dtype):
    source = captured(family, dtype)
    return [variant for part in parts_of(model) for variant in variants_of(model, part, source)]


# --- the equality -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_and_every_saving_equal_the_naive_way(family):
    model, (_, corrupted) = described(family), ragged()
    variants = _all(model, family, torch.float64)
    if family not in ("llama", "gpt_neox", "gemma2"):  # of the others a third each, together all
        variants = variants[FAMILIES.index(family) % 3 :: 3]
    metrics = [LINEAR, LogProbability(ANSWER)]
    naive = whole_passes(model, corrupted, variants, metrics)
    atol = 1e-5 if family == "gemma2" else 1e-9  # explicit attention takes its softmax in float32
    some = slice(3, None, 19)  # one forward pass per variant
    plain = sweep(model, corrupted, variants[some], metrics, exact="naive")
    for metric, x in plain.values.items():
        torch.testing.assert_close(x, naive.values[metric][some], rtol=0, atol=atol)
    others = SAVINGS if family in ("llama", "gpt2", "gemma2", "gpt_neox") else {"none": NONE}
    for number, (name, savings) in enumerate({"all": Savings(), **others}.items()):
        some = slice(None) if name == "all" else slice(number, None, 24 if savings.batch else 60)
        swept = sweep(model, corrupted, variants[some], metrics, exact=savings)
        for metric, x in swept.values.items():
            torch.testing.assert_close(
                x, naive.values[metric][some], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert hooks_on(model.network) == 0
    for number in (0, len(variants) // 2, len(variants) - 1):  # and the naive way is `run`
        logits = run(model, corrupted, variants[number]).last_logits()
        expected = logits.gather(1, ANSWER[:, None])[:, 0] - logits.gather(1, WRONG[:, None])[:, 0]
        torch.testing.assert_close(naive.values["logit_difference"][number], expected, rtol=0, atol=atol)
    assert (naive.values["logit_difference"] - naive.base["logit_difference"]).abs().amax(1).gt(1e-3).sum() > len(
        variants
    ) / 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral", "gpt_neox", "opt"])
def test_float32_models_agree_to_float32(family):
    model, (_, corrupted) = described(family, torch.float32), ragged()
    variants = _all(model, family, torch.float32)[::3]
    swept = sweep(model, corrupted, variants, LINEAR)
    # Gemma 2 multiplies its embeddings and caps its logits at 30: a larger range.
    close(swept, whole_passes(model, corrupted, variants, LINEAR), 5e-4 if family == "gemma2" else 1e-4)
    assert swept.values["logit_difference"].dtype == torch.float32


_WHERE = "embed z mlp_out resid_pre attn_pattern k head_result attn_out final_norm resid_post".split()


@pytest.mark.parametrize(
    ("family", "where"),
    [("llama", where) for where in _WHERE]
    + [(("gpt2", "gemma2", "gpt_neox", "opt", "mistral")[n % 5], where) for n, where in enumerate(_WHERE)],
)
def test_edits_of_the_base_run(family, where):
    """Noise in the base run; variants before, at and after it, which keep or restore it."""
    model, (_clean, corrupted), source = described(family), ragged(), captured(family)
    site = Site(where, 1 if where in LAYER_PARTS else None)
    width = model.width_of(where)
    generator = torch.Generator().manual_seed(0)
    if where == "attn_pattern":
        base = [Scale(site, 0.5, positions=[1, 4]), Knockout(0, keys=1, positions=2)]
    else:
        shape = (3, 2, model.heads_of(where), width) if model.heads_of(where) else (3, 2, width)
        base = [Add(site, torch.randn(shape, generator=generator, dtype=torch.float64), positions=[1, 3])]
        base.append(Scale(Site("mlp_act" if model.d_mlp else "mlp_out", 2), 0.7, positions=3))
    held = run(model, corrupted, base, [site])
    variants = [
        [],
        [Replace(site, held, positions=3)],
        [Replace(site, source, positions=3)],
        [Scale(site, 0.5, positions=[2, 3])],
    ]
    for part in ("embed", "resid_pre", "z", "k", "attn_out", "mlp_act", "mlp_out", "resid_post", "final_norm"):
        for layer in (0, 1, 2) if part in LAYER_PARTS else (None,):
            for position in (0, 3) if layer != 1 else (3, -1):
                variants.append([Replace(Site(part, layer), source, positions=position)])
    variants.append([Replace(Site("attn_scores", 2), source, positions=-1)])
    variants.append([Replace(Site("resid_pre", 0), source, positions=2), Add(site, 1.0, positions=3)])
    naive = whole_passes(model, corrupted, variants, LINEAR, edits=base)
    atol = 1e-5 if family == "gemma2" else 1e-9
    close(sweep(model, corrupted, variants, LINEAR, edits=base), naive, atol)
    if family == "llama":
        few = variants[1::19]
        naive_few = sweep(model, corrupted, few, LINEAR, edits=base, exact="naive")
        close(sweep(model, corrupted, few, LINEAR, edits=base, exact=NONE), naive_few, atol)
    expected = run(model, corrupted, base).last_logits()
    expected = expected.gather(1, ANSWER[:, None])[:, 0] - expected.gather(1, WRONG[:, None])[:, 0]
    torch.testing.assert_close(naive.base["logit_difference"], expected, rtol=0, atol=atol)


STAGES = [
    "resid_pre",
    "k",
    "attn_scores",
    "z",
    "head_result",
    "attn_out",
    "resid_mid",
    "mlp_act",
    "mlp_out",
    "resid_post",
]


def _changed(part, layer, position):
    """An edit of one position that is no no-op; `k` at a head."""
    return Scale(Site(part, layer), 0.3, positions=position)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_two_edits_at_different_positions(family):
    """Every ordered pair of parts, in one layer and in neighbouring ones: a row joins at one, and must meet the other."""
    model, (_, corrupted) = described(family), ragged()
    parts = [part for part in STAGES if part not in model.untouchable]
    variants, places = [], [(1, 4, 3), (1, 3, 4), (2, 4, 1)]
    for first in parts:
        for second in parts:
            for layer, here, there in places:
                variants.append([_changed(first, 1, here), _changed(second, layer, there)])
    swept, expected = (f(model, corrupted, variants, LINEAR) for f in (sweep, whole_passes))
    atol = 1e-5 if family == "gemma2" else 1e-9
    off = (swept.values["logit_difference"] - expected.values["logit_difference"]).abs().amax(1)
    wrong = [
        [str(edit.site) + f"@{edit.positions}" for edit in variants[i]] for i in (off > atol).nonzero()[:, 0].tolist()
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_an_edit_of_the_base_run_and_one_of_a_variant(family):
    """Every ordered pair of parts, at the same and at different positions, through the packed rows."""
    model, (_, corrupted) = described(family), ragged()
    ends = [("embed", None), ("final_norm", None), ("logits", None), ("resid_pre", 0), ("resid_post", 2)]
    places = [(part, 1) for part in STAGES if part not in model.untouchable] + ends
    variants = [[_changed(*place, p)] for place in places for p in (1, 3)]
    variants += [[_changed(part, layer, 3)] for part, layer in places if layer == 1 for layer in (0, 2)]
    wrong = []
    for part, layer in places if family == "llama" else places[::2]:
        # By halves, and by adding, which a second application or a lost one changes.
        base = [_changed(part, layer, [2, 3]), Add(Site(part, layer), 0.1, positions=-1)]
        plan = plan_sweep(model, corrupted, variants, LINEAR, edits=base)
        assert isinstance(plan, PackedSweep)
        swept, expected = plan.run(), whole_passes(model, corrupted, variants, LINEAR, edits=base)
        torch.testing.assert_close(swept.base, expected.base, rtol=0, atol=1e-9)
        off = (swept.values["logit_difference"] - expected.values["logit_difference"]).abs().amax(1)
        wrong += [
            f"{Site(part, layer)} in the base, {variants[i][0].site}@{variants[i][0].positions}"
            for i in (off > 1e-9).nonzero()[:, 0].tolist()
        ]
    assert not wrong, wrong


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_base_edits_of_both_sides_of_a_boundary(family):
    """The base edits the stream after a layer and again before the next; variants come before, between and after."""
    model, (_, corrupted) = described(family), ragged()
    base = [
        Scale(Site("resid_post", 0), 0.3, positions=[1, 3]), Add(Site("resid_pre", 1), 0.5, positions=[2, 3]),
        Scale(Site("resid_mid", 1), -0.7, positions=3), Scale(Site("resid_pre", 2), 0.4, positions=None),
    ]  # fmt: skip
    held = run(model, corrupted, base, ["resid_post", "resid_pre"])
    others = [("mlp_out", 0), ("z", 0), ("resid_post", 0), ("resid_pre", 1), ("mlp_out", 1), ("resid_post", 1)]
    variants = [[_changed(*place, p)] for place in others for p in (1, 2, 3)]
    variants += [[_changed(*a, 2), _changed(*b, p)] for a in others for b in others for p in (1, 3)]
    nothing = [[Replace(Site(*place), held, positions=p)] for place in others if "resid" in place[0] for p in (1, 3)]
    plan = plan_sweep(model, corrupted, [*variants, *nothing], LINEAR, edits=base)
    assert isinstance(plan, PackedSweep)
    close(plan.run(), whole_passes(model, corrupted, [*variants, *nothing], LINEAR, edits=base), 1e-9)
    assert plan.cost.skipped >= 3 * len(nothing)  # what writes the base's own value is known, on both sides


# --- what metrics read --------------------------------------------------------------------------------------------


def test_every_metric_and_several_at_once():
    model, (_clean, corrupted) = described("llama"), ragged()
    variants = _all(model, "llama", torch.float64)[::9]
    reference = captured("llama").last_logits().log_softmax(-1)
    metrics = [
        LINEAR, LogProbability(ANSWER), Probability(ANSWER), NegativeKL(reference), NegativeRank(ANSWER), Accuracy(ANSWER),
        FunctionMetric(lambda logits, example: logits[:, 7] * (example + 1), name="mine"),
        LogitDifference(WRONG, ANSWER, name="turned"),
    ]  # fmt: skip
    together = sweep(model, corrupted, variants, metrics)
    close(together, whole_passes(model, corrupted, variants, metrics), 1e-9)
    for metric in metrics:
        alone = sweep(model, corrupted, variants, metric)
        torch.testing.assert_close(alone.values[metric.name], together.values[metric.name], rtol=0, atol=1e-10)
    torch.testing.assert_close(together.values["turned"], -together.values["logit_difference"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_metrics_that_read_several_positions(family):
    model, (_, corrupted) = described(family), ragged()
    variants = _all(model, family, torch.float64)[::16]
    atol = 1e-5 if family == "gemma2" else 1e-9
    for reads in ([[6, 2], [4, 4], [1, 3]], [[2], [0], [3]]):
        positions = torch.tensor(reads)
        answer = torch.arange(3 * len(reads[0])).view(3, -1)
        metrics = [LogProbability(answer, positions=positions), LogitDifference(ANSWER, WRONG, positions=positions)]
        naive = whole_passes(model, corrupted, variants, metrics)
        other = NONE if len(reads[0]) == 1 else dataclasses.replace(Savings(), read_late=False)
        for savings in (Savings(), other):
            close(sweep(model, corrupted, variants, metrics, exact=savings), naive, atol)
        logits = run(model, corrupted, variants[0]).logits
        by_hand = sum(
            logits[torch.arange(3), positions[:, i]].log_softmax(-1)[torch.arange(3), answer[:, i]]
            for i in range(len(reads[0]))
        )
        torch.testing.assert_close(naive.values["log_probability"][0], by_hand, rtol=0, atol=atol)


def test_metrics_that_do_not_fit_are_refused():
    model, prompts = described("llama"), ragged()[0]
    with pytest.raises(InterpError, match="distinct names"):
        sweep(model, prompts, [], [LINEAR, LINEAR])
    with pytest.raises(InterpError, match="different positions"):
        sweep(model, prompts, [], [LINEAR, LogProbability(ANSWER, positions=torch.zeros(3, 1, dtype=torch.long))])
    with pytest.raises(ShapeError, match="made for .*2.* prompts; there are 3"):
        sweep(model, prompts, [], LogProbability(ANSWER[:2]))
    with pytest.raises(ShapeError, match="must return one number per row"):
        sweep(model, prompts, [], FunctionMetric(lambda logits, example: logits.mean()[None]))
    with pytest.raises(InterpError, match="is not a number in the base run"):
        sweep(model, prompts, [], FunctionMetric(lambda logits, example: logits[:, 0] * torch.nan))
    with pytest.raises(InterpError, match="generated steps"):
        sweep(model, prompts, [[Scale(Site("z", 0), 2.0, when=When([1]))]], LINEAR)


def test_a_state_driven_to_nothing_is_an_error_and_no_number():
    model, prompts = described("llama"), ragged()[0]
    blind = [Replace(Site("attn_scores", 1), -torch.inf, positions=-1)]
    for exact in (Savings(), "naive"):
        with pytest.raises(InterpError, match="'logit_difference' is not a number in the rows|rows 0 to"):
            sweep(model, prompts, [blind], LINEAR, exact=exact)


# --- what does not run -------------------------------------------------------------------------------------------


def test_empty_variants_and_no_variants():
    model, prompts = described("llama"), ragged()[0]
    for exact in (Savings(), NONE, "naive"):
        none = sweep(model, prompts, [], LINEAR, exact=exact)
        assert none.values["logit_difference"].shape == (0, 3)
        empty = sweep(model, prompts, [[], []], LINEAR, exact=exact)
        assert torch.equal(empty.values["logit_difference"], empty.base["logit_difference"].expand(2, 3))
    assert empty.cost.skipped == 0 and sweep(model, prompts, [[], []], LINEAR).cost.skipped == 6


def test_rows_that_change_nothing_are_answered_by_the_base():
    """Prompts differ from token 2 (rows 0, 2) or 1 (row 1) on: states before are the same, bit for bit."""
    model, (clean, corrupted) = described("llama"), ragged()
    both = run(model, clean.joined(corrupted), (), ["resid_pre"])
    source = run(model, clean, (), ["resid_pre"])
    assert torch.equal(both["resid_pre", 1][:3][clean.mask], source["resid_pre", 1][clean.mask])
    variants = [[Replace(Site("resid_pre", layer), source, positions=p)] for layer in range(3) for p in range(5)]
    swept = sweep(model, corrupted, variants, LINEAR)
    first, effective = torch.tensor([2, 1, 2]), 0
    for layer in range(3):
        for p in range(5):
            number = layer * 5 + p
            same = (p < first) if layer else (p != first)
            effective += int((~same).sum())
            x = swept.values["logit_difference"][number]
            assert torch.equal(x[same], swept.base["logit_difference"][same])
            assert ((x - swept.base["logit_difference"])[~same].abs() > 1e-6).all()
    assert effective == 3 + 2 * (3 + 4 + 3)
    assert (swept.cost.rows, swept.cost.skipped) == (effective, 45 - effective)
    naive = sweep(model, corrupted, variants, LINEAR, exact="naive")
    assert (naive.cost.rows, naive.cost.skipped, naive.cost.forwards) == (45, 0, 15)
    off = sweep(model, corrupted, variants, LINEAR, exact=dataclasses.replace(Savings(), skip_noops=False))
    assert (off.cost.rows, off.cost.skipped) == (45, 0)


def test_a_row_begins_at_the_first_position_that_an_edit_changes(monkeypatch):
    """All positions patched together; prompts agree before token 3, so that there the edits change nothing."""
    model, clean = described("llama"), ragged((7, 7, 7))[0]
    ids = clean.ids.clone()
    ids[:, 3] = (ids[:, 3] + 1) % model.d_vocab
    base = dataclasses.replace(clean, ids=ids)
    source = run(model, clean, (), ["z", "resid_mid"])
    seen, original = [], packed.Chunk._attend
    monkeypatch.setattr(
        packed.Chunk, "_attend", lambda self, layer, x: (seen.append((layer, len(x))), original(self, layer, x))[1]
    )
    variants = [
        [Replace(Site("z", 0, head), source) for head in (0, 2)],
        # The later edit reaches further back than the first one, and changes something there.
        [Replace(Site("z", 0), source), Scale(Site("resid_mid", 1), 2.0, positions=1)],
    ]
    swept = sweep(model, base, variants, LINEAR)
    assert seen == [(1, 3 * (4 + 6)), (2, 3 * (4 + 6))]
    naive = sweep(model, base, variants, LINEAR, exact="naive")
    torch.testing.assert_close(swept.values, naive.values, rtol=0, atol=1e-9)


def test_what_the_metric_cannot_see_is_not_run():
    model, prompts = described("llama"), ragged()[0]
    for site in (
        Site("resid_post", 2),
        Site("mlp_out", 2),
        Site("z", 2),
        Site("q", 2),
        Site("final_norm"),
        Site("logits"),
    ):
        swept = sweep(model, prompts, [[Scale(site, 2.0, positions=3)], [Scale(site, 2.0, positions=-1)]], LINEAR)
        assert (swept.cost.rows, swept.cost.skipped) == (3, 3), site
    seen = sweep(model, prompts, [[Scale(Site(part, 2), 2.0, positions=3)] for part in ("k", "v", "resid_pre")], LINEAR)
    assert seen.cost.skipped == 0


def test_rows_enter_late_and_only_their_live_tokens_run(monkeypatch):
    model, prompts = described("llama"), ragged((7, 7, 7))[0]
    seen = []
    original = packed.Chunk._attend

    def counting(self, layer, x):
        seen.append((layer, len(x)))
        return original(self, layer, x)

    monkeypatch.setattr(packed.Chunk, "_attend", counting)
    edits = lambda layer: [[Scale(Site("resid_pre", layer), 2.0, positions=p)] for p in (4, 5)]  # noqa: E731
    sweep(model, prompts, edits(2), LINEAR)
    assert seen == [(2, 3 * (3 + 2))]
    seen.clear()
    sweep(model, prompts, edits(1), LINEAR)
    assert seen == [(1, 15), (2, 15)]
    seen.clear()
    sweep(model, prompts, edits(2), LINEAR, exact=dataclasses.replace(Savings(), skip_prefix=False, enter_late=False))
    assert seen == [(0, 42), (1, 42), (2, 42)]
    seen.clear()
    sweep(model, prompts, [[Scale(Site("mlp_out", 2), 2.0, positions=-1)]], LINEAR)
    assert seen == []


# --- memory -------------------------------------------------------------------------------------------------------


def test_a_small_budget_means_more_chunks_and_the_same_values():
    model, (_, corrupted) = described("llama"), ragged()
    variants = _all(model, "llama", torch.float64)[::2]
    whole = plan_sweep(model, corrupted, variants, LINEAR)
    budget = whole.base.nbytes + 30 * bytes_per_token(model, 7)
    small = plan_sweep(model, corrupted, variants, LINEAR, budget=budget)
    assert isinstance(small, PackedSweep)
    assert len(whole.parts) == 1 and len(small.parts) == small.cost.forwards > 10
    assert all(int(small.rows.live[part].sum()) <= 30 for part in small.parts)
    assert small.cost.bytes <= budget < whole.cost.bytes
    seen = []
    found = small.run(progress=lambda items, what: (seen.append((len(items), what)), items)[1])
    close(found, whole.run(), 1e-10)
    assert seen == [(len(small.parts), f"{len(variants)} variants × 3 prompts")]
    with pytest.raises(InterpError, match="does not fit into the memory budget.*larger budget"):
        sweep(
            model,
            corrupted,
            [[Scale(Site("resid_pre", 0), 2.0, positions=0)]],
            LINEAR,
            budget=0,
        )


def test_the_plan_says_what_it_costs():
    model, (_, corrupted) = described("llama"), ragged()
    plan = plan_sweep(model, corrupted, [[Scale(Site("resid_pre", 1), 2.0, positions=p)] for p in range(5)], LINEAR)
    text = plan.explain()
    assert "5 variants × 3 prompts: 15 rows to run, 0 answered by the base run" in text
    assert "1 packed passes" in text and "GFLOP" in text and "MiB" in text and "× fewer" in text
    assert "savings: enter_late, skip_prefix, skip_noops, read_late, batch" in text
    assert "apply_edits: PyTorch calls (the tensors are on the CPU)." in text and "prefix_attention: PyTorch" in text
    assert "edit_latents" not in text and "swap_subspace" not in text
    naive = plan_sweep(model, corrupted, [[]], LINEAR, exact="naive")
    assert "One plain forward pass per variant" in naive.explain()
    assert (
        plan.cost.operations
        < plan.cost.naive_operations
        == plan_sweep(model, corrupted, [[]] * 5, LINEAR, exact="naive").cost.operations
    )
    nothing = plan_sweep(model, corrupted, [[]], LINEAR)
    assert "0 rows to run, 3 answered" in nothing.explain()


def test_a_sweep_in_half_precision_has_float32_metrics_near_those_of_float32():
    _, corrupted = ragged()
    answer, wrong = torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8])
    metrics = [LogitDifference(answer, wrong), LogProbability(answer)]
    variants = [[Scale(Site("resid_pre", layer), 0.5, positions=p)] for layer in (1, 2) for p in (2, 4)]
    short = describe(tiny("llama").to(torch.bfloat16), None, "half")
    exact, half = (sweep(model, corrupted, variants, metrics) for model in (described("llama"), short))
    for metric in metrics:
        true, found = exact.values[metric.name], half.values[metric.name]
        assert found.dtype == half.base[metric.name].dtype == torch.float32
        assert 0 < (found - true).abs().max() < 0.02 * true.abs().max()


def test_models_that_cannot_be_replayed_are_swept_in_whole_passes():
    model, (_, corrupted) = described("llama"), ragged()
    whole = dataclasses.replace(model, not_replayable="this test says so")
    variants = _all(model, "llama", torch.float64)[::6]
    plan = plan_sweep(whole, corrupted, variants, LINEAR)
    assert "rows of one plain forward pass: this test says so" in plan.explain()
    assert len(plan.parts) == 1
    expected = sweep(model, corrupted, variants, LINEAR)
    close(plan.run(), expected, 1e-9)
    few = plan_sweep(whole, corrupted, variants, LINEAR, budget=9 * 3 * forward_bytes(model, 7))
    assert 1 < len(few.parts) < len(variants)
    close(few.run(), expected, 1e-9)
    close(sweep(whole, corrupted, variants, LINEAR, exact=NONE), expected, 1e-9)


def test_inputs_and_sources_are_left_alone():
    model, (_, corrupted), source = described("llama"), ragged(), captured("llama")
    before = {site: x.clone() for site, x in source.activations.items()}
    first = sweep(model, corrupted, _all(model, "llama", torch.float64), LINEAR)
    again = sweep(model, corrupted, _all(model, "llama", torch.float64), LINEAR)
    assert torch.equal(first.values["logit_difference"], again.values["logit_difference"])
    assert all(torch.equal(x.nan_to_num(), before[site].nan_to_num()) for site, x in source.activations.items())


# --- anything at all ------------------------------------------------------------------------------------------------

_PARTS = [part for part in LAYER_PARTS if part != "attn_scores"]


@st.composite
def _choice(draw):
    """An edit, as plain values (what makes it runs in the test: type checkers use `random`)."""
    part = draw(st.sampled_from(_PARTS))
    heads = {"k": 2, "v": 2}.get(part, 4)
    head = draw(st.none() | st.integers(0, heads - 1)) if part in HEAD_PARTS else None
    positions = draw(st.none() | st.integers(-5, 4) | st.lists(st.integers(0, 4), unique=True, max_size=3))
    rows = draw(st.none() | st.lists(st.integers(0, 2), unique=True, max_size=2))
    kind = draw(st.sampled_from(["replace", "scale", "zero", "add", "knockout"]))
    query = draw(st.integers(1, 4))
    keys = draw(st.lists(st.integers(0, query - 1), unique=True, min_size=1))
    factor = draw(st.sampled_from([0.0, 0.5, 1.0, -1.0]))
    return kind, part, draw(st.integers(0, 2)), head, positions, rows, factor, query, keys


def _edit(kind, part, layer, head, positions, rows, factor, query, keys):
    site, places = Site(part, layer, head), {"positions": positions, "rows": rows}
    match kind:
        case "replace":
            return Replace(site, captured("llama"), **places)
        case "scale":
            return Scale(site, factor, **places)
        case "zero":
            return Ablate(site, **places)
        case "add" if part != "attn_pattern":
            return Add(site, captured("llama"), 0.3, **places)
    return Knockout(layer, keys=keys, positions=query, head=head if part not in ("k", "v") else None, rows=rows)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    variants=st.lists(st.lists(_choice(), max_size=4), min_size=1, max_size=5),
    edits=st.lists(_choice(), max_size=2),
    savings=st.tuples(*[st.booleans()] * 5),
    late=st.booleans(),
)
def test_random_variants_equal_the_naive_way(variants, edits, savings, late):
    model, (_, corrupted) = described("llama"), ragged()
    variants, edits = [[_edit(*c) for c in variant] for variant in variants], [_edit(*c) for c in edits]
    metric = LINEAR if late else LogitDifference(ANSWER, WRONG, positions=torch.tensor([[2, 4], [1, 1], [5, 3]]))
    naive = whole_passes(model, corrupted, variants, metric, edits=edits)
    close(sweep(model, corrupted, variants, metric, edits=edits, exact=Savings(*savings)), naive, 1e-6)
