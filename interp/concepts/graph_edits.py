"""Steering through a concept graph: a parent is set, and its children follow; or a child is set alone.

A node is set to a value in units of its typical code: 1 is on as usual, 0 is off. At every place x of its own site (and
step), with direction w and code c there, x ← x + (value · typical − c) w, and nothing else is edited. What the model
computes from x follows by the model itself, not by the graph; `interp.concepts.graph_response` compares the two. What
is set leaves its own parents alone, and what the dictionary does not explain stays as it was.

A node that is *held* keeps, place by place, the code of the unedited run, while its parents are set.

Two forms, which are the same where both exist:

- `graph_edits` needs no inputs: each latent is read as the model runs (`Modulate`), so it acts on any prompt, and on
  new tokens. It serves dictionaries whose latents are on by themselves (`Dictionary.unit`).
- `graph_edits_on` serves every kind, and held nodes, on given inputs: each change is known before it is made (`Add`),
  from a run with the edits of the levels before it. Of a text that is continued it acts on the prompt alone.

Clamping is of what is written. Where a latent does not read exactly along what it writes, or others compete with it,
its code after the edit is near the value and not equal to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.concepts.graph_result import ConceptGraph
from interp.concepts.levels import ConceptLevel, Observed, check_order, observe
from interp.errors import InterpError, nearest
from interp.interventions.edits import Add, Edit, Gate, Latents, Modulate, Positions
from interp.models.denoiser import Denoiser
from interp.models.guidance import Branch
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts

Wanted = list[dict[int, float | None]]
"""Of each level, by column: the code that a node is set to, or `None` where it is held."""


def graph_edits(
    graph: ConceptGraph,
    levels: Sequence[ConceptLevel],
    values: Mapping[str, float],
    *,
    branch: Branch = Branch.COND,
    positions: Positions = None,
    gate: Gate | None = None,
) -> list[Edit]:
    """Edits that set nodes of a graph, for `interp.steer`, `run` and `generate`: one `Modulate` for each level.

    Args:
        graph: of these levels; its typical codes are the units.
        values: by the name of a node (`graph.names`): 1 as on as usual, 0 off.
        branch: of guidance, of a denoiser.
        positions: and `gate`, as of the edits. Without either a prompt's first token is set too, whose state may be
            unlike all others; the graph left it out (`first`).

    Raises:
        InterpError: a graph of other dictionaries; no node, an unknown one, one that is never on, a value that is no
            number; a kind of dictionary whose latents are not on by themselves.
    """
    edits: list[Edit] = []
    for level, own in zip(levels, wanted_codes(graph, levels, values, ()), strict=True):
        if not own:
            continue
        try:
            units = [level.dictionary.unit(level.latents[column], level.bin_) for column in own]
        except InterpError as error:
            raise InterpError(
                f"Level {level.name!r} is of kind {level.dictionary.kind}, whose latents compete, so what to change "
                "follows from the whole state: `graph_edits_on` finds it, on given inputs."
            ) from error
        read, write = (torch.stack([getattr(unit, side) for unit in units]) for side in ("read", "write"))
        bias, threshold = (read.new_tensor([getattr(u, name) for u in units]) for name in ("bias", "threshold"))
        latents = Latents(read.detach(), write.detach(), bias, threshold)
        codes = [float(code or 0.0) for code in own.values()]
        edits.append(Modulate(level.site, latents, 0.0, codes, positions=positions, when=level.when(branch), gate=gate))
    return edits


def graph_edits_on(
    model: LanguageModel | Denoiser,
    inputs: Any,
    graph: ConceptGraph,
    levels: Sequence[ConceptLevel],
    values: Mapping[str, float],
    held: Sequence[str] = (),
    *,
    branch: Branch = Branch.COND,
    first: int = 1,
) -> list[Edit]:
    """Edits that set nodes on these inputs, and hold others: one `Add` for each level that has any.

    Costs one run of the unedited model, and one more for each of these levels but the first.

    Args:
        inputs: prompts, or a sampling of a pipeline. The edits are for them and no others.
        values: as in `graph_edits`.
        held: nodes that stay, at every place, what they are in the unedited run; of levels behind the first that is
            set.
        first: position of a prompt from which on places are set; of pictures, all cells are.

    Raises:
        InterpError: as `graph_edits`; a node that is both set and held, or held where nothing that is set can move it;
            as `check_order` and `observe`.
    """
    wanted = wanted_codes(graph, levels, values, held)
    check_order(model, levels)
    given = model.sampling(inputs) if isinstance(model, Denoiser) else model.prompts(inputs)
    return known_edits(model, observe(model, given, levels, branch, first), levels, wanted, branch, first)


def wanted_codes(
    graph: ConceptGraph, levels: Sequence[ConceptLevel], values: Mapping[str, float], held: Sequence[str]
) -> Wanted:
    """What was asked of each node, in units of codes.

    Raises:
        InterpError: as `graph_edits` and `graph_edits_on`.
    """
    graph.check(levels)
    names, typical = graph.names, graph.data["typical"].values
    if not values:
        raise InterpError("No node is set: give values by name, such as {" + repr(names[0]) + ": 1.0}.")
    if isinstance(held, str):
        raise InterpError(f"held={held!r} would be read letter by letter; write [{held!r}].")
    if unknown := [name for name in (*values, *held) if name not in names]:
        raise InterpError(f"The graph has no node {unknown[0]!r}." + nearest(unknown[0], names))
    if both := [name for name in held if name in values]:
        raise InterpError(f"{both[0]} cannot be set and held; leave it out of one of them.")
    wanted: Wanted = [{} for _ in levels]
    starts, start = {}, 0
    for number, level in enumerate(levels):
        starts |= {names[start + column]: (number, column) for column in range(len(level.latents))}
        start += len(level.latents)
    for name, value in values.items():
        usual = float(typical[names.index(name)])
        if not math.isfinite(value) or math.isnan(usual):
            raise InterpError(
                f"{name} cannot be set to {value}: "
                + ("give a number." if not math.isfinite(value) else "it was on nowhere, so it has no usual strength.")
            )
        number, column = starts[name]
        wanted[number][column] = value * usual
    begin = min(starts[name][0] for name in values)
    for name in held:
        number, column = starts[name]
        if number <= begin:
            raise InterpError(
                f"{name} is held, but nothing that is set can move it: what is set first is of level "
                f"{levels[begin].name!r}. Hold nodes of later levels."
            )
        wanted[number][column] = None
    return wanted


def known_edits(
    model: LanguageModel | Denoiser,
    seen: Observed,
    levels: Sequence[ConceptLevel],
    wanted: Wanted,
    branch: Branch,
    first: int,
) -> list[Edit]:
    """The edits of `graph_edits_on`, from an unedited run: level by level, each from a run with those before it."""
    edits: list[Edit] = []
    for number, (level, own) in enumerate(zip(levels, wanted, strict=True)):
        if not own:
            continue
        now = observe(model, seen.inputs, levels, branch, first, edits) if edits else seen
        columns = list(own)
        codes = seen.codes[number][:, columns].clone()
        for k, code in enumerate(own.values()):
            if code is not None:
                codes[:, k] = code
        change = (codes - now.codes[number][:, columns]) @ level.directions[columns].to(codes)
        edits.append(Add(level.site, _laid_out(seen, change.to(seen.states[number])), when=level.when(branch)))
    return edits


def _laid_out(seen: Observed, change: Float[Tensor, "place width"]) -> Float[Tensor, "example position width"]:
    """Changes of places as a table over all positions; where nothing is changed it is 0."""
    given = seen.inputs
    n_positions = given.ids.shape[1] if isinstance(given, Prompts) else int(seen.position.max()) + 1
    table = change.new_zeros(len(given), n_positions, change.shape[1])
    return table.index_put((seen.example, seen.position), change)
