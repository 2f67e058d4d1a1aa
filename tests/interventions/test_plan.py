"""What a user can get wrong is found before a forward pass."""

from __future__ import annotations

import math

import pytest
import torch
from models.described import captured, described, hooks_on, ragged

from interp.errors import InterpError, ShapeError, SiteError
from interp.interventions.captured import Run
from interp.interventions.edits import Ablate, Add, Gate, Knockout, Latents, Modulate, Replace, Scale, Swap
from interp.interventions.plan import compile_variants
from interp.interventions.run import run
from interp.interventions.sweep import sweep
from interp.models.prompts import from_token_lists
from interp.models.site import Site
from interp.tasks.metrics import LogProbability

LENGTHS = (7, 5, 6)
Z, RESID = Site("z", 1), Site("resid_pre", 1)
D, HEAD = (24,), (4, 6)


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def with_value(number):
    value = zeros(24)
    value[3] = number
    return value


def of_length(*lengths):
    prompts = from_token_lists(None, [[1] * n for n in lengths])
    return run(described("llama"), prompts, (), ["resid_pre", "z"])


def single(*, nan):
    """A source run whose activation holds a bad number at one prompt."""
    whole = captured("llama")
    x = whole[RESID].clone()
    x[1, 2, 3] = nan
    return Run(whole.prompts, None, {RESID: x})


SITES = [
    (lambda: Scale(Site("resid_pre", 3), 1.0), SiteError, "3 layers, numbered 0 to 2; the nearest is 2"),
    (lambda: Scale(Site("resid_pre", -1), 1.0), SiteError, "the nearest is 0"),
    (lambda: Scale(Site("q", 0, 4), 1.0), SiteError, "4 heads, numbered 0 to 3; the nearest is 3"),
    (lambda: Scale(Site("v", 0, 3), 1.0), SiteError, "2 key/value heads.*the nearest is 1"),
    (lambda: Knockout(7, keys=0, positions=-1), SiteError, "the nearest is 2"),
    (lambda: Knockout(0, keys=0, positions=-1, head=9), SiteError, "the nearest is 3"),
]
PLACES = [
    (lambda: Scale(RESID, 1.0, positions=7), InterpError, "position 7 is outside prompt 0, which has 7 tokens"),
    (
        lambda: Scale(RESID, 1.0, positions=5),
        InterpError,
        r"position 5 is outside prompt 1, which has 5 tokens \(0 to 4",
    ),
    (lambda: Scale(RESID, 1.0, positions=[0, -6]), InterpError, "position -6 is outside prompt 1"),
    (lambda: Scale(RESID, 1.0, positions=6, rows=[0, 2]), InterpError, "position 6 is outside prompt 2"),
    (lambda: Scale(RESID, 1.0, positions=torch.tensor([[6], [4], [6]])), InterpError, "position 6 is outside prompt 2"),
    (lambda: Knockout(0, keys=5, positions=-1), InterpError, "position 5 is outside prompt 1"),
    (lambda: Knockout(0, keys=0, positions=9), InterpError, "position 9 is outside prompt 0"),
    (lambda: Scale(RESID, 1.0, rows=[3]), InterpError, r"rows \[3\] of a batch of 3 prompts \(0 to 2\)"),
    (lambda: Scale(RESID, 1.0, rows=[-1]), InterpError, r"rows \[-1\] of a batch of 3"),
    (lambda: Scale(RESID, 1.0, rows=[2, 2]), InterpError, r"rows \[2, 2\] name one row twice"),
    (lambda: Replace(RESID, 1.0, units=[3, 3]), InterpError, r"units \[3, 3\] name one unit twice"),
    (lambda: Scale(RESID, 1.0, positions=[1, 1]), InterpError, "name one place twice"),
    (lambda: Scale(RESID, 1.0, positions=[4, -1]), InterpError, "name one place twice"),  # in prompt 1
    (lambda: Knockout(0, keys=[0, 1], positions=1), InterpError, "query 1 would see no key at all"),
    (lambda: Knockout(0, keys=0), InterpError, "query 0 would see no key at all; leave it one"),
    (lambda: Knockout(0, keys=list(range(5)), positions=-1, rows=[1]), InterpError, "query 4 would see no key"),
]
VALUES = [
    (lambda: Replace(RESID, zeros(23)), ShapeError, r"Replace at L1.resid_pre has shape \[23\].*row=3, position=7, 24"),
    (lambda: Add(RESID, zeros(2, 1, 24)), ShapeError, "shape"),
    (lambda: Add(RESID, zeros(3, 2, 24), positions=[1, 2, 3]), ShapeError, "position=3"),
    (lambda: Add(RESID, zeros(1, 3, 1, 24), positions=1), ShapeError, "shape"),
    (lambda: Add(RESID, zeros(3, 1, 24), positions=1, rows=[0, 2]), ShapeError, "row=2"),
    (lambda: Replace(Z, zeros(24)), ShapeError, "4, 6"),
    (lambda: Replace(Site("z", 1, 2), zeros(4, 6)), ShapeError, r"\[4, 6\]"),
    (lambda: Replace(Site("mlp_act", 1), zeros(40), units=[1, 2]), ShapeError, r"\[40\].*2\]"),
    (lambda: Replace(RESID, with_value(math.nan)), ShapeError, "L1.resid_pre holds NaN or infinite"),
    (lambda: Add(RESID, with_value(math.inf), positions=1), ShapeError, "NaN or infinite"),
    (lambda: Add(RESID, with_value(1), scale=math.nan, positions=1), ShapeError, "NaN or infinite"),
    (lambda: Replace(RESID, math.nan), ShapeError, "NaN or infinite"),
    (lambda: Add(RESID, -math.inf), ShapeError, "NaN or infinite"),
    (lambda: Scale(RESID, math.nan), InterpError, "finite|NaN"),
    (lambda: Scale(RESID, math.inf), InterpError, "finite|NaN|infinite"),
    (lambda: Replace(RESID, single(nan=math.nan), positions=2), ShapeError, "NaN or infinite"),
    (lambda: Replace(Site("attn_pattern", 0), -math.inf), ShapeError, "NaN or infinite"),
    (lambda: Replace(Site("attn_scores", 0), math.nan), ShapeError, "NaN or infinite"),
]
SOURCES = [
    (
        lambda: Replace(RESID, of_length(7, 5, 5)),
        ShapeError,
        "differ in length at prompt 2.*Positions would not correspond",
    ),
    (lambda: Replace(RESID, of_length(7)), ShapeError, "differ in length at prompt 1"),
    (lambda: Replace(RESID, of_length(7, 5)), ShapeError, "has 2 prompts, the base 3"),
    (lambda: Replace(Site("q", 0), of_length(7, 5, 6)), SiteError, "L0.q was not captured in this run"),
    (lambda: Ablate(RESID, "mean"), InterpError, "needs `over`"),
    (lambda: Ablate(Z, "resample", over=of_length(7)), InterpError, "at least two prompts; got 1"),
    (lambda: Ablate(Site("mlp_out", 0), "mean", over=of_length(7, 5, 6)), SiteError, "L0.mlp_out was not captured"),
    (lambda: Ablate(Site("attn_pattern", 0), "mean", over=captured("llama")), SiteError, "no common mean"),
]
BASES = [
    (lambda: Swap(RESID, captured("llama"), torch.ones(24, 2).double()), ShapeError, "not orthonormal"),
    (lambda: Swap(RESID, captured("llama"), 2 * torch.eye(24)[:, :2].double()), ShapeError, "not orthonormal"),
    (lambda: Swap(RESID, captured("llama"), torch.eye(6).double()), ShapeError, r"\[6, 6\]; it must be \[24"),
    (lambda: Swap(RESID, captured("llama"), torch.eye(24)[:, 0].double()), ShapeError, r"\[24\]"),
    (lambda: Swap(Z, captured("llama"), torch.eye(24).double()), ShapeError, r"must be \[6"),
    (lambda: Replace(RESID, 0.0, gate=Gate(zeros(6), 0.0)), ShapeError, r"reads \[6\].*must be \[24\]"),
    (lambda: Replace(RESID, 0.0, gate=Gate(zeros(24), math.nan)), ShapeError, "the threshold a number"),
    (lambda: Replace(RESID, 0.0, gate=Gate(with_value(math.nan), 0.0)), ShapeError, "finite"),
    (lambda: Add(RESID, 1.0, units=[0], keep_norm=True), InterpError, "keep_norm, which is about whole states"),
    (lambda: Replace(RESID, 0.0, units=[0], gate=Gate(zeros(24), 0.0)), InterpError, "leave `units` out"),
    (lambda: Add(Site("attn_scores", 1), 1.0, keep_norm=True), SiteError, "span no space"),
    (lambda: Modulate(Site("attn_pattern", 1), Latents(zeros(1, 7), zeros(1, 7))), SiteError, "latents: keys"),
    (lambda: Modulate(RESID, Latents(zeros(2, 24), zeros(2, 6))), ShapeError, r"`write` of its 2 latents is \[2, 6\]"),
    (lambda: Modulate(RESID, Latents(zeros(2, 24), zeros(2, 24), zeros(3))), ShapeError, r"`bias`.*\[3\].*be \[2\]"),
    (lambda: Modulate(RESID, Latents(with_value(math.inf)[None], zeros(1, 24))), ShapeError, "`read`.*NaN or inf"),
    (lambda: Modulate(RESID, Latents(zeros(2, 24), zeros(2, 24)), [1.0]), ShapeError, "1 values of gain for 2 latents"),
    (lambda: Modulate(RESID, Latents(zeros(1, 24), zeros(1, 24)), 1.0, math.inf), ShapeError, "the offset inf holds"),
    (lambda: Swap(RESID, captured("llama"), torch.full((24, 1), math.nan).double()), ShapeError, "basis"),
]


CASES = SITES + PLACES + VALUES + SOURCES + BASES


@pytest.mark.parametrize(("edit", "error", "message"), CASES, ids=[message for _, _, message in CASES])
def test_refused_before_any_forward_pass(edit, error, message, monkeypatch):
    model, prompts, edit = described("llama"), ragged()[0], edit()
    metric = LogProbability(torch.tensor([1, 2, 3]))
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("a forward pass"))
    for attempt in (
        lambda: compile_variants(model, prompts, [[Scale(RESID, 0.5)], [edit]]),
        lambda: run(model, prompts, [edit]),
        lambda: sweep(model, prompts, [[edit]], metric),
        lambda: sweep(model, prompts, [[edit]], metric, exact="naive"),
    ):
        with pytest.raises(error, match=message):
            attempt()
    assert hooks_on(model.network) == 0


def test_values_that_broadcast_are_taken():
    model, prompts = described("llama"), ragged()[0]
    value = torch.randn(3, 2, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = [1, -1]
    for given, expected in (
        (value, value),
        (value[0], value[:1].expand(3, 2, 24)),
        (value[:, :1], value[:, :1].expand(3, 2, 24)),
        (value[0, 0], value[:1, :1].expand(3, 2, 24)),
        (0.25, torch.full((3, 2, 24), 0.25, dtype=torch.float64)),
    ):
        found = run(model, prompts, [Replace(RESID, given, positions=at)], [RESID])[RESID]
        for row, n in enumerate(LENGTHS):
            for slot, position in enumerate((1, n - 1)):
                assert torch.equal(found[row, position], expected[row, slot])


def test_positions_of_each_prompt_and_rows_in_any_order():
    model, prompts = described("llama"), ragged()[0]
    plain = run(model, prompts, (), [RESID])[RESID]
    value = torch.arange(3, dtype=torch.float64)[:, None, None].expand(3, 2, 24)
    at = torch.tensor([[0, 6], [2, -1], [-2, 3]])
    found = run(model, prompts, [Replace(RESID, value, positions=at)], [RESID])[RESID]
    places = {(0, 0), (0, 6), (1, 2), (1, 4), (2, 4), (2, 3)}
    for row, n in enumerate(LENGTHS):
        for p in range(n):
            wanted = torch.full((24,), float(row), dtype=torch.float64) if (row, p) in places else plain[row, p]
            assert torch.equal(found[row, p], wanted)
    found = run(model, prompts, [Replace(RESID, value[:2, :1], positions=at[:, :1], rows=[2, 0])], [RESID])[RESID]
    assert torch.equal(found[2, 4], value[0, 0]) and torch.equal(found[0, 0], value[1, 0])
    assert torch.equal(found[1, :5], plain[1, :5])


def test_variants_share_their_tables_and_keep_their_order():
    model, prompts = described("llama"), ragged()[0]
    source = captured("llama")
    plan = compile_variants(model, prompts, [[Replace(Z, source, positions=p)] for p in range(5)] + [[]])
    (ops,) = plan.sites[Z]
    assert plan.n_variants == 6 and len(ops) == 5 * 3 * 4
    assert ops.table.data_ptr() == source[Z].data_ptr()  # a view of the source, not a copy per edit
    assert sorted(set(ops.variant.tolist())) == [0, 1, 2, 3, 4]
    # What one call can apply is one op, whose waves keep the order; a swap comes between.
    twice = [Scale(RESID, 2.0), Add(RESID, 1.0, positions=[1, 3]), Replace(RESID, 0.0, positions=3)]
    (ops,) = compile_variants(model, prompts, [twice, [Scale(RESID, 3.0)]]).sites[RESID]
    at = (ops.variant == 0) & (ops.example == 1) & (ops.position == 3)
    assert ops.keep[at].tolist() == [2.0, 1.0, 0.0] and ops.wave[at].tolist() == [0, 1, 2]
    assert not ops.wave[ops.variant == 1].any() and len(ops) == 2 * 18 + 3 * 3
    assert ops.select(ops.variant == 0).wave.tolist() == ops.wave[ops.variant == 0].tolist()
    apart = [Scale(RESID, 2.0, positions=0), Add(RESID, 1.0, positions=1)]
    assert [op.wave for op in compile_variants(model, prompts, [apart]).sites[RESID]] == [None]
    between = [Scale(RESID, 2.0), Swap(RESID, source, torch.eye(24, 2).double()), Add(RESID, 1.0), Scale(RESID, 0.5)]
    kinds = compile_variants(model, prompts, [between]).sites[RESID]
    assert [(len(op), op.form.basis is None) for op in kinds] == [(18, True), (18, False), (36, True)]
    # Which edits of a variant share a call depends on its own list alone.
    pair = [Add(RESID, 1.0), Add(RESID, 2.0)]
    other = [Swap(RESID, source, torch.eye(24, 2).double()), Add(RESID, 1.0)]
    for variants in ([pair], [other, pair], [pair, other, other]):
        ops = compile_variants(model, prompts, variants).sites[RESID]
        of_pair = [op.select(op.variant == variants.index(pair)) for op in ops]
        assert [(len(op), int(op.wave.max())) for op in of_pair if len(op)] == [(36, 1)]
