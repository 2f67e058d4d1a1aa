"""`generate`: continue prompts with edits at work, at chosen steps.

Step 0 reads the prompt; step `k` reads the k-th new token. What an edit changes stays changed: later steps
see it through the cached keys and values, exactly as if the whole text were run with the edit at that
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InterpError, SiteError
from interp.interventions.edits import Edit
from interp.interventions.plan import Ops, Plan, compile_variants
from interp.interventions.run import Captures, Places, capture_sites
from interp.models.hooks import tapped
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts, from_token_lists
from interp.models.site import ATTENTION_PARTS, Site


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """New tokens, and what was captured while they were made.

    Attributes:
        tokens: [batch, step]; `tokens[:, k]` was chosen from what step `k` read.
        texts: the new tokens as text.
        logits: [batch, step, d_vocab], from which each token was chosen.
        activations: of each site, at the last token that each step read: [batch, step, …].
    """

    prompts: Prompts
    tokens: Int[Tensor, "batch step"]
    texts: tuple[str, ...]
    logits: Float[Tensor, "batch step d_vocab"]
    activations: dict[Site, Tensor]


@torch.no_grad()
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
        edits: an edit with `positions` names tokens of the prompt, and acts at step 0. One without acts on
            every token that is read: the prompt's at step 0, then each new one; `when` chooses steps.
        capture: as in `run`.
        temperature: 0 takes the most likely token; otherwise tokens are drawn, by `seed`.

    Raises:
        InterpError: steps that do not happen, or that an edit with positions cannot act at.
        SiteError: attention scores and patterns, which are cut into cached pieces here.
    """
    prompts = model.prompts(inputs)
    sites = capture_sites(model, capture)
    if max_new_tokens < 1:
        raise InterpError(f"max_new_tokens={max_new_tokens}: at least 1.")
    if model.runner is not None:
        raise InterpError(
            f"{model.name} runs through nnsight, whose own `generate` serves it; load the network itself."
        )
    steps = _Steps(model, prompts, edits, sites, max_new_tokens)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    columns = [
        [0] * int(pad) + row[:n] for pad, row, n in zip(steps.pad, prompts.ids.tolist(), steps.lengths, strict=True)
    ]
    ids = torch.tensor(columns, device=model.device)
    mask = torch.arange(ids.shape[1])[None] >= torch.from_numpy(steps.pad)[:, None]
    mask = mask.long().to(model.device)
    cache, tokens, logits = None, [], []
    with tapped(steps.watchers(), len(prompts)):
        for step in range(max_new_tokens):
            steps.now, steps.width = step, ids.shape[1]
            position = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            out = model.network(
                input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            logits.append(out.logits[:, -1])
            tokens.append(_choose(logits[-1], temperature, generator))
            ids = tokens[-1][:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    new = torch.stack(tokens, 1)
    texts = tuple(model.tokenizer.decode(row) for row in new.tolist()) if model.tokenizer else ()
    whole = {site: torch.stack(steps.kept[site.all_heads], 1) for site in sites}
    picked = {s: x if s.head is None else x.select(2, s.head) for s, x in whole.items()}
    return Generation(prompts, new, texts, torch.stack(logits, 1), picked)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


class _Steps:
    """The edits of each step: prompts are padded on the left here, and later steps hold one token."""

    def __init__(
        self, model: LanguageModel, prompts: Prompts, edits: Sequence[Edit], sites: Sequence[Site], n_steps: int
    ) -> None:
        self.model, self.now, self.width = model, 0, 0
        self.lengths = prompts.lengths.cpu().numpy()
        self.pad = self.lengths.max() - self.lengths
        self.wanted = {site.all_heads for site in sites}
        self.kept: dict[Site, list[Tensor]] = {site: [] for site in self.wanted}
        for place in [*(edit.site for edit in edits), *sites]:
            if place.part in ATTENTION_PARTS:
                raise SiteError(
                    f"{place}: attention over cached keys is not served while generating; use run on the whole text."
                )
        for edit in edits:
            steps = None if edit.when is None else set(edit.when.steps)
            if steps is not None and (not steps or min(steps) < 0 or max(steps) >= n_steps):
                raise InterpError(f"The edit at {edit.site} names steps {sorted(steps)}; there are 0 to {n_steps - 1}.")
            if edit.positions is not None and steps is not None and 0 not in steps:
                raise InterpError(
                    f"The edit at {edit.site} has positions of the prompt, read by step 0 only, not {sorted(steps)}."
                )
        one_token = from_token_lists(None, [[0]] * len(prompts), device=model.device)
        self._at_prompt = [_timeless(e) for e in edits if e.when is None or 0 in e.when.steps]
        self._later = [e for e in edits if e.positions is None]
        self._prompt_plan = compile_variants(model, prompts, [self._at_prompt])
        self._plans = {
            step: compile_variants(
                model, one_token, [[_timeless(e) for e in self._later if e.when is None or step in e.when.steps]]
            )
            for step in range(1, n_steps)
        }

    @property
    def plan(self) -> Plan:
        return self._plans[self.now] if self.now else self._prompt_plan

    def watchers(self):
        sites = dict.fromkeys([s for plan in (self._prompt_plan, *self._plans.values()) for s in plan.sites])
        whole = Plan(self._prompt_plan.prompts, 1, dict.fromkeys(sites, ()))
        return _SteppedPlaces(self, whole).watchers(self.model)

    def token(self, op: Ops) -> np.ndarray:
        return op.example * self.width + op.position + (0 if self.now else self.pad[op.example])


class _SteppedPlaces(Places):
    """`Places`, with the edits of the current step, keeping the last token of each."""

    def __init__(self, steps: _Steps, whole: Plan) -> None:
        super().__init__(whole, steps.wanted, {}, 0)
        self.steps = steps

    def visit(self, site: Site, x: Tensor) -> Tensor | None:
        """Edit and keep one [batch, pos, …] activation of the current step."""
        ops = self.steps.plan.sites.get(site, ())
        for op in ops:
            x = op.apply(x.flatten(0, 1), self.steps.token(op)).view(x.shape)
        if site in self.wanted:
            self.steps.kept[site].append(x[:, -1].clone())
        return x if ops else None


def _timeless(edit: Edit) -> Edit:
    return replace(edit, when=None)
