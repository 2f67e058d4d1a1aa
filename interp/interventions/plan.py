"""From lists of edits to arrays: the form in which edits are checked, skipped, batched and applied.

A *variant* is a list of edits. `compile_variants` turns many variants into a few `Ops`: per site, flat
arrays of (variant, example, position, group) with an operand each, so that any subset of the
(variant, example) pairs can be applied in one vectorised call, whatever rows they occupy. Everything a
user can get wrong is found here, before a forward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InterpError, ShapeError, SiteError
from interp.interventions.captured import DenoisingRun, Run
from interp.interventions.edits import (
    Ablate,
    Add,
    Edit,
    Gate,
    Knockout,
    Latents,
    LiveRow,
    Modulate,
    Positions,
    Replace,
    Scale,
    Swap,
    UnderPrompt,
    Value,
)
from interp.kernels.apply_edits import apply_edits
from interp.kernels.edit_latents import edit_latents
from interp.kernels.kept import where_open, with_norm_of
from interp.kernels.path import Path, in_one_piece, path_on
from interp.kernels.swap_subspace import swap_subspace
from interp.models.denoiser import Denoiser
from interp.models.hooks import refuse_held
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import ATTENTION_PARTS, Site

Index = np.ndarray
"""A flat array of int64."""


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What distinguishes operations, beside their numbers: edits of one form can be applied in one call.

    Attributes:
        by_unit: whether single numbers are edited, and not whole states.
        live: whether operands are what another row has.
        basis: of a swap; `latents`: of a modulation; neither: `keep · x + operand`.
        gate, keep_norm: as of the edits.
    """

    by_unit: bool = False
    live: bool = False
    basis: Tensor | None = None
    latents: Latents | None = None
    gate: Gate | None = None
    keep_norm: bool = False

    @property
    def affine(self) -> bool:
        """Whether this is `keep · x + operand` and nothing else."""
        return self.basis is None and self.latents is None and self.gate is None and not self.keep_norm

    @property
    def key(self) -> tuple:
        """Equal where two edits have the same form: the same tensors, not equal ones."""
        return self.by_unit, self.live, id(self.basis), id(self.latents), id(self.gate), self.keep_norm


@dataclass(frozen=True, slots=True, eq=False)
class Ops:
    """Edits of one site that can be applied together: all of one form.

    `group` is the head (0 for a part without heads); with `by_unit`, the flat index on (head, width), and
    operands are single numbers. In `live` ops `operand` is the number of a `LiveRow`, still without a table. With
    `latents` operands are their gains, then their offsets. `wave` says how many edits of a place come before one;
    `None`: all places are distinct.
    """

    site: Site
    form: Form
    variant: Index
    example: Index
    position: Index
    group: Index
    keep: np.ndarray
    operand: Index
    table: Tensor
    wave: Index | None = None

    def __len__(self) -> int:
        return len(self.variant)

    @property
    def live(self) -> bool:
        """Whether operands are what another row has at the same place."""
        return self.form.live

    @property
    def by_unit(self) -> bool:
        """Whether single numbers are edited."""
        return self.form.by_unit

    @property
    def affine(self) -> bool:
        """As of the form."""
        return self.form.affine

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What is said of each edit, by name."""
        names = ("variant", "example", "position", "group", "keep", "operand", "wave")
        return {name: column for name in names if (column := getattr(self, name)) is not None}

    def select(self, chosen: np.ndarray) -> Ops:
        """The edits at these indices (or where a mask is true)."""
        return replace(self, **{name: column[chosen] for name, column in self.columns.items()})

    def tiled(self, n: int) -> Ops:
        """The edits n times, one after the other."""
        return replace(self, **{name: np.tile(column, n) for name, column in self.columns.items()})

    def way(self, device: torch.device, dtype: torch.dtype) -> tuple[str, Path]:
        """The operation of `interp.kernels` by which `apply` edits states of this type, and which way it goes there."""
        if (latents := self.form.latents) is not None:
            dtypes = [dtype, self.table.dtype, *(part.dtype for part in _parts(latents))]
            return "edit_latents", path_on("edit_latents", device, dtypes, n_latents=len(latents))
        dtypes, one_piece = [dtype, self.table.dtype], in_one_piece(self.table)
        if (basis := self.form.basis) is not None:
            rank = basis.shape[1]
            return "swap_subspace", path_on("swap_subspace", device, dtypes, one_piece=one_piece, rank=rank)
        return "apply_edits", path_on("apply_edits", device, dtypes, one_piece=one_piece)

    def apply(self, x: Tensor, token: Index, *, owned: bool = False) -> Tensor:
        """`x` [token, head, width] (or [token, width]) after the edits, each at its `token`.

        Args:
            owned: whether `x` may be written into, as in `apply_edits`.
        """
        form, shape = self.form, x.shape
        flat = x.reshape(shape[0], -1, 1) if form.by_unit else x.reshape(shape[0], -1, shape[-1])
        # Indices stay on the host: the kernels sort them there, the PyTorch calls move them.
        at, group, row = (torch.from_numpy(array) for array in (token, self.group, self.operand))
        edited = self._operated(flat, at, group, row, owned and not form.keep_norm and form.gate is None)
        if form.keep_norm:
            edited = with_norm_of(flat, edited, at, group)
        if form.gate is not None:
            edited = where_open(flat, edited, at, group, form.gate.read.to(x.device), form.gate.threshold)
        return edited.view(shape)

    def _operated(self, x: Tensor, at: Tensor, group: Tensor, row: Tensor, owned: bool) -> Tensor:
        form = self.form
        if form.latents is not None:
            read, write, bias, threshold = (part.to(x.device) for part in _parts(form.latents))
            gain, offset = self.table[row.to(self.table.device)].to(x.device).tensor_split(2, -1)
            return edit_latents(x, at, group, read, write, bias, threshold, gain, offset, owned)
        # Attention rows end with the last live key; what an operand says about later keys is moot.
        table = self.table[:, : x.shape[-1]]
        if form.basis is not None:
            return swap_subspace(
                x,
                at,
                group,
                table,
                form.basis.to(x.device, torch.promote_types(x.dtype, torch.float32)),
                row,
                owned=owned,
            )
        keep, wave = torch.from_numpy(self.keep), None if self.wave is None else torch.from_numpy(self.wave)
        return apply_edits(x, at, group, keep, table, row, wave, owned)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Compiled variants: the ops of every site, in the order in which they act."""

    prompts: Prompts
    n_variants: int
    sites: dict[Site, tuple[Ops, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class KeyAxis:
    """What key positions of attention edits mean: tokens of `prompts`, then of the `new` ones that follow each."""

    prompts: Prompts
    new: int = 0

    @property
    def width(self) -> int:
        """Keys of the longest prompt, new ones included."""
        return self.prompts.ids.shape[1] + self.new


def compile_variants(
    model: LanguageModel | Denoiser,
    prompts: Prompts,
    variants: Sequence[Sequence[Edit]],
    *,
    keys: KeyAxis | None = None,
) -> Plan:
    """The plan of many variants, each applied to every prompt.

    Args:
        prompts: the rows, with as many tokens as a row has positions at the edited sites: for a denoiser, cells.
        keys: of attention edits, where they are not just the tokens of `prompts` (`generate`).

    Raises:
        SiteError: a part, layer or head that the model does not have or cannot serve.
        InterpError: a position or row outside the prompts; a query left without any key; a network that a block around
            the call steers.
        ShapeError: a value that does not fit its site, or is not finite.
    """
    refuse_held(model.network)
    gathered: dict[tuple, _Gathered] = {}
    checks = _Checks()
    keys = keys or KeyAxis(prompts)
    for variant, edits in enumerate(variants):
        # How many calls come before, at each site, and of which kind the last one is. Edits of a variant share a call
        # as its own list has it, whatever other variants do: roundings in half precision must not depend on them.
        stage: dict[Site, tuple[int, tuple]] = {}
        for edit in edits:
            parts = _resolve(model, prompts, edit, keys, checks)
            number, before = stage.get(parts.site, (-1, ()))
            if parts.kind != before or not parts.form.affine or parts.form.live:
                number += 1
            stage[parts.site] = number, parts.kind
            key = (parts.site, number, parts.kind)
            if key not in gathered:
                gathered[key] = _Gathered(parts.form)
            gathered[key].add(variant, parts)
    sites: dict[Site, list[Ops]] = defaultdict(list)
    for (site, _, _), ops in sorted(gathered.items(), key=lambda item: item[0][1]):
        sites[site].append(ops.build(site))
    return Plan(prompts, len(variants), {site: tuple(ops) for site, ops in sites.items()})


@dataclass(slots=True, eq=False)
class _Resolved:
    """One edit as flat arrays."""

    site: Site
    example: Index
    position: Index
    group: Index
    keep: float
    operand: Index
    table: Tensor
    form: Form = Form()

    @property
    def kind(self) -> tuple:
        """Equal where two edits can be applied by one call: of one form, with rows of one kind as operands."""
        return self.form.key, self.table.shape[-1], self.table.dtype


@dataclass(slots=True, eq=False)
class _Gathered:
    form: Form
    columns: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    tables: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    size: int = 0

    def add(self, variant: int, parts: _Resolved) -> None:
        if id(parts.table) not in self.tables:
            self.tables[id(parts.table)] = (self.size, parts.table)
            self.size += len(parts.table)
        start = self.tables[id(parts.table)][0]
        n = len(parts.example)
        self.columns["variant"].append(np.full(n, variant))
        self.columns["example"].append(parts.example)
        self.columns["position"].append(parts.position)
        self.columns["group"].append(parts.group)
        self.columns["keep"].append(np.full(n, parts.keep))
        self.columns["operand"].append(parts.operand + start)

    def build(self, site: Site) -> Ops:
        tables = [table for _, table in self.tables.values()]
        columns = {name: np.concatenate(arrays) for name, arrays in self.columns.items()}
        table = tables[0] if len(tables) == 1 else torch.cat(tables)
        return Ops(site, self.form, table=table, wave=_waves(columns), **columns)


def _waves(columns: Mapping[str, np.ndarray]) -> Index | None:
    """Of each edit, how many of the list come before it at its place; `None`: none of any."""
    place = np.stack([columns[name] for name in ("variant", "example", "position", "group")])
    order = np.lexsort(place)  # stable: of one place, in list order
    new = (np.diff(place[:, order], axis=1, prepend=-1) != 0).any(0)
    if new.all():
        return None
    begin = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    wave = np.empty(len(order), dtype=np.int64)
    wave[order] = np.arange(len(order)) - begin
    return wave


class _Checks:
    """Values already converted and found finite, so that a source shared by a thousand edits is looked at once."""

    def __init__(self) -> None:
        self._tables: dict[tuple, tuple[object, Tensor]] = {}
        self._sources: dict[int, Run] = {}
        self._places: dict[int | None, tuple[Index, Index, Index, int]] = {}

    def places(self, prompts: Prompts, positions: Positions, rows: Sequence[int] | None, site: Site):
        """`_places`, looked up for the positions that most edits of a sweep share."""
        if rows is not None or not (positions is None or isinstance(positions, int)):
            return _places(prompts, positions, rows, site)
        if positions not in self._places:
            self._places[positions] = _places(prompts, positions, rows, site)
        return self._places[positions]

    def source(self, prompts: Prompts, source: Run, site: Site) -> None:
        """`_check_source`, once per run."""
        if id(source) not in self._sources:
            _check_source(prompts, source, site)
            self._sources[id(source)] = source

    def table(self, value: object, key: tuple, make: Callable[[], Tensor], site: Site) -> Tensor:
        key = (id(value), *key)
        if key not in self._tables:
            table = make()
            # -inf is a legal attention score, and only there.
            scores = site.part.endswith("_scores")
            bad = torch.isnan(table).any() if scores else not torch.isfinite(table).all()
            if bad:
                raise ShapeError(f"The value of the edit at {site} holds NaN or infinite numbers.")
            self._tables[key] = (value, table)  # holding the value keeps its id from being reused
        return self._tables[key][1]


def _resolve(
    model: LanguageModel | Denoiser, prompts: Prompts, edit: Edit, keys: KeyAxis, checks: _Checks
) -> _Resolved:
    site = model.check(edit.site)
    if isinstance(edit, Knockout):
        return _resolve_knockout(model, prompts, edit, keys)
    for name in ("value", "source", "over"):  # `Denoising` has put this pass's values in their place
        if isinstance(held := getattr(edit, name, None), UnderPrompt | DenoisingRun):
            raise InterpError(f"The edit at {site} takes its value from {held!r}, but {model.name} runs no denoising.")
    example, position, slot, n_slots = checks.places(prompts, edit.positions, edit.rows, site)
    heads = model.heads_of(site) or 1
    chosen = np.arange(heads) if site.head is None else np.array([site.head])
    units = getattr(edit, "units", None)
    match edit:
        case Replace(value=value):
            keep = 0.0
        case Add(value=value):
            keep = 1.0
            value = _scaled(value, _finite(edit.scale, site), site)
        case Scale(factor=factor):
            value, keep = 0.0, _finite(factor, site)
        case Ablate():
            value, keep = _ablation(prompts, edit, site), 0.0
        case Swap(source=value):
            keep = 0.0
        case Modulate():
            value, keep = 0.0, 0.0
    width = keys.width if site.part in ATTENTION_PARTS else cast(int, model.width_of(site))
    form = _form(model, site, edit, width, isinstance(value, LiveRow))
    table, row_stride, slot_stride, head_stride, by_place = _table(
        model, prompts, site, value, edit, width, n_slots, checks
    )
    if isinstance(value, LiveRow):
        start = np.full(len(example), value.number)
    elif by_place:  # a run: indexed by (row, position) of the source
        start = example * row_stride + position * slot_stride
    else:
        rows = np.arange(len(prompts)) if edit.rows is None else np.asarray(edit.rows)
        row_rank = np.searchsorted(rows, example, sorter=np.argsort(rows))
        start = np.argsort(rows)[row_rank] * row_stride + slot * slot_stride
    if len(chosen) > 1:
        group = np.tile(chosen, len(example))
        example, position, start = (np.repeat(x, len(chosen)) for x in (example, position, start))
    else:
        group = np.full(len(example), chosen[0])
    operand = start + group * head_stride  # a live row has no strides
    if isinstance(edit, Modulate):
        operand, table = np.zeros_like(operand), _gains(edit, site, table)
    resolved = _Resolved(site.all_heads, example, position, group, keep, operand, table, form)
    return resolved if units is None else _by_unit(model, resolved, np.asarray(units), width, value, checks)


def _places(
    prompts: Prompts, positions: Positions, rows: Sequence[int] | None, site: Site | str, beyond: int = 0
) -> tuple[Index, Index, Index, int]:
    """(example, position, slot) of every place an edit touches; `slot` is the column of its own positions.

    Positions may go `beyond` a prompt's end by so many tokens.
    """
    lengths = prompts.lengths.cpu().numpy()
    chosen = np.arange(len(lengths)) if rows is None else np.asarray(rows, dtype=np.int64)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(lengths)):
        raise InterpError(
            f"Edit at {site}: rows {chosen.tolist()} of a batch of {len(lengths)} prompts (0 to {len(lengths) - 1})."
        )
    if len(set(chosen.tolist())) < len(chosen):
        raise InterpError(f"Edit at {site}: rows {chosen.tolist()} name one row twice.")
    lengths = lengths[chosen]
    if positions is None:
        width = int(prompts.lengths.max())
        grid = np.broadcast_to(np.arange(width), (len(chosen), width))
        row, slot = np.nonzero(grid < lengths[:, None])
        return chosen[row], slot, slot, width
    asked = np.asarray(positions.cpu() if isinstance(positions, Tensor) else positions, dtype=np.int64)
    if asked.ndim == 2 and len(asked) == len(prompts) and rows is not None:
        asked = asked[chosen]
    grid = np.broadcast_to(np.atleast_1d(asked), (len(chosen), asked.shape[-1] if asked.ndim else 1))
    outside = (grid >= lengths[:, None] + beyond) | (grid < -lengths[:, None])
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        length, new = int(lengths[row]), f" and {beyond} new ones" if beyond else ""
        raise InterpError(
            f"Edit at {site}: position {grid[row, column]} is outside prompt {chosen[row]}, which has {length} tokens"
            f"{new} (0 to {length + beyond - 1}, or -{length} to -1)."
        )
    grid = np.where(grid < 0, grid + lengths[:, None], grid)
    if any(len(set(row)) < len(row) for row in grid.tolist()):
        raise InterpError(f"Edit at {site}: positions {grid.tolist()} name one place twice.")
    slot = np.tile(np.arange(grid.shape[1]), len(chosen))
    return np.repeat(chosen, grid.shape[1]), grid.reshape(-1), slot, grid.shape[1]


def position_grid(prompts: Prompts, positions: Positions) -> Int[Tensor, "batch n"]:
    """Positions as one row per prompt, none negative.

    Raises:
        InterpError: a position outside a prompt, or named twice.
    """
    _, position, _, n = _places(prompts, positions, None, "capture")
    return torch.from_numpy(position).view(len(prompts), n).to(prompts.ids.device)


def _table(
    model: LanguageModel | Denoiser,
    prompts: Prompts,
    site: Site,
    value: Value,
    edit: Edit,
    width: int,
    n_slots: int,
    checks: _Checks,
) -> tuple[Tensor, int, int, int, bool]:
    """(operands [n, width], row stride, slot stride, head stride or 0, indexed by source place?)."""
    heads = model.heads_of(site)
    attention = site.part in ATTENTION_PARTS
    if isinstance(value, Run):
        source = value[site.all_heads]
        checks.source(prompts, value, site)
        table = checks.table(source, (), lambda: source.reshape(-1, source.shape[-1]), site)
        if attention:  # [batch head query key]
            rows = 0 if len(source) == 1 else source.shape[1] * source.shape[2]
            return table, rows, 1, source.shape[2], True
        rows = 0 if len(source) == 1 else source.shape[1] * (heads or 1)
        return table, rows, heads or 1, 1 if heads else 0, True
    if isinstance(value, Tensor):
        tail = (heads, width) if heads and site.head is None else (width,)
        if (units := getattr(edit, "units", None)) is not None:
            tail = (*tail[:-1], len(units))
        n_rows = len(prompts) if edit.rows is None else len(edit.rows)
        lead = tuple(value.shape[: value.ndim - len(tail)])
        fits = tuple(value.shape[value.ndim - len(tail) :]) == tail and len(lead) <= 2
        lead = (1,) * (2 - len(lead)) + lead
        if not (fits and lead[0] in (1, n_rows) and lead[1] in (1, n_slots)):
            raise ShapeError(
                f"The value of the {type(edit).__name__} at {site} has shape {list(value.shape)}; it must broadcast "
                f"to [row={n_rows}, position={n_slots}, {', '.join(map(str, tail))}]."
            )
        table = checks.table(value, tail, lambda: value.reshape(-1, tail[-1]), site)
        per = tail[0] if len(tail) == 2 else 1
        return (
            table,
            0 if lead[0] == 1 else lead[1] * per,
            0 if lead[1] == 1 else per,
            1 if len(tail) == 2 else 0,
            False,
        )
    number = value if isinstance(value, int | float) else 0.0  # a live row's place holder
    table = checks.table(
        None, (width, number), lambda: torch.full((1, width), number, dtype=model.dtype, device=model.device), site
    )
    return table, 0, 0, 0, False


def _check_source(prompts: Prompts, source: Run, site: Site) -> None:
    if source.positions is not None:
        raise ShapeError(
            f"The source run at {site} kept only some positions; capture all of them, or give the tensor that is meant."
        )
    theirs = source.prompts.lengths
    if len(theirs) not in (1, len(prompts)):
        raise ShapeError(
            f"The source run at {site} has {len(theirs)} prompts, the base {len(prompts)}; give as many, or one."
        )
    if not torch.equal(theirs.expand(len(prompts)), prompts.lengths):
        row = int((theirs.expand(len(prompts)) != prompts.lengths).nonzero()[0])
        raise ShapeError(
            f"The source run at {site} and the base differ in length at prompt {row}: "
            f"{source.prompts.tokens[row if len(theirs) > 1 else 0]} against {prompts.tokens[row]}. Positions would "
            "not correspond: give prompts of equal token length, or a tensor of values."
        )


def _finite(number: float, site: Site) -> float:
    if not np.isfinite(number):
        raise ShapeError(f"The edit at {site} scales by {number}; the factor must be finite, not NaN or infinite.")
    return float(number)


def _scaled(value: Value, scale: float, site: Site) -> Value:
    if scale == 1.0:
        return value
    if isinstance(value, LiveRow):
        raise InterpError(f"The edit at {site} scales by {scale} what another prompt would have; only 1 is served.")
    if isinstance(value, Run):
        return replace(value, activations={site.all_heads: scale * value[site.all_heads]})
    return scale * cast(Tensor, value)


def _ablation(base: Prompts, edit: Ablate, site: Site) -> Value:
    if edit.kind == "zero":
        return 0.0
    if edit.kind not in ("mean", "resample"):
        raise InterpError(f"Ablate({site}): kind {edit.kind!r}; allowed: zero, mean, resample.")
    if edit.over is None:
        raise InterpError(f"Ablate({site}, {edit.kind!r}) needs `over`, a run that captured {site.all_heads}.")
    x, prompts = edit.over[site.all_heads], cast(Run, edit.over).prompts
    if site.part in ATTENTION_PARTS:
        raise SiteError(
            f"Ablate({site}, {edit.kind!r}): attention rows of queries have no common mean; use zero or Replace."
        )
    if edit.kind == "resample":
        if len(x) < 2:
            raise InterpError(f"Ablate({site}, 'resample') needs a run of at least two prompts; got {len(x)}.")
        generator = torch.Generator().manual_seed(edit.seed)
        order = torch.randperm(len(x), generator=generator)
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # one long cycle: nobody is replaced by itself
        return Run(prompts.select(other), None, {site.all_heads: x[other.to(x.device)]})
    mask = prompts.mask.view(*prompts.mask.shape, *(1,) * (x.ndim - 2)).to(x.dtype)
    if edit.per_position:
        mean = (x * mask).sum(0, keepdim=True) / mask.sum(0, keepdim=True).clamp(min=1)
        if base.ids.shape[1] > x.shape[1]:
            raise ShapeError(
                f"Ablate({site}, 'mean', per_position=True): the base has {base.ids.shape[1]} positions, `over` only "
                f"{x.shape[1]}; give longer prompts, or the mean over all positions."
            )
        return Run(base, None, {site.all_heads: mean})  # one row, which serves every prompt of the base
    mean = (x * mask).sum((0, 1)) / mask.sum()
    return mean if site.head is None else mean[site.head]


def _basis(model: LanguageModel | Denoiser, site: Site, basis: Tensor) -> Tensor:
    if site.part in ATTENTION_PARTS:
        raise SiteError(f"Swap at {site}: keys span no space; exchange whole rows, or single keys, with Replace.")
    width = model.width_of(site)
    if basis.ndim != 2 or basis.shape[0] != width or basis.shape[1] > basis.shape[0]:
        raise ShapeError(
            f"Swap at {site}: the basis has shape {list(basis.shape)}; it must be [{width}, rank ≤ {width}]."
        )
    gram = basis.detach().T @ basis.detach()
    off = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max()
    if not off <= 1e-3:  # a NaN is not, either
        raise ShapeError(f"Swap at {site}: the columns of the basis are not orthonormal (take torch.linalg.qr of it).")
    return basis


def _form(model: LanguageModel | Denoiser, site: Site, edit: Edit, width: int, live: bool) -> Form:
    """What an edit does, as far as it is the same at all of its places."""
    gate, keep_norm = getattr(edit, "gate", None), getattr(edit, "keep_norm", False)
    latents = edit.latents if isinstance(edit, Modulate) else None
    what = "a gate" if gate is not None else "keep_norm" if keep_norm else "latents" if latents is not None else None
    if what and site.part in ATTENTION_PARTS:
        raise SiteError(f"The edit at {site} has {what}: keys of an attention span no space.")
    if what and getattr(edit, "units", None) is not None:
        raise InterpError(f"The edit at {site} has {what}, which is about whole states: leave `units` out.")
    if gate is not None and not (
        tuple(gate.read.shape) == (width,) and torch.isfinite(gate.read).all() and not np.isnan(gate.threshold)
    ):
        raise ShapeError(
            f"The gate of the edit at {site} reads {list(gate.read.shape)} with threshold {gate.threshold}; `read` "
            f"must be [{width}], finite, and the threshold a number."
        )
    if latents is not None:
        _check_latents(latents, site, width)
    basis = _basis(model, site, edit.basis) if isinstance(edit, Swap) else None
    return Form(live=live, basis=basis, latents=latents, gate=gate, keep_norm=keep_norm)


def _check_latents(latents: Latents, site: Site, width: int) -> None:
    n = len(latents)
    for name, part in zip(("read", "write", "bias", "threshold"), _parts(latents), strict=True):
        wanted = (n, width) if name in ("read", "write") else (n,)
        if tuple(part.shape) != wanted:
            raise ShapeError(
                f"Modulate at {site}: `{name}` of its {n} latents is {list(part.shape)}; it must be {list(wanted)}."
            )
        if torch.isnan(part).any() or (name != "threshold" and torch.isinf(part).any()):
            raise ShapeError(f"Modulate at {site}: `{name}` of its latents holds NaN or infinite numbers.")


def _parts(latents: Latents) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """read, write, bias, threshold."""
    none = latents.read.new_zeros(len(latents))
    bias = none if latents.bias is None else latents.bias
    threshold = none - torch.inf if latents.threshold is None else latents.threshold
    return latents.read, latents.write, bias, threshold


def _gains(edit: Modulate, site: Site, like: Tensor) -> Tensor:
    """[1, 2 · latent]: gains, then offsets."""
    both = []
    for name, given in (("gain", edit.gain), ("offset", edit.offset)):
        numbers = torch.as_tensor(given, dtype=like.dtype, device=like.device)
        if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) != len(edit.latents)):
            raise ShapeError(f"Modulate at {site}: {numbers.numel()} values of {name} for {len(edit.latents)} latents.")
        if not torch.isfinite(numbers).all():
            raise ShapeError(f"Modulate at {site}: the {name} {given} holds NaN or infinite numbers.")
        both.append(numbers.expand(len(edit.latents)))
    return torch.cat(both)[None]


def _by_unit(
    model: LanguageModel | Denoiser,
    whole: _Resolved,
    units: np.ndarray,
    width: int,
    value: Value,
    checks: _Checks,
) -> _Resolved:
    """The same edit on single units of the last axis: groups are flat (head, unit) indices."""
    if whole.site.part in ATTENTION_PARTS and isinstance(model, LanguageModel):
        raise SiteError(f"{whole.site} has keys, not units; edit whole rows, or cut edges with Knockout.")
    if len(set(units.tolist())) < len(units):
        raise InterpError(f"Edit at {whole.site}: units {units.tolist()} name one unit twice.")
    if units.min() < 0 or units.max() >= width:
        raise InterpError(
            f"Edit at {whole.site}: units {units.min()} to {units.max()} of a width of {width} (0 to {width - 1})."
        )
    n, columns = len(units), whole.table.shape[-1]
    own = np.arange(n) if isinstance(value, Tensor) else units
    at_unit = np.repeat(whole.operand, n) * columns + np.tile(own, len(whole.operand))
    return replace(
        whole,
        example=np.repeat(whole.example, n),
        position=np.repeat(whole.position, n),
        group=np.repeat(whole.group, n) * width + np.tile(units, len(whole.group)),
        operand=np.repeat(whole.operand, n) if whole.form.live else at_unit,
        table=checks.table(whole.table, ("unit",), lambda: whole.table.reshape(-1, 1), whole.site),
        form=replace(whole.form, by_unit=True),
    )


def _resolve_knockout(model: LanguageModel | Denoiser, prompts: Prompts, edit: Knockout, keys: KeyAxis) -> _Resolved:
    """A knockout adds −inf to the scores of the cut edges."""
    site = edit.site
    example, position, _, _ = _places(prompts, edit.positions, edit.rows, site)
    key_example, key, _, _ = _places(keys.prompts, edit.keys, edit.rows, site, beyond=keys.new)
    cut = np.zeros((len(prompts), keys.width), dtype=bool)
    cut[key_example, key] = True
    visible = np.ones((len(position), keys.width), dtype=bool)
    if isinstance(model, LanguageModel):
        visible &= np.arange(keys.width)[None, :] <= position[:, None]
    blind = ~(visible & ~cut[example]).any(1)
    if blind.any():
        query = int(position[blind][0])
        raise InterpError(f"Knockout at {site}: query {query} would see no key at all; leave it one (itself, say).")
    heads = np.arange(model.heads_of(site) or 1) if site.head is None else np.array([site.head])
    table = torch.zeros(cut.shape, dtype=model.dtype).masked_fill(torch.from_numpy(cut), -torch.inf).to(model.device)
    return _Resolved(
        site.all_heads,
        np.repeat(example, len(heads)),
        np.repeat(position, len(heads)),
        np.tile(heads, len(example)),
        1.0,
        np.repeat(example, len(heads)),
        table,
    )
