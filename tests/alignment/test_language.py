"""A language model's continuation: equal to hooks written by hand, and nothing runs that a map cannot change."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from models.described import described
from models.tiny import tiny

from interp.alignment.fit import Cells, Training, answers, fit
from interp.alignment.language import LanguageContinuation, Place
from interp.alignment.maps import LowRank
from interp.errors import InterpError, PairError, SiteError
from interp.interventions.edits import Replace
from interp.interventions.run import run
from interp.models.load import describe
from interp.models.prompts import from_token_lists
from interp.models.site import Site
from interp.tasks.interchange import Counterfactual, EncodedInterchange, Instance, InterchangeTask

BASES = [[5, 6, 7, 8, 9, 10], [1, 2, 3, 4], [20, 21, 22, 23, 24], [30, 31, 32, 33, 34, 35]]
SOURCES = [[5, 6, 17, 8, 9], [1, 12, 3, 4], [20, 21, 22, 23, 24], [36, 31, 32, 33, 38, 35]]
BASE_AT, SOURCE_AT = [2, 1, 2, 4], [2, 1, 2, 4]


def encoded(variables: int = 1) -> EncodedInterchange:
    """Four examples by token ids; the third's source is its base. The region `middle` is at `BASE_AT`."""
    instance = Instance("x", " x", (), {})
    names = ("one", "two")[:variables]
    example = Counterfactual(instance, (instance,) * variables, " x")
    task = InterchangeTask("by hand", names, (example,) * 4, "")
    sides = [from_token_lists(None, rows) for rows in (BASES, SOURCES, [row[::-1] for row in SOURCES])]
    ends = torch.tensor([[[p] for p in at] for at in (BASE_AT, SOURCE_AT, SOURCE_AT)])
    ids = torch.tensor([3, 4, 5, 6])
    return EncodedInterchange(task, sides[0], tuple(sides[1 : 1 + variables]), ids, ids.repeat(variables, 1) + 1, ids + 2,
                              ("middle",), ends[: 1 + variables])  # fmt: skip


PLACES = [Place(Site("resid_pre", 1), "middle"), Place(Site("resid_pre", 2), "last"), Place(Site("mlp_out", 0), "last")]


def by_hand(model, place: Place, columns: torch.Tensor, task: EncodedInterchange) -> torch.Tensor:
    """Logits of a low-rank interchange, by a hook on the network that knows nothing of this package."""
    q, r = torch.linalg.qr(columns)
    q = q * r.diagonal().sign()
    block = model.network.model.layers[place.site.layer]
    module, before = (block, True) if place.site.part == "resid_pre" else (block.mlp, False)
    (base_at, (source_at,)) = task.position(place.region)
    out = []
    for row in range(len(task)):
        base, source = (side.ids[row : row + 1, : int(side.lengths[row])] for side in (task.base, task.sources[0]))
        kept: list[torch.Tensor] = []

        def edit(x: torch.Tensor, row: int = row, kept: list = kept) -> torch.Tensor:
            if not kept:
                kept.append(x[0, source_at[row]].detach())
                return x
            x = x.clone()
            at = int(base_at[row])
            x[0, at] = x[0, at] + ((kept[0] - x[0, at]) @ q) @ q.T
            return x

        if before:
            handle = module.register_forward_pre_hook(lambda _, args, edit=edit: (edit(args[0]), *args[1:]))
        else:
            handle = module.register_forward_hook(lambda _, __, out, edit=edit: edit(out))
        model.network(source)
        out.append(model.network(base).logits[0, -1])
        handle.remove()
    return torch.stack(out)


@pytest.mark.parametrize("way", ["packed", "whole passes"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_low_rank_step_equals_hooks_by_hand(place: Place, way: str) -> None:
    model, task = described("llama"), encoded()
    if way == "whole passes":
        model = dataclasses.replace(model, not_replayable="a test says so")
    ready = LanguageContinuation(model, task, PLACES)
    maps = LowRank(model.d_model, 3).double()
    number = PLACES.index(place)
    cells = Cells(maps, torch.tensor([number]), torch.zeros(1, dtype=torch.long), ("cell",))
    rows = torch.arange(4)
    logits = ready.outputs(cells.swapped(ready, rows)[0], torch.full_like(rows, number), rows)
    columns = maps.columns.detach()[0].clone().requires_grad_()
    plain = by_hand(model, place, columns, task)
    torch.testing.assert_close(logits, plain, atol=1e-9, rtol=0)
    (own,) = torch.autograd.grad(F.cross_entropy(logits, task.label), maps.columns)
    (expected,) = torch.autograd.grad(F.cross_entropy(plain, task.label), columns)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(own[0], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize(("part", "head"), [("resid_post", None), ("z", 1), ("attn_out", None)])
def test_a_whole_exchange_equals_a_patch(family: str, part: str, head: int | None) -> None:
    model, task = described(family), encoded()
    site = Site(part, 1, head)
    ready = LanguageContinuation(model, task, [Place(site, "middle"), Place(site, "last")])
    source = run(model, task.sources[0], (), [site])[site]
    for number, region in enumerate(("middle", "last")):
        (base_at, (source_at,)) = task.position(region)
        value = source[torch.arange(4), source_at]
        torch.testing.assert_close(ready.sources[0][number], value, atol=1e-5 if family == "gemma2" else 1e-9, rtol=0)
        plain = run(model, task.base, [Replace(site, value[:, None], positions=base_at[:, None])])
        rows = torch.arange(4)
        ours = ready.outputs(ready.sources[0][number], torch.full_like(rows, number), rows)
        plain = plain.logits[rows, task.base.lengths - 1]
        torch.testing.assert_close(ours, plain, atol=1e-5 if family == "gemma2" else 1e-9, rtol=0)


def test_several_sources_each_with_its_own_positions() -> None:
    model, task = described("llama"), encoded(2)
    ready = LanguageContinuation(model, task, PLACES[:1])
    assert len(ready.sources) == 2
    other = run(model, task.sources[1], (), [PLACES[0].site])[PLACES[0].site]
    torch.testing.assert_close(ready.sources[1][0], other[torch.arange(4), torch.tensor(SOURCE_AT)], atol=1e-9, rtol=0)


def test_small_budgets_change_nothing() -> None:
    model, task = described("llama"), encoded()
    whole, parts = LanguageContinuation(model, task, PLACES), LanguageContinuation(model, task, PLACES, budget=1)
    for one, other in ((whole.base, parts.base), (whole.sources[0], parts.sources[0])):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    rows = torch.arange(4).repeat(3)
    place = torch.arange(3).repeat_interleave(4)
    assert len(whole.parts(place, rows)) == 1 and len(parts.parts(place, rows)) == 12
    values = whole.sources[0].flatten(0, 1)
    torch.testing.assert_close(
        torch.cat([parts.outputs(values[p], place[p], rows[p]) for p in parts.parts(place, rows)]),
        whole.outputs(values, place, rows), atol=1e-12, rtol=0,
    )  # fmt: skip


def test_equal_states_are_known_to_be_equal() -> None:
    ready = LanguageContinuation(described("llama"), encoded(), PLACES)
    assert ready.differs.tolist() == [[True, True, False, True]] * 3
    early = LanguageContinuation(described("llama"), encoded(), [Place(Site("resid_pre", 0), "last")])
    assert early.differs.tolist() == [[True, False, False, False]]  # the same last token, but at another position


def test_only_what_a_map_can_change_runs() -> None:
    """No layer below the site, no token before the position; base and sources once."""
    model = describe(tiny("llama"), None, "tiny")
    ran: list[tuple[str, int]] = []
    handles = [model.embed.register_forward_hook(lambda *_: ran.append(("embed", 0)))]
    for number, layer in enumerate(model.layers):
        note = lambda _, args, __, n=number: ran.append((f"mlp {n}", args[0].shape[:-1].numel()))  # noqa: E731
        handles.append(layer.mlp.register_forward_hook(note))
        note = lambda _, args, __, n=number: ran.append((f"k {n}", args[0].shape[:-1].numel()))  # noqa: E731
        handles.append(layer.k.register_forward_hook(note))
    task = encoded()
    ready = LanguageContinuation(model, task, [Place(Site("resid_pre", 1), "middle")])
    assert ran.count(("embed", 0)) == 1  # base and source, in one pass
    cells = Cells(LowRank(model.d_model, 2).double(), torch.tensor([0]), torch.tensor([0]), ("cell",))
    ran.clear()
    fit([cells], ready, task.label[None], Training(steps=3, batch=4))
    answers(cells, ready)
    # Rows 0, 1 and 3 differ; from their positions on they have 4, 3 and 2 tokens. Of the last layer's MLP one is read.
    live = sum(len(BASES[row]) - BASE_AT[row] for row in (0, 1, 3))
    assert ran == [("k 1", live), ("mlp 1", live), ("k 2", live), ("mlp 2", 3)] * 4
    for handle in handles:
        handle.remove()


def test_refusals() -> None:
    model, task = described("llama"), encoded()
    with pytest.raises(InterpError, match="no place"):
        LanguageContinuation(model, task, [])
    with pytest.raises(InterpError, match="name a head"):
        LanguageContinuation(model, task, [Place(Site("z", 1), "last")])
    with pytest.raises(InterpError, match="one width"):
        LanguageContinuation(model, task, [Place(Site("mlp_act", 1), "last"), Place(Site("mlp_out", 1), "last")])
    with pytest.raises(SiteError, match="layers"):
        LanguageContinuation(model, task, [Place(Site("resid_pre", 9), "last")])
    with pytest.raises(PairError, match="no region"):
        LanguageContinuation(model, task, [Place(Site("resid_pre", 1), "nowhere")])
