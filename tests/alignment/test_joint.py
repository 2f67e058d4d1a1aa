"""Interchanges of several variables at once: equal to hooks written by hand, on both ways a model can be run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from models.described import described

from interp.alignment.continuation import FunctionContinuation
from interp.alignment.joint import Aligned, check_aligned, joint_outputs, subsets
from interp.alignment.language import LanguageContinuation, Place
from interp.alignment.maps import LowRank, Subspace, Whole
from interp.alignment.masks import Boundless, UnitMask
from interp.alignment.revnet import RevNet
from interp.alignment.toy import MlpContinuation, VectorMlp
from interp.errors import InterpError
from interp.models.prompts import from_token_lists
from interp.models.site import Site
from interp.tasks.causal_models.equality import vector_interchange
from interp.tasks.interchange import Counterfactual, EncodedInterchange, Instance, InterchangeTask

BASES = [[5, 6, 7, 8, 9, 10], [1, 2, 3, 4], [20, 21, 22, 23, 24]]
SOURCES = [
    [[5, 16, 17, 8, 9], [1, 12, 3, 4, 4], [25, 21, 26, 23]],
    [[9, 9, 7, 8, 30, 10], [7, 2, 3, 4], [20, 2, 22, 11]],
]
EARLY, LATE = [1, 1, 2], [4, 2, 3]
"""Positions of the region `early` and of `late`, alike in bases and sources but for rows that are shorter."""


def encoded() -> EncodedInterchange:
    """Two variables, `one` and `two`, with regions at different positions of base and sources."""
    instance = Instance("x", " x", (), {})
    task = InterchangeTask("by hand", ("one", "two"), (Counterfactual(instance, (instance,) * 2, " x"),) * 3, "")
    sides = [from_token_lists(None, rows) for rows in (BASES, *SOURCES)]
    ends = torch.stack(
        [torch.tensor([EARLY, LATE]).T, torch.tensor([EARLY, [3, 2, 3]]).T, torch.tensor([[0, 1, 1], LATE]).T]
    )
    assert ends.shape == (3, 3, 2)
    ids = torch.tensor([3, 4, 5])
    return EncodedInterchange(task, sides[0], tuple(sides[1:]), ids, torch.stack([ids, ids]) + 1, ids + 2,
                              ("early", "late"), ends)  # fmt: skip


LOW, HIGH = Place(Site("resid_pre", 1), "early"), Place(Site("resid_pre", 2), "late")
SAME = Place(Site("resid_pre", 2), "early")


def by_hand(model, aligned: list[Aligned], exchanged: tuple[str, ...], task: EncodedInterchange) -> torch.Tensor:
    """Logits by hooks on the network: at each place the running state, with blocks of the sources' states put in."""
    out = []
    blocks = model.network.model.layers
    for row in range(len(task)):
        source_states: dict[tuple[str, str], torch.Tensor] = {}
        for v in exchanged:
            i = task.task.variables.index(v)
            prompts = task.sources[i]
            for one in aligned:
                _, at = task.position(one.place.region)
                kept: list[torch.Tensor] = []
                handle = blocks[one.place.site.layer].register_forward_pre_hook(
                    lambda _, args, kept=kept: kept.append(args[0].detach().clone())
                )
                model.network(prompts.ids[row : row + 1, : int(prompts.lengths[row])])
                handle.remove()
                source_states[v, str(one.place)] = kept[0][0, int(at[i][row])]
        handles = []
        for one in aligned:
            base_at, _ = task.position(one.place.region)

            def edit(_, args, one=one, at=int(base_at[row]), source_states=source_states):
                x = args[0].clone()
                state = x[0, at].clone()
                start = 0
                for v, rank in zip(one.variables, one.map.sizes, strict=True):
                    columns = one.map.basis[0][:, start : start + rank].to(x)
                    start += rank
                    if v in exchanged:
                        source = source_states[v, str(one.place)]
                        x[0, at] = x[0, at] + columns @ (columns.T @ (source - state))
                return (x, *args[1:])

            handles.append(blocks[one.place.site.layer].register_forward_pre_hook(edit))
        out.append(model.network(task.base.ids[row : row + 1, : int(task.base.lengths[row])]).logits[0, -1].detach())
        for handle in handles:
            handle.remove()
    return torch.stack(out)


def only(task: EncodedInterchange, exchanged: tuple[str, ...]) -> EncodedInterchange:
    """The same bases with the sources of these variables alone."""
    kept = [task.task.variables.index(v) for v in exchanged]
    examples = tuple(Counterfactual(e.base, tuple(e.sources[i] for i in kept), e.label) for e in task.task)
    named = InterchangeTask("some", exchanged, examples, "")
    return dataclasses.replace(
        task, task=named, sources=tuple(task.sources[i] for i in kept), source_answers=task.source_answers[kept],
        ends=task.ends[[0, *(1 + i for i in kept)]],
    )  # fmt: skip


def at_two_places(width: int) -> list[Aligned]:
    return [Aligned(("two",), HIGH, Subspace.random(width, 3, seed=1).double()),
            Aligned(("one",), LOW, Subspace.random(width, 4, seed=2).double())]  # fmt: skip


def at_one_place(width: int) -> list[Aligned]:
    return [Aligned(("two", "one"), SAME, Subspace.random(width, (3, 2), seed=1).double())]


@pytest.mark.parametrize("way", ["packed", "whole passes"])
@pytest.mark.parametrize("where", [at_two_places, at_one_place])
@pytest.mark.parametrize("exchanged", [("one",), ("two",), ("one", "two")], ids=" + ".join)
def test_a_joint_interchange_equals_hooks_by_hand(exchanged, where, way: str) -> None:
    """In float64, to 1e-9: nothing but the order of sums differs."""
    model, task = described("llama"), encoded()
    if way == "whole passes":
        model = dataclasses.replace(model, not_replayable="a test says so")
    aligned, some = where(model.d_model), only(task, exchanged)
    ready = LanguageContinuation(model, some, [one.place for one in aligned])
    expected = by_hand(model, aligned, exchanged, some)
    found = joint_outputs(aligned, exchanged, ready)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert (found - ready.base_logits).abs().amax(1).min() > 1e-3


def test_an_upper_edit_sees_the_lower_ones_effect() -> None:
    """What is swapped above is the state as the lower swap has left it, not the base's."""
    model, task = described("llama"), encoded()
    low, high = Place(Site("resid_pre", 1), "early"), Place(Site("resid_pre", 2), "early")
    aligned = [Aligned(("one",), low, Subspace.random(model.d_model, 4, seed=2).double()),
               Aligned(("two",), high, Subspace.random(model.d_model, 3, seed=1).double())]  # fmt: skip
    ready = LanguageContinuation(model, task, [low, high])
    nested = joint_outputs(aligned, ("one", "two"), ready)
    torch.testing.assert_close(nested, by_hand(model, aligned, ("one", "two"), task), atol=1e-9, rtol=0)
    blind = ready.outputs_of({1: aligned[1].map.swap(ready.base[1], [ready.sources[1][1]])})
    assert (nested - blind).abs().max() > 1e-3  # what it is if the upper swap starts from the base's state


def test_a_whole_upper_exchange_at_the_last_token_forgets_the_lower() -> None:
    model, task = described("llama"), encoded()
    top = Place(Site("resid_post", 2), "last")
    aligned = [Aligned(("one",), LOW, Subspace.random(model.d_model, 4).double()),
               Aligned(("two",), top, Whole(model.d_model, dtype=torch.double))]  # fmt: skip
    ready = LanguageContinuation(model, task, [LOW, top])
    both = joint_outputs(aligned, ("one", "two"), ready)
    alone = joint_outputs(aligned[1:], ("two",), LanguageContinuation(model, only(task, ("two",)), [top]))
    torch.testing.assert_close(both, alone, atol=1e-9, rtol=0)


def test_nothing_exchanged_is_the_base_run_and_sources_that_are_the_base_change_nothing() -> None:
    model, task = described("llama"), encoded()
    aligned = at_two_places(model.d_model)
    places = [one.place for one in aligned]
    ready = LanguageContinuation(model, task, places)
    assert torch.equal(joint_outputs(aligned, (), ready), ready.base_logits)
    itself = dataclasses.replace(task, sources=(task.base, task.base), ends=task.ends[:1].expand(3, -1, -1))
    still = joint_outputs(aligned, ("one", "two"), LanguageContinuation(model, itself, places))
    torch.testing.assert_close(still, ready.base_logits, atol=1e-9, rtol=0)


def test_small_budgets_change_nothing() -> None:
    model, task = described("llama"), encoded()
    aligned = at_two_places(model.d_model)
    places = [one.place for one in aligned]
    whole, parts = (LanguageContinuation(model, task, places, budget=budget) for budget in (None, 1))
    torch.testing.assert_close(
        joint_outputs(aligned, ("one", "two"), whole), joint_outputs(aligned, ("one", "two"), parts), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("exchanged", [("left",), ("right",), ("left", "right")], ids=" + ".join)
def test_layers_of_a_perceptron_written_out(exchanged: tuple[str, ...]) -> None:
    networks = VectorMlp(16, seeds=(0, 1)).requires_grad_(False)
    examples = vector_interchange("equality", 200).exchanging(exchanged)
    maps = Subspace.random(16, 5, seed=1), Subspace.random(16, 6, seed=2)
    aligned = [Aligned(("right",), 5, maps[1]), Aligned(("left",), 3, maps[0])]  # layers 3 and 1 of the second network
    found = joint_outputs(aligned, exchanged, MlpContinuation(networks, examples))

    def layer(i: int, h: torch.Tensor) -> torch.Tensor:
        return torch.clamp(h @ networks.weights[i][1].mT + networks.biases[i][1], min=0)

    h, sources = layer(0, examples.base), {v: layer(0, s) for v, s in zip(exchanged, examples.sources, strict=True)}
    for i, (variable, made) in enumerate((("left", maps[0]), (None, None), ("right", maps[1]))):
        if i:
            h, sources = layer(i, h), {v: layer(i, s) for v, s in sources.items()}
        if variable in exchanged:
            basis = made.basis[0]
            h = h + (sources[variable] - h) @ basis @ basis.mT
    expected = h @ networks.weights[3][1].mT + networks.biases[3][1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_one_place_of_any_function_takes_every_kind_of_map() -> None:
    generator = torch.Generator().manual_seed(0)
    base, one, two = (torch.randn(7, 8, generator=generator) for _ in range(3))
    for made in (
        LowRank(8, (2, 3)),
        RevNet(8, (2, 3), blocks=2, hidden=4),
        UnitMask(8, 2).eval(),
        Boundless(8, 2).eval(),
    ):
        aligned = [Aligned(("a", "b"), 0, made.requires_grad_(False))]
        found = joint_outputs(aligned, ("a", "b"), FunctionContinuation(base, (one, two), torch.sin))
        torch.testing.assert_close(found, made.swap(base, [one, two]).sin())
        alone = joint_outputs(aligned, ("b",), FunctionContinuation(base, (two,), torch.sin))
        torch.testing.assert_close(alone, made.swap(base, [base, two]).sin(), atol=1e-6, rtol=0)


def test_subsets_come_from_small_to_large() -> None:
    assert list(subsets("abc")) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]


def test_sizes_of_blocks_are_those_of_the_map_as_evaluated() -> None:
    made = Boundless(12, 2).eval()
    assert made.sizes == tuple(int(n) for n in made.masks[0].sum(-1)) == (3, 3)
    assert Aligned(("a", "b"), 0, made).random(0).map.sizes == (3, 3)
    assert Whole(5).sizes == (5,) and UnitMask(6, 2).eval().sizes == (0, 0)


def test_refusals() -> None:
    base = torch.zeros(3, 8)
    ready = FunctionContinuation(base, (base, base), torch.sin)
    some = Subspace.random(8, 2)
    with pytest.raises(InterpError, match="2 cells"):
        Aligned(("a",), 0, Subspace.random(8, 2, cells=2))
    with pytest.raises(InterpError, match="blocks for 1"):
        Aligned(("a", "b"), 0, some)
    with pytest.raises(InterpError, match="at least one variable"):
        check_aligned([])
    with pytest.raises(InterpError, match="'a' is aligned twice"):
        check_aligned([Aligned(("a",), 0, some), Aligned(("a",), 1, some)])
    with pytest.raises(InterpError, match="a and b have maps of their own at the same place"):
        check_aligned([Aligned(("a",), 0, some), Aligned(("b",), 0, some)])
    with pytest.raises(InterpError, match="'c' is not aligned"):
        joint_outputs([Aligned(("a",), 0, some)], ("c",), ready)
    with pytest.raises(InterpError, match="with 2 sources"):
        joint_outputs([Aligned(("a",), 0, some)], ("a",), ready)
    with pytest.raises(InterpError, match="no place 1"):
        joint_outputs([Aligned(("a",), 1, some)], ("a",), FunctionContinuation(base, (base,), torch.sin))
    with pytest.raises(InterpError, match="one place's state at a time"):
        ready.state(0, {1: base})
    with pytest.raises(InterpError, match="one place's state at a time"):
        ready.outputs_of({0: base, 1: base})
    networks = VectorMlp(16, seeds=(0, 1)).requires_grad_(False)
    side_by_side = MlpContinuation(networks, vector_interchange("equality", 5))
    with pytest.raises(InterpError, match="different networks"):
        side_by_side.outputs_of({0: side_by_side.base[0], 3: side_by_side.base[3]})
    with pytest.raises(InterpError, match="no base run in common"):
        side_by_side.outputs_of({})
    with pytest.raises(InterpError, match="none of the places"):
        LanguageContinuation(described("llama"), encoded(), [LOW]).place(HIGH)
