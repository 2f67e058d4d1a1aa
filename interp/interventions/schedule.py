"""When and where each variant departs from the base run, and what that costs.

A *row* is one variant on one prompt. It *is* the base run until its first edit that changes anything,
so it joins the computation there: at a layer boundary with every token from its first edited position
on, or inside a layer with the edited tokens alone. Rows that change nothing, or nothing that the metric
can see, never run. All of this is exact; each saving can be switched off (`Savings`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from interp.errors import InterpError
from interp.interventions.base_states import BaseStates
from interp.interventions.plan import Index, Ops, Plan
from interp.kernels.apply_edits import edited
from interp.models.language_model import LanguageModel
from interp.models.site import ATTENTION_PARTS, Site

EMBED = -1
"""Rank of the token embedding, before the first boundary."""
_AFTER_ATTENTION = frozenset({"z", "head_result", "attn_out", "resid_mid", "mlp_pre", "mlp_act"})
_ONE_TOKEN = _AFTER_ATTENTION | ATTENTION_PARTS | {"q", "mlp_out", "resid_post"}
"""Parts whose change at a position reaches other positions only through a later layer."""


@dataclass(frozen=True, slots=True)
class Savings:
    """What the engine may leave out; every one is exact.

    Attributes:
        enter_late: a row joins at its first effective edit, not at the first layer.
        skip_prefix: tokens before a row's first edited position are the base run's.
        skip_noops: an edit that writes what is already there is answered with the base metric.
        read_late: of the last layer and the unembedding, only what the metric reads.
        batch: rows share matrix products.
    """

    enter_late: bool = True
    skip_prefix: bool = True
    skip_noops: bool = True
    read_late: bool = True
    batch: bool = True


def rank_of(site: Site, n_layers: int) -> int:
    """Order of a site's departure point: 3 per layer (boundary, after attention, after the MLP)."""
    if site.layer is None:
        return {"embed": EMBED, "final_norm": 3 * n_layers + 1, "logits": 3 * n_layers + 2}[site.part]
    if site.part == "resid_post":
        return 3 * (site.layer + 1)
    return 3 * site.layer + (1 if site.part in _AFTER_ATTENTION else 2 if site.part == "mlp_out" else 0)


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The rows that have to run, in the order in which they are packed, and the edits left to apply.

    Attributes:
        variant, example, rank, start: of each row: its first departure and its first live position.
        end: of each example: one past the last position that the metric reads.
        sites: the plan's ops without edits that change nothing.
        skipped: number of (variant, example) pairs answered with the base metric.
    """

    variant: Index
    example: Index
    rank: Index
    start: Index
    end: Index
    sites: dict[Site, tuple[Ops, ...]]
    skipped: int

    def __len__(self) -> int:
        return len(self.variant)

    @property
    def live(self) -> Index:
        """Live tokens of each row."""
        return self.end[self.example] - self.start


def schedule(model: LanguageModel, plan: Plan, base: BaseStates, reads: Index, savings: Savings) -> Schedule:
    """Decide which rows run, and from where.

    Args:
        reads: [batch, read] positions that the metric reads.
    """
    n_layers, batch = model.n_layers, len(plan.prompts)
    lengths = plan.prompts.lengths.cpu().numpy()
    end = reads.max(1) + 1 if savings.read_late else lengths
    pairs = plan.n_variants * batch
    alive = {site: [_reached(op, reads, end, n_layers, savings) for op in ops] for site, ops in plan.sites.items()}
    first, start = np.full(pairs, 4 * n_layers + 4), np.full(pairs, np.iinfo(np.int64).max)
    for site, ops in plan.sites.items():
        for op, live in zip(ops, alive[site], strict=True):
            acts = live & _effective(op, base, plan) if savings.skip_noops else live
            np.minimum.at(first, _pair(op, batch)[acts], rank_of(site, n_layers))
            np.minimum.at(start, _pair(op, batch)[acts], op.position[acts])
    sites: dict[Site, tuple[Ops, ...]] = {}
    for site, ops in plan.sites.items():
        kept = []
        for op, live in zip(ops, alive[site], strict=True):
            # Below its first effective edit, and before the first position of one, a row is the base run, and edits
            # there change nothing.
            pair = _pair(op, batch)
            chosen = op.select(live & (rank_of(site, n_layers) >= first[pair]) & (op.position >= start[pair]))
            if len(chosen):
                kept.append(chosen)
        if kept:
            sites[site] = tuple(kept)
    pair = np.flatnonzero(start < np.iinfo(np.int64).max)
    rank, start, example = first[pair], start[pair], pair % batch
    if not savings.enter_late:
        rank = np.minimum(rank, np.where(rank == EMBED, EMBED, 0))
    if not savings.skip_prefix:
        start = np.zeros_like(start)
    order = np.lexsort((start, example, rank))
    pair, rank, start, example = pair[order], rank[order], start[order], example[order]
    return Schedule(pair // batch, example, rank, start, end, sites, pairs - len(pair))


def _pair(op: Ops, batch: int) -> Index:
    return op.variant * batch + op.example


def _reached(op: Ops, reads: Index, end: Index, n_layers: int, savings: Savings) -> np.ndarray:
    """Which edits the metric can see at all."""
    if not savings.read_late:
        return np.ones(len(op), dtype=bool)
    seen = op.position < end[op.example]
    last = op.site.part in _ONE_TOKEN and op.site.layer == n_layers - 1
    if last or op.site.part in ("final_norm", "logits"):
        seen &= (reads[op.example] == op.position[:, None]).any(1)
    return seen


def _effective(op: Ops, base: BaseStates, plan: Plan) -> np.ndarray:
    """Which edits, applied to the base run, change a single bit of it."""
    if op.site.part in ATTENTION_PARTS or not op.affine:
        return np.ones(len(op), dtype=bool)
    width = plan.prompts.ids.shape[1]
    token = op.example * width + op.position
    flat = base.at(op.site).flatten(0, 1)
    flat = flat.reshape(flat.shape[0], -1, 1) if op.by_unit else flat.reshape(flat.shape[0], -1, flat.shape[-1])
    changed = np.empty(len(op), dtype=bool)
    step = max(1, 4_000_000 // flat.shape[-1])  # bounds the two gathered copies
    for i in range(0, len(op), step):
        part = slice(i, i + step)
        old = flat[torch.from_numpy(token[part]), torch.from_numpy(op.group[part])]
        wide = torch.promote_types(old.dtype, torch.float32)
        keep = torch.from_numpy(op.keep[part]).to(old.device, wide)[:, None]
        value = op.table[torch.from_numpy(op.operand[part])].to(old.device, wide)
        changed[part] = (edited(old.to(wide), keep, value).to(old.dtype) != old).any(-1).cpu().numpy()
    return changed


@dataclass(frozen=True, slots=True)
class Cost:
    """What a sweep will take, counted before it starts.

    Attributes:
        variants, examples: of the sweep; `rows`: (variant, example) pairs that have to run;
            `skipped`: pairs answered with the base metric.
        forwards: passes over a stack of layers (chunks of rows, or the naive way one per variant).
        operations: multiply-adds of the rows' matrix products, times two.
        naive_operations: the same with one whole forward pass for every variant and example.
        bytes: peak memory of the activations, beside the model.
        how: which path runs, and why.
    """

    variants: int
    examples: int
    rows: int
    skipped: int
    forwards: int
    operations: float
    naive_operations: float
    bytes: int
    how: str

    def __str__(self) -> str:
        saved = self.naive_operations / self.operations if self.operations else float("inf")
        return (
            f"{self.variants} variants × {self.examples} prompts: {self.rows} rows to run, {self.skipped} answered by "
            f"the base run.\n{self.forwards} packed passes, {self.operations / 1e9:.2f} GFLOP ({saved:.1f}× fewer than "
            f"one forward pass each), {self.bytes / 2**20:.0f} MiB.\n{self.how}"
        )


def weights_in(module: nn.Module | None) -> int:
    """Multiply-adds per token of a module's matrix products (of a mixture, of the experts in use)."""
    if module is None:
        return 0
    config = getattr(module, "config", None)
    total = 0
    for name, weight in module.named_parameters():
        if weight.ndim == 3:  # [expert, out, in]
            used = getattr(module, "top_k", None) or getattr(config, "num_experts_per_tok", 2)
            total += weight[0].numel() * used
        elif weight.ndim == 2 and "embed" not in name:
            total += weight.numel()
    return total


def operations(model: LanguageModel, rows: Schedule, n_columns: int, n_reads: int, savings: Savings) -> float:
    """Floating-point operations of the scheduled rows (two per multiply-add)."""
    if not len(rows):
        return 0.0
    layer = model.layers[0]
    attn, mlp, out = weights_in(layer.attn), weights_in(layer.mlp), weights_in(layer.o)
    n_layers, live = model.n_layers, rows.live.astype(float)
    touched = _touched(rows, model)
    entry, stage = np.clip(rows.rank, 0, None) // 3, np.clip(rows.rank, 0, None) % 3
    whole = n_layers - entry - (stage > 0)  # layers run on every live token
    total = np.where(stage == 1, touched * (out + mlp), 0).sum() + (live * whole * (attn + mlp)).sum()
    # Scores and mixing: each live query against every key up to its own position.
    keys = (rows.start + rows.end[rows.example]) / 2
    total += (live * whole * keys * 2 * model.n_heads * model.d_head).sum()
    if savings.read_late:
        total -= (np.clip(live - n_reads, 0, None) * (whole > 0) * mlp).sum()
        total += len(rows) * n_reads * n_columns * model.d_model
    else:
        total += live.sum() * model.d_vocab * model.d_model
    return 2.0 * total


def naive_operations(model: LanguageModel, plan: Plan) -> float:
    """Operations of one whole forward pass per variant and example."""
    lengths = plan.prompts.lengths.cpu().numpy().astype(float)
    layer = model.layers[0]
    per_token = model.n_layers * (weights_in(layer.attn) + weights_in(layer.mlp)) + model.d_vocab * model.d_model
    attention = model.n_layers * lengths**2 * model.n_heads * model.d_head
    return float(2.0 * plan.n_variants * (lengths * per_token + attention).sum())


def _touched(rows: Schedule, model: LanguageModel) -> np.ndarray:
    """Tokens with which each row joins inside a layer."""
    batch = len(rows.end)
    row_of = {int(pair): i for i, pair in enumerate(rows.variant * batch + rows.example)}
    places: list[set[int]] = [set() for _ in range(len(rows))]
    for site, ops in rows.sites.items():
        rank = rank_of(site, model.n_layers)
        for op in ops:
            for pair, position in zip(_pair(op, batch).tolist(), op.position.tolist(), strict=True):
                if rows.rank[row_of[pair]] == rank:
                    places[row_of[pair]].add(position)
    return np.array([len(p) for p in places], dtype=float)


def bytes_per_token(model: LanguageModel, width: int) -> int:
    """Peak activation memory of one live token inside a layer, measured generously."""
    item = torch.finfo(model.dtype).bits // 8
    attention = (model.n_heads + 2 * model.n_kv_heads) * model.d_head
    return item * (
        10 * model.d_model + 4 * attention + 4 * (model.d_mlp or 4 * model.d_model) + 3 * model.n_heads * width
    )


def base_bytes(model: LanguageModel, width: int) -> int:
    """Memory that the base run of one prompt of this many tokens keeps."""
    item = torch.finfo(model.dtype).bits // 8
    return item * width * (model.n_layers + 1) * (2 * model.d_model + 2 * model.n_kv_heads * model.d_head)


def chunks(rows: Schedule, max_tokens: int, savings: Savings) -> list[slice]:
    """Runs of rows whose live tokens fit into one pass.

    Raises:
        InterpError: a single row does not fit.
    """
    if not savings.batch:
        return [slice(i, i + 1) for i in range(len(rows))]
    live, out, begin = rows.live, [], 0
    if len(live) and live.max() > max_tokens:
        raise InterpError(
            f"A row of {live.max()} live tokens does not fit into the memory budget, which holds {max_tokens}; "
            "give a larger budget."
        )
    total = 0
    for i, tokens in enumerate(live.tolist()):
        if total + tokens > max_tokens:
            out.append(slice(begin, i))
            begin, total = i, 0
        total += tokens
    return [*out, slice(begin, len(rows))] if begin < len(rows) else out


def part_of(rows: Schedule, chunk: slice, shared: Plan, n_layers: int) -> Schedule:
    """The rows of one chunk, sorted for packing, with their own edits and what the base's edits ask of them."""
    batch = len(rows.end)
    order = np.lexsort((rows.start[chunk], rows.example[chunk]))
    picked = {name: getattr(rows, name)[chunk][order] for name in ("variant", "example", "rank", "start")}
    inside = np.zeros(int(rows.variant.max() + 1) * batch, dtype=bool)
    inside[picked["variant"] * batch + picked["example"]] = True
    sites = {site: [op.select(inside[_pair(op, batch)]) for op in ops] for site, ops in rows.sites.items()}
    if shared.sites:
        departure = _departure(sites, picked, batch, shared.prompts.ids.shape[1], n_layers)
        for site, ops in shared.sites.items():
            sites[site] = [_repeated(op, site, picked, departure, n_layers) for op in ops] + sites.get(site, [])
    acting = {site: tuple(op for op in ops if len(op)) for site, ops in sites.items()}
    return replace(rows, sites={site: ops for site, ops in acting.items() if ops}, skipped=0, **picked)


def _departure(own: dict[Site, list[Ops]], rows: dict[str, Index], batch: int, width: int, n_layers: int) -> np.ndarray:
    """[row, position]: from where on each token of a row is computed, and not the base run's.

    A row that joins at a boundary does so with all its tokens. One that joins inside a layer does so with the
    tokens that are edited there; its others follow at the next boundary.
    """
    rank = np.minimum(rows["rank"], 3 * n_layers)  # nothing joins after the last boundary
    inside = (rank > 0) & (rank % 3 > 0)
    departure = np.repeat(np.where(inside, 3 * (rank // 3 + 1), rank)[:, None], width, 1)
    row_of = np.full(int(rows["variant"].max() + 1) * batch, -1)
    row_of[rows["variant"] * batch + rows["example"]] = np.arange(len(rank))
    for site, ops in own.items():
        at = rank_of(site, n_layers)
        for op in ops if 0 < at < 3 * n_layers and at % 3 else ():
            row = row_of[_pair(op, batch)]
            here = inside[row] & (rank[row] // 3 == at // 3)
            np.minimum.at(departure, (row[here], op.position[here]), at)
    return departure


def _repeated(op: Ops, site: Site, rows: dict[str, Index], departure: np.ndarray, n_layers: int) -> Ops:
    """An edit of the base run, for every token that computes its site anew.

    What a row takes over from the base run has the base's edits in it; what it computes itself has not. At a
    boundary the stream is taken over before edits of `resid_pre` (`BaseStates.arriving`).
    """
    rank = rank_of(site, n_layers)
    taken_over = site.part in ("resid_post", "z", "mlp_out") or (site.part == "resid_pre" and site.layer == 0)
    departed = departure[:, op.position]
    row, entry = np.nonzero(
        ((departed < rank) | ((departed == rank) & (not taken_over)))
        & (rows["example"][:, None] == op.example[None, :])
        & (rows["start"][:, None] <= op.position[None, :])
    )
    return replace(op.select(entry), variant=rows["variant"][row])
