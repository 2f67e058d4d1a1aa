"""`generate`: continue prompts with edits at work, at chosen steps; `stream`: the same, token by token.

Step 0 reads the prompt; step `k` reads the k-th new token. What an edit changes stays changed: later steps
see it through the cached keys and values, exactly as if the whole text were run with the edit at that
token.

New tokens continue the numbering of their own prompt: step `k` reads position (prompt length) + k − 1. So a
query of attention is a position of the prompt at step 0 and the new token at later steps, and its keys are all
positions up to its own, prompt and new tokens alike. Prompts are padded on the left here, out of sight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InterpError
from interp.interventions.edits import Edit
from interp.interventions.plan import KeyAxis, Ops, Plan, compile_variants
from interp.interventions.run import Captures, Places, capture_sites
from interp.kernels.segment_attention import Segment, segment_attention
from interp.models.hooks import Core, attention_options, routed, tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """New tokens, and what was captured while they were made.

    Attributes:
        tokens: [batch, step]; `tokens[:, k]` was chosen from what step `k` read.
        texts: the new tokens as text.
        logits: [batch, step, d_vocab], from which each token was chosen.
        activations: of each site, at the last token that each step read: [batch, step, …]. Attention is
            [batch, step, head, key] over the positions of each prompt and its new tokens, as many as the
            last step of the longest prompt sees; keys that come later have a score of −∞ and a weight of 0.
    """

    prompts: Prompts
    tokens: Int[Tensor, "batch step"]
    texts: tuple[str, ...]
    logits: Float[Tensor, "batch step d_vocab"]
    activations: dict[Site, Tensor]


def generate(
    model: LanguageModel,
    inputs: str | Sequence[str] | Prompts | Tensor,
    edits: Sequence[Edit] = (),
    capture: Captures = (),
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generation:
    """Continue each prompt by `max_new_tokens` tokens.

    Args:
        edits: an edit with `positions` names tokens of the prompt (queries, for attention), and acts at step
            0. One without acts on every token that is read: the prompt's at step 0, then each new one; `when`
            chooses steps. `keys` of a `Knockout` may also be new tokens, from (prompt length) on; negative
            ones count from the prompt's end at every step. A tensor of scores or weights has the key axis
            of `Generation.activations`.
        capture: as in `run`.
        temperature: 0 takes the most likely token; otherwise tokens are drawn, by `seed`.

    Raises:
        InterpError: steps that do not happen, or that an edit with positions cannot act at; a query that a
            `Knockout` leaves without any key (without `positions` it cuts every query that is read, and the
            prompt's first token sees itself alone); logits that are not numbers.
        ShapeError: as `run`; at later steps also values from a run of the prompts, which ends before them.
    """
    sites = capture_sites(model, capture)
    steps = _Steps(model, model.prompts(inputs), edits, sites, max_new_tokens)
    found = list(_continued(model, steps, temperature, seed))
    new, logits = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    texts = tuple(model.tokenizer.decode(row) for row in new.tolist()) if model.tokenizer else ()
    whole = {site: torch.stack(steps.places.rows[site.all_heads], 1) for site in sites}
    picked = {s: x if s.head is None else x.select(2, s.head) for s, x in whole.items()}
    return Generation(steps.keys.prompts, new, texts, logits, picked)


def stream(
    model: LanguageModel,
    inputs: str | Sequence[str] | Prompts | Tensor,
    edits: Sequence[Edit] = (),
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[tuple[str, ...]]:
    """The new text of each prompt as it is made: one piece per prompt and step; joined they are `Generation.texts`.

    A piece is empty while a character is unfinished. Mistakes are found on the call, before the first piece is asked
    for; between pieces no hook hangs on the network, so it can be used for something else.

    Args:
        edits: and the other arguments, as in `generate`.

    Raises:
        InterpError, ShapeError: as `generate`; a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise InterpError(f"{model.name} has no tokenizer, so its tokens are no text; use generate.")
    steps = _Steps(model, model.prompts(inputs), edits, (), max_new_tokens)
    return _pieces(model.tokenizer, _continued(model, steps, temperature, seed), max_new_tokens)


def _pieces(tokenizer: Any, tokens: Iterator[tuple[Tensor, Tensor]], n_steps: int) -> Iterator[tuple[str, ...]]:
    new: list[list[int]] = []
    told: list[str] = []
    for step, (token, _) in enumerate(tokens):
        new = [[*row, one] for row, one in zip(new or [[] for _ in token], token.tolist(), strict=True)]
        told = told or [""] * len(new)
        pieces = []
        for row, ids in enumerate(new):
            text = tokenizer.decode(ids)
            unfinished = text.endswith("\ufffd") and step < n_steps - 1
            # What was told must stay: cleaned-up spaces before punctuation would take a character back.
            ready = not unfinished and text.startswith(told[row])
            pieces.append(text[len(told[row]) :] if ready else "")
            told[row] = text if ready else told[row]
        yield tuple(pieces)


def _continued(
    model: LanguageModel, steps: _Steps, temperature: float, seed: int
) -> Iterator[tuple[Int[Tensor, "batch"], Float[Tensor, "batch d_vocab"]]]:
    """Token by token: what was chosen for each prompt, and from which logits."""
    prompts, watchers, cores = steps.keys.prompts, steps.places.watchers(model), steps.places.cores(model)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    columns = [
        [0] * int(pad) + row[:n] for pad, row, n in zip(steps.pad, prompts.ids.tolist(), steps.lengths, strict=True)
    ]
    ids = torch.tensor(columns, device=model.device)
    mask = torch.arange(ids.shape[1])[None] >= torch.from_numpy(steps.pad)[:, None]
    mask = mask.long().to(model.device)
    cache = None
    for step in range(steps.n):
        steps.now, steps.width = step, ids.shape[1]
        position = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.no_grad(), ExitStack() as hooks:
            hooks.enter_context(tapped(watchers, len(prompts)))
            hooks.enter_context(routed(cores))
            out = model.network(
                input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
            )
        cache, logits = out.past_key_values, out.logits[:, -1]
        if (lost := logits.isnan().any(-1)).any():
            raise InterpError(
                f"The logits of step {step} are not numbers for prompts {lost.nonzero()[:, 0].tolist()}: an edit "
                "left a query without keys, or drove a state to infinity."
            )
        token = _choose(logits, temperature, generator)
        yield token, logits
        ids = token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


class _Steps:
    """The edits of each step: prompts are padded on the left here, and later steps hold one token."""

    def __init__(
        self, model: LanguageModel, prompts: Prompts, edits: Sequence[Edit], sites: Sequence[Site], n_steps: int
    ) -> None:
        if n_steps < 1:
            raise InterpError(f"max_new_tokens={n_steps}: at least 1.")
        if model.runner is not None:
            raise InterpError(
                f"{model.name} runs through nnsight, whose own `generate` serves it; load the network itself."
            )
        self.now, self.width, self.n = 0, 0, n_steps
        self.lengths = prompts.lengths.cpu().numpy()
        self.pad = self.lengths.max() - self.lengths
        self.keys = KeyAxis(prompts, n_steps - 1)
        for edit in edits:
            steps = None if edit.when is None or edit.when.steps is None else set(edit.when.steps)
            if edit.when is not None and (edit.when.timesteps, edit.when.sigmas, edit.when.branch) != (
                None,
                None,
                None,
            ):
                raise InterpError(f"The edit at {edit.site}: a generated token has no timestep, sigma or branch.")
            if steps is not None and (not steps or min(steps) < 0 or max(steps) >= n_steps):
                raise InterpError(f"The edit at {edit.site} names steps {sorted(steps)}; there are 0 to {n_steps - 1}.")
            if edit.positions is not None and steps is not None and 0 not in steps:
                raise InterpError(
                    f"The edit at {edit.site} has positions of the prompt, read by step 0 only, not {sorted(steps)}."
                )
        self._plans = [self._compiled(model, edits, step) for step in range(n_steps)]
        everywhere = dict.fromkeys(site for plan in self._plans for site in plan.sites)
        self.places = _SteppedPlaces(self, everywhere, {site.all_heads for site in sites})

    def _compiled(self, model: LanguageModel, edits: Sequence[Edit], step: int) -> Plan:
        acting = [
            replace(e, when=None) for e in edits if e.when is None or e.when.steps is None or step in e.when.steps
        ]
        if step:  # the text so far, of which the last token is read
            acting = [replace(edit, positions=-1) for edit in acting if edit.positions is None]
        return compile_variants(model, _grown(self.keys.prompts, step), [acting], keys=self.keys)

    @property
    def plan(self) -> Plan:
        """What acts at the current step, at positions of each prompt and its new tokens."""
        return self._plans[self.now]

    @property
    def read(self) -> np.ndarray:
        """Number of tokens of each row that the current step reads: its last columns."""
        return np.ones_like(self.lengths) if self.now else self.lengths

    @property
    def first(self) -> np.ndarray:
        """Position of the first of them."""
        return self.lengths + self.now - self.read

    def token(self, op: Ops) -> np.ndarray:
        """Index of each entry in the flattened [batch · pos] tokens of the current step."""
        first_column = self.width - self.read[op.example]
        return op.example * self.width + first_column + op.position - self.first[op.example]


def _grown(prompts: Prompts, new: int) -> Prompts:
    """The prompts with so many tokens yet unknown behind each."""
    tokens = tuple((*row, *["…"] * new) for row in prompts.tokens)
    return Prompts(F.pad(prompts.ids, (0, new)), prompts.lengths + new, tokens)


class _SteppedPlaces(Places):
    """`Places`, with the edits of the current step, keeping the last token of each."""

    def __init__(self, steps: _Steps, everywhere: dict[Site, None], wanted: set[Site]) -> None:
        super().__init__(Plan(steps.keys.prompts, 1, dict.fromkeys(everywhere, ())), wanted, {}, 0)
        self.steps = steps
        self.rows: dict[Site, list[Tensor]] = {site: [] for site in wanted}
        """[batch, …] of each wanted site, step after step."""

    def visit(self, site: Site, x: Tensor) -> Tensor | None:
        """Edit and keep one [batch, pos, …] activation of the current step."""
        ops = self.steps.plan.sites.get(site, ())
        for op in ops:
            x = op.apply(x.flatten(0, 1), self.steps.token(op)).view(x.shape)
        if site in self.wanted:
            self.rows[site].append(x[:, -1].clone())
        return x if ops else None

    def _core(self, layer: int, attn: torch.nn.Module) -> Core:
        """Attention of the tokens that are read, to cached keys: a segment of one row for each prompt."""
        own = attn.config

        def core(
            _module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **how: Any
        ) -> Tensor:
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
            read, segments = self._segments(query.device)
            new_key, new_value = (t[:, -self.steps.width :] for t in (key, value))
            cached_key, cached_value = (self._cached(t[:, : -self.steps.width]) for t in (key, value))
            for site in (Site("attn_scores", layer), Site("attn_pattern", layer)):
                if site in self.wanted:
                    nothing = -torch.inf if site.part == "attn_scores" else 0.0
                    shape = (len(query), query.shape[2], self.steps.keys.width)
                    self.rows[site].append(query.new_full(shape, nothing))
            z = segment_attention(
                query[read], new_key[read], new_value[read], cached_key, cached_value, segments,
                edit_scores=lambda segment, x: self._of_row(Site("attn_scores", layer), segment, x),
                edit_pattern=lambda segment, x: self._of_row(Site("attn_pattern", layer), segment, x),
                **attention_options(own, how),
            )  # fmt: skip
            return query.new_zeros(query.shape).index_put(read, z)

        return core

    def _segments(self, device: torch.device) -> tuple[tuple[Tensor, Tensor], list[Segment]]:
        """(row, column) of every token that is read, without the padding, and a segment for each row."""
        first, length = self.steps.first, self.steps.read
        begin = np.cumsum(length) - length
        row, column = np.nonzero(np.arange(self.steps.width) >= self.steps.width - length[:, None])
        segments = [
            Segment(slice(int(b), int(b + n)), 1, int(start), int(n), example)
            for example, (b, n, start) in enumerate(zip(begin, length, first, strict=True))
        ]
        return (torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)), segments

    def _cached(self, x: Tensor) -> Tensor:
        """Keys or values of earlier steps at their positions in each prompt and its new tokens."""
        # A layer with a sliding window has dropped the oldest columns; no query of this step can see those
        # positions, nor those that a shorter prompt does not have yet, so any number may stand there.
        position = torch.arange(int(self.steps.first.max()), device=x.device)
        dropped = len(position) - x.shape[1]
        pad = torch.from_numpy(self.steps.pad).to(x.device)
        column = (position + pad[:, None] - dropped).clamp(0, max(x.shape[1] - 1, 0))
        return x[torch.arange(len(x), device=x.device)[:, None], column]

    def _of_row(self, site: Site, segment: Segment, x: Tensor) -> Tensor:
        """Edit and keep the [1, head, query, key] scores or weights of one prompt."""
        by_query = x[0].transpose(0, 1)
        for op in self.steps.plan.sites.get(site, ()):
            own = op.select(op.example == segment.example)
            if len(own):
                by_query = own.apply(by_query, own.position - segment.start)
        if site in self.wanted:
            self.rows[site][-1][segment.example, :, : by_query.shape[-1]] = by_query[-1]
        return by_query.transpose(0, 1)[None]
