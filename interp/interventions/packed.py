"""Run a chunk of rows: only their live tokens, only the layers above their first edit.

All live tokens of all rows are one matrix [token, d_model]. At each layer boundary rows may join, so
the matrix grows; inside a layer, rows whose first edit lies after attention join with their edited tokens
alone. After the last layer's attention only the tokens that the metric reads go on. Everything a row
does not compute is the base run's (`BaseStates`).

What is written into was made here, and nothing is while gradients are recorded, so that the same code serves them
(`interp.interventions.differentiable`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.interventions.base_states import BaseStates
from interp.interventions.plan import Index, Ops, Plan
from interp.interventions.schedule import EMBED, Savings, Schedule, rank_of
from interp.kernels.path import choose
from interp.kernels.prefix_attention import EdgeBias, PackedRows, prefix_attention
from interp.kernels.segment_attention import Segment, segment_attention
from interp.kernels.stacked_attention import Stacks, stack_rows, stacked_attention
from interp.models.block import Blocks
from interp.models.hooks import attention_options, stopping_at, tapped
from interp.models.language_model import LanguageModel
from interp.models.site import ATTENTION_PARTS, LAYER_PARTS, Site

_INSIDE_MODULES = ("q", "k", "v", "mlp_pre", "mlp_act")
"""Parts that only a hook can reach: they live inside the attention module and the MLP."""


FREE_FILLING = 8192
"""Tokens of a segment up to which rows of half the length are filled up; beyond, rows within an eighth."""

FEW_TOKENS, FEW_KEYS = 256, 256
"""Tokens per segment, on average, and keys of the longest, up to which one product for all segments is quicker."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Which row and position each token of the matrix is: live tokens first, then those that join."""

    row: Index
    position: Index
    n_live: int

    def __len__(self) -> int:
        return len(self.row)

    def with_joining(self, row: Index, position: Index) -> Tokens:
        """These tokens, then those of rows that join."""
        return Tokens(np.concatenate([self.row, row]), np.concatenate([self.position, position]), self.n_live)

    def find(self, row: Index, position: Index, width: int) -> Index:
        """Index of each (row, position); −1 where there is no such token. Both halves are sorted."""
        wanted, keys = row * width + position, self.row * width + self.position
        found = np.full(len(wanted), -1)
        for half, offset in ((keys[: self.n_live], 0), (keys[self.n_live :], self.n_live)):
            if len(half):
                at = np.minimum(np.searchsorted(half, wanted), len(half) - 1)
                found = np.where(half[at] == wanted, at + offset, found)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """How live tokens are laid out for attention: in stacks or packed, where that is the way to go, and in segments."""

    tokens: Tokens
    position: Tensor
    segments: Sequence[Segment]
    stacks: Stacks | None = None
    packed: PackedRows | None = None


class Chunk:
    """One pass of some rows through the network, from their first departure to the final norm."""

    def __init__(
        self, model: LanguageModel, plan: Plan, base: BaseStates, rows: Schedule, reads: Index, savings: Savings
    ) -> None:
        self.model, self.plan, self.base, self.rows = model, plan, base, rows
        self.reads, self.savings, self.blocks = reads, savings, Blocks(model)
        self.width = plan.prompts.ids.shape[1]
        batch = len(plan.prompts)
        row_of = np.full(int(rows.variant.max() + 1) * batch, -1)
        row_of[rows.variant * batch + rows.example] = np.arange(len(rows))
        self._row_of, self._batch = row_of, batch
        nothing = np.empty(0, dtype=np.int64)
        self.tokens = Tokens(nothing, nothing, 0)
        self._layout: _Layout | None = None

    def final_norm(self) -> tuple[Float[Tensor, "token d_model"], Tokens]:
        """Output of the final norm at every (row, read position) that is live."""
        with ExitStack() as hooks:
            hooks.enter_context(tapped(self._watchers(), 1))
            first = max(0, int(self.rows.rank.min())) // 3
            x = self.base.resid[0].new_empty(0, self.model.d_model)
            for layer in range(first, self.model.n_layers):
                x = self._enter(layer, x)
                x = self._layer(layer, x)
            x = self._enter(self.model.n_layers, x)
        return self._edit(Site("final_norm"), self.blocks.final_norm(x)), self.tokens

    # -- joining at a layer boundary ------------------------------------------------------------------

    def _enter(self, layer: int, x: Tensor) -> Tensor:
        """The stream at a boundary: rows already under way, completed to all their live tokens, and new ones."""
        previous = self.tokens
        if 0 < layer < self.model.n_layers and not self._joined(layer):
            x = self._edit(Site("resid_post", layer - 1), x, owned=True)
            return self._edit(Site("resid_pre", layer), x, owned=True)
        self.tokens = self._boundary(layer)
        if layer == 0 and (self.rows.rank == EMBED).any():
            x, previous = self._embedded()
        at = previous.find(self.tokens.row, self.tokens.position, self.width)
        missing = at < 0
        if missing.any():
            base = self._base(self.base.arriving(layer), self.tokens.row[missing], self.tokens.position[missing])
            at[missing] = len(x) + np.arange(len(base))
            x = torch.cat([x, base])
        if len(at) != len(x) or (at != np.arange(len(at))).any():
            x = x.index_select(0, _index(at, x))
        if layer > 0:
            x = self._edit(Site("resid_post", layer - 1), x, owned=True)
        return self._edit(Site("resid_pre", layer), x, owned=True) if layer < self.model.n_layers else x

    def _joined(self, layer: int) -> bool:
        """Whether rows join at this boundary, or have joined inside the layer below it."""
        return bool(((self.rows.rank > 3 * (layer - 1)) & (self.rows.rank <= 3 * layer)).any())

    def _boundary(self, layer: int) -> Tokens:
        """Tokens of every row that has departed by this boundary."""
        n_layers = self.model.n_layers
        departed = self.rows.rank <= 3 * layer + (2 if layer == n_layers else 0)
        rows = np.flatnonzero(departed)
        start, end = self.rows.start[rows], self.rows.end[self.rows.example[rows]]
        if layer == n_layers and self.savings.read_late:
            reads = np.sort(self.reads[self.rows.example[rows]], axis=1)
            keep = (reads >= start[:, None]) & np.pad(np.diff(reads) > 0, ((0, 0), (1, 0)), constant_values=True)
            row, column = np.nonzero(keep)
            return Tokens(rows[row], reads[row, column], len(row))
        length = end - start
        row = np.repeat(rows, length)
        offset = np.repeat(np.cumsum(length) - length, length)
        return Tokens(row, np.arange(len(row)) - offset + np.repeat(start, length), len(row))

    def _embedded(self) -> tuple[Tensor, Tokens]:
        """The first boundary of rows whose embedding is edited, by the network's own embedding code."""
        rows = np.flatnonzero(self.rows.rank == EMBED)
        prompts = self.plan.prompts
        ids = prompts.ids[_index(self.rows.example[rows], prompts.ids)]
        local = np.full(len(self.rows), -1)
        local[rows] = np.arange(len(rows))

        def watch(x: Tensor) -> Tensor:
            for op in self.rows.sites[Site("embed")]:
                x = op.apply(x.flatten(0, 1), local[self.row_of(op)] * self.width + op.position).view(x.shape)
            return x

        lengths = prompts.lengths[_index(self.rows.example[rows], prompts.lengths)]
        batch = type(prompts)(ids, lengths, tuple(() for _ in rows))
        edited = tapped([("embed", self.model.tap(Site("embed")), watch)], len(rows))
        with edited, stopping_at(self.model.layers[0].block) as inputs:
            self.model.forward(batch)
        position = np.tile(np.arange(self.width), len(rows))
        return inputs[0].flatten(0, 1), Tokens(np.repeat(rows, self.width), position, len(position))

    # -- one layer ------------------------------------------------------------------------------------

    def _layer(self, layer: int, x: Tensor) -> Tensor:
        live = self.tokens
        projected, z = self._attend(layer, x) if len(live) else (x, None)
        joining = self._joining(layer, 1)
        if len(joining[0]):
            self.tokens = live.with_joining(*joining)
            z_joining = self._base(self.base.at(Site("z", layer)), *joining)
            z_joining = self._edit(Site("z", layer), z_joining, skip=len(live))
            projected = torch.cat([projected, self.blocks.project_heads(layer, z_joining)])
            z = z_joining if z is None else torch.cat([z, z_joining])
            x = torch.cat([x, self._base(self.base.resid[layer], *joining)])
        if Site("head_result", layer) in self.rows.sites and z is not None:
            projected = self._edit_head_results(layer, projected, z)
        if len(self.tokens):
            attn_out = self._edit(Site("attn_out", layer), self.blocks.attn_out(layer, projected))
            mid = x + attn_out
            if not self.model.family.parallel:
                mid = self._edit(Site("resid_mid", layer), mid, owned=True)
            if layer == self.model.n_layers - 1 and self.savings.read_late:
                x, mid = self._only_read(x, mid)
            mlp_out = self.blocks.mlp_out(layer, x, mid) if len(self.tokens) else mid
        else:
            mid = mlp_out = x
        joining = self._joining(layer, 2)
        if len(joining[0]):
            known = Tokens(self.tokens.row, self.tokens.position, len(self.tokens))
            self.tokens = known.with_joining(*joining)
            mid = torch.cat([mid, self._base(self.base.middle(layer), *joining)])
            mlp_out = torch.cat([mlp_out, self._base(self.base.at(Site("mlp_out", layer)), *joining)])
            order = np.lexsort((self.tokens.position, self.tokens.row))
            self.tokens = Tokens(self.tokens.row[order], self.tokens.position[order], len(order))
            mid, mlp_out = (t.index_select(0, _index(order, t)) for t in (mid, mlp_out))
        return mid + self._edit(Site("mlp_out", layer), mlp_out)

    def _joining(self, layer: int, stage: int) -> tuple[Index, Index]:
        """(row, position), sorted, of the tokens with which rows join inside this layer.

        A row that joined after attention may join again, after the MLP, with other tokens.
        """
        rank = 3 * layer + stage
        inside = (self.rows.rank > 3 * layer) & (self.rows.rank <= rank)
        if not inside.any():
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        keys = [
            row[inside[row]] * self.width + op.position[inside[row]]
            for site, ops in self.rows.sites.items()
            if rank_of(site, self.model.n_layers) == rank
            for op in ops
            for row in (self.row_of(op),)
        ]
        unique = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *keys]))
        if stage == 2:
            unique = unique[self.tokens.find(unique // self.width, unique % self.width, self.width) < 0]
        return unique // self.width, unique % self.width

    def _only_read(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Of the last layer, only the tokens that the metric reads."""
        reads = self.reads[self.rows.example[self.tokens.row]]
        kept = np.flatnonzero((reads == self.tokens.position[:, None]).any(1))
        n_live = int((kept < self.tokens.n_live).sum())
        self.tokens = Tokens(self.tokens.row[kept], self.tokens.position[kept], n_live)
        return tuple(t.index_select(0, _index(kept, t)) for t in tensors)

    def _attend(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the attention module, and z, for the live tokens."""
        layout, tables = self._laid_out(), self.base.ropes[layer]
        rope = None if tables is None else tuple(table.index_select(0, layout.position) for table in tables)
        attn = self.model.layers[layer].attn
        assert attn is not None
        mixed: list[Tensor] = []
        scores, pattern = Site("attn_scores", layer), Site("attn_pattern", layer)

        def core(query: Tensor, key: Tensor, value: Tensor, how: dict[str, Any]) -> Tensor:
            states = query, key, value, self.base.keys[layer], self.base.values[layer]
            options = attention_options(attn.config, how)
            edited = scores in self.rows.sites or pattern in self.rows.sites
            if (
                layout.packed is not None
                and pattern not in self.rows.sites
                and only_added(self.rows.sites.get(scores, ()))
            ):
                z = prefix_attention(*states, layout.packed, edges=self._added_scores(scores), **options)
            elif layout.stacks is not None and not edited and options.pop("window", None) is None:
                z = stacked_attention(*states, layout.stacks, **options)
            else:
                z = segment_attention(
                    *states, layout.segments, edit_scores=self._attention_editor(scores),
                    edit_pattern=self._attention_editor(pattern), **attention_options(attn.config, how),
                )  # fmt: skip
            mixed.append(self._edit(Site("z", layer), z, only_live=True))
            return mixed[0]

        return self.blocks.attention(layer, x, rope, layout.position, core), mixed[0]

    def _laid_out(self) -> _Layout:
        """The live tokens as segments, and, where that pays, as stacks or packed.

        A segment holds rows of one example with the same start, or with starts so close that filling up is cheap. For
        the kernel nothing is filled up, and a segment holds all rows of its example.
        """
        if self._layout is not None and self._layout.tokens is self.tokens:
            return self._layout  # most layers have the tokens of the layer below
        rows = self.tokens.row
        begins = np.flatnonzero(np.diff(rows, prepend=-1))
        start = self.tokens.position[begins]
        example = self.rows.example[rows[begins]]
        length = np.diff(np.append(begins, len(rows)))
        equal = np.flatnonzero((np.diff(start, prepend=-1) != 0) | (np.diff(example, prepend=-1) != 0))
        bounds = [*equal.tolist(), len(begins)]
        fused = self._attends_fused()
        groups, first = [], 0
        while first < len(bounds) - 1:
            # Rows are sorted by start within an example, so the first one is the longest.
            last = first + 1
            top, whole = bounds[first], length[bounds[first]]
            while last < len(bounds) - 1 and example[bounds[last]] == example[top]:
                count = bounds[last + 1] - top
                grid = count * whole
                live = int(length[top : bounds[last + 1]].sum())
                if grid > live * (2.0 if grid <= FREE_FILLING else 1.125) and not fused:
                    break
                last += 1
            groups.append(slice(int(top), int(bounds[last])))
            first = last
        device, stacks = self.base.resid[-1].device, None
        position = torch.from_numpy(self.tokens.position).to(device)
        if (
            not fused
            and len(groups) > 1
            and len(rows) <= FEW_TOKENS * len(groups)
            and int((start + length).max()) <= FEW_KEYS
        ):
            stacks = stack_rows(begins, start, length, example, groups, device)
        segments = [self._segment(begins, start, length, group, int(example[group.start])) for group in groups]
        packed = PackedRows.of(segments, device) if fused else None
        self._layout = _Layout(self.tokens, position, segments, stacks, packed)
        return self._layout

    def _attends_fused(self) -> bool:
        """Whether attention is the kernel's, which records no gradient."""
        if torch.is_grad_enabled():
            return False
        return choose("prefix_attention", self.base.keys[0], d_head=self.base.keys[0].shape[-1]).fused

    def _segment(self, begins: Index, start: Index, length: Index, chosen: slice, example: int) -> Segment:
        start, length, begin = start[chosen], length[chosen], int(begins[chosen.start])
        rows, whole = len(start), int(length[0])
        tokens = slice(begin, begin + int(length.sum()))
        if (length == whole).all():
            return Segment(tokens, rows, int(start[0]), whole, example)
        row = np.repeat(np.arange(rows), length)
        place = row * whole + self.tokens.position[tokens] - start[0]
        source = np.tile(np.arange(whole), rows) + len(place)
        source[place] = np.arange(len(place))
        device = self.base.resid[0].device
        grid = torch.from_numpy(source).view(rows, whole).to(device)
        return Segment(tokens, rows, int(start[0]), whole, example, torch.from_numpy(place).to(device), grid)

    # -- edits ----------------------------------------------------------------------------------------

    def row_of(self, op: Ops) -> Index:
        """The row of each entry of an op."""
        return self._row_of[op.variant * self._batch + op.example]

    def _base(self, state: Tensor, row: Index, position: Index) -> Tensor:
        """Base states of (row, position) tokens."""
        return state[_index(self.rows.example[row], state), _index(position, state)]

    def _edit(self, site: Site, x: Tensor, *, skip: int = 0, only_live: bool = False, owned: bool = False) -> Tensor:
        """A site's edits on the matrix of current tokens (from token `skip` on, or only on live ones).

        Args:
            owned: whether the matrix is nobody else's, so that edits may be written into it.
        """
        for op in self.rows.sites.get(site, ()):
            at = self.tokens.find(self.row_of(op), op.position, self.width) - skip
            inside = (at >= 0) & (at < (self.tokens.n_live if only_live else len(x)))
            if inside.all():
                x = op.apply(x, at, owned=owned)
            elif inside.any():
                x = op.select(inside).apply(x, at[inside], owned=owned)
        return x

    def _added_scores(self, scores: Site) -> EdgeBias | None:
        """What those edits add, summed where several act on one query."""
        token, head, added = [], [], []
        for op in self.rows.sites.get(scores, ()):
            at = self.tokens.find(self.row_of(op), op.position, self.width)
            inside = (at >= 0) & (at < self.tokens.n_live)
            token.append(at[inside])
            head.append(op.group[inside])
            added.append(op.table[_index(op.operand[inside], op.table)])
        if not token:
            return None
        device, heads = added[0].device, self.model.n_heads
        place, at = np.unique(np.concatenate(token) * heads + np.concatenate(head), return_inverse=True)
        row = np.full(self.tokens.n_live * heads, -1, dtype=np.int32)
        row[place] = np.arange(len(place))
        table = torch.zeros(len(place), added[0].shape[1], device=device)
        table = table.index_add(0, torch.from_numpy(at).to(device), torch.cat(added).float())
        return EdgeBias(torch.from_numpy(row).to(device).view(-1, heads), table)

    def _attention_editor(self, site: Site):
        if site not in self.rows.sites:
            return None

        def edit(segment: Segment, x: Tensor) -> Tensor:
            first, tokens = segment.tokens.start, segment.tokens.stop - segment.tokens.start
            place = None if segment.place is None else segment.place.cpu().numpy()
            for op in self.rows.sites[site]:
                at = self.tokens.find(self.row_of(op), op.position, self.width) - first
                inside = (at >= 0) & (at < tokens)
                if inside.any():
                    at = at[inside] if place is None else place[at[inside]]
                    by_query = x.transpose(1, 2)
                    flat = op.select(inside).apply(by_query.flatten(0, 1), at)
                    x = flat.view(by_query.shape).transpose(1, 2)
            return x

        return edit

    def _edit_head_results(self, layer: int, projected: Tensor, z: Tensor) -> Tensor:
        """Add to the projection what edits of single heads' results change."""
        site = Site("head_result", layer)
        touched = [self.tokens.find(self.row_of(op), op.position, self.width) for op in self.rows.sites[site]]
        tokens = np.unique(np.concatenate(touched))
        tokens = tokens[tokens >= 0]
        at = _index(tokens, z)
        results = torch.einsum("bhd,hde->bhe", z[at], self.model.head_projection(layer))
        edited = results
        for op, token in zip(self.rows.sites[site], touched, strict=True):
            known = token >= 0
            edited = op.select(known).apply(edited, np.searchsorted(tokens, token[known]))
        return projected.index_add(0, at, (edited - results).sum(1))

    def _watchers(self):
        """Hooks for the parts inside modules; a packed call is a batch of one."""

        def watch(site: Site):
            return lambda x: self._edit(site, x[0])[None]

        sites = [site for site in self.rows.sites if site.part in _INSIDE_MODULES]
        sites.sort(key=lambda site: (site.layer or 0, LAYER_PARTS.index(site.part)))
        return [(str(site), self.model.tap(site), watch(site)) for site in sites]


def only_added(ops: Iterable[Ops]) -> bool:
    """Whether edits only add to what they find: what the attention kernel can take of a layer's scores."""
    return all(op.affine and not op.live and bool((op.keep == 1).all()) for op in ops)


def needed_sites(edited: Iterable[Site], n_layers: int) -> set[Site]:
    """What the base run must capture: edited sites, and what joining inside a layer takes from it."""
    sites = set()
    for site in edited:
        sites |= set() if site.part in ATTENTION_PARTS else {site}
        if site.layer is not None and site.part != "resid_post":
            stage = rank_of(site, n_layers) % 3
            sites |= {Site("z", site.layer)} if stage == 1 else set()
            sites |= {Site("attn_out", site.layer), Site("mlp_out", site.layer)} if stage == 2 else set()
    return sites


def _index(array: Index, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)
