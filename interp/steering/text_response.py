"""Steering of a language model, judged: `text_dose_response`.

Prompts are continued at every dose of every method, with the same draws, and

- *success* is what a judge of texts says of each continuation: a function from text to a number in [0, 1], which must
  know nothing of the direction (`interp.tasks.concept_texts` has some).
- *damage* is the KL divergence KL(p ‖ p_steered), in nats per token, of the model's next-token distributions on texts
  that have nothing to do with the concept, steered at every token just as the continuations are.
- *garbage*: a continuation that repeats itself: less than half of its three-word sequences are different ones.
- *distance*: of the edited states at new tokens from unedited ones, where a `Manifold` is given.

Beside them: `perplexity` on the unrelated texts, and `fluency`, the unsteered model's surprise at each continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.edits import Edit
from interp.interventions.generate import generate
from interp.interventions.run import run
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.progress import Progress, silent
from interp.results import provenance
from interp.steering.measured import Manifold
from interp.steering.response import DoseResponse, Method, checked_doses, edits_at, response_dataset

Judge: TypeAlias = Callable[[str], float]
_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class TextGoal:
    """What shall be steered, and where nothing should change.

    Attributes:
        name: of the target, for titles.
        prompts: to be continued.
        judge: 1 where a continuation shows the target, 0 where not.
        unrelated: texts that have nothing to do with it.
        reworded: the prompts of the prompt edit, which ask for the target in words; no prompt edit if not given.

    Raises:
        PairError: no prompts or no unrelated texts; reworded prompts of another number.
    """

    name: str
    prompts: tuple[str, ...]
    judge: Judge
    unrelated: tuple[str, ...]
    reworded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts or not self.unrelated:
            raise PairError(f"{self.name}: {len(self.prompts)} prompts and {len(self.unrelated)} unrelated texts.")
        if self.reworded and len(self.reworded) != len(self.prompts):
            raise PairError(f"{self.name}: {len(self.reworded)} reworded prompts for {len(self.prompts)}.")


def text_dose_response(
    model: LanguageModel,
    goal: TextGoal,
    methods: Mapping[str, Method],
    doses: Sequence[float],
    *,
    manifolds: Sequence[Manifold] = (),
    limit: float = 0.25,
    max_new_tokens: int = 30,
    temperature: float = 0.7,
    seed: int = 0,
    progress: Progress = silent,
) -> DoseResponse:
    """Continue, judge and compare at every dose of every method.

    `.data` also holds `perplexity` [way, dose] on the unrelated texts, `fluency_each` [way, dose, example] (nats
    per token of the continuation, by the unsteered model) and `text` [way, dose, example].

    Args:
        methods: by name; the prompt edit is added where the goal has reworded prompts. It changes no unrelated text, so
            its damage is NaN.
        doses: 0 is worth asking for: what is not steered.
        limit: of the damage, for `best`.
        temperature: of the draws; 0 takes the most likely token.

    Raises:
        InterpError: doses and methods as `checked_doses`; a judge that answers outside [0, 1]; as `generate`.
    """
    numbers = checked_doses(doses, methods)
    plans: dict[str, Method | None] = dict(methods)
    if goal.reworded:
        plans["prompt edit"] = None
    shape, n = (len(plans), len(numbers)), len(goal.prompts)
    each = {name: np.full((*shape, n), np.nan) for name in ("success", "garbage", "distance")}
    each["damage"] = np.full((*shape, len(goal.unrelated)), np.nan)
    fluency, perplexity = np.full((*shape, n), np.nan), np.full(shape, np.nan)
    texts = np.full((*shape, n), "", dtype=object)
    unrelated = model.prompts(list(goal.unrelated))
    plain = _log_probabilities(model, unrelated, ())
    work = [(m, d) for m, method in enumerate(plans.values()) for d in range(len(numbers) if callable(method) else 1)]
    for m, d in progress(work, f"{n} continuations each"):
        method = list(plans.values())[m]
        edits = [] if method is None else edits_at(method, numbers[d])
        at = (m, d) if callable(method) else (m, slice(None))
        inputs = goal.reworded if method is None else goal.prompts
        sites = [one.site for one in manifolds]
        made = generate(
            model, list(inputs), edits, sites, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        texts[at] = list(made.texts)
        each["success"][at] = [_judged(goal.judge, text) for text in made.texts]
        each["garbage"][at] = [float(repeats(text)) for text in made.texts]
        if manifolds:
            away = [one.distance(made.activations[one.site].flatten(0, 1)[None])[0] for one in manifolds]
            each["distance"][at] = torch.stack(away).mean(0).unflatten(0, (n, -1)).mean(1).cpu().numpy()
        fluency[at] = _surprise(model, model.prompts(list(goal.prompts)), made.tokens)
        if method is not None:
            steered = _log_probabilities(model, unrelated, edits)
            each["damage"][at] = [_kl(p, q) for p, q in zip(plain, steered, strict=True)]
            perplexity[at] = _perplexity(unrelated, steered)
    axes = ("way", "dose")
    extra = {
        "perplexity": (axes, perplexity, {"unit": "perplexity"}),
        "fluency_each": ((*axes, "example"), fluency, {"unit": "nats per token"}),
        "text": ((*axes, "example"), texts.astype(str)),
    }
    share = "share of continuations"
    units = {"success": share, "garbage": share, "distance": "× typical", "damage": "nats per token on unrelated texts"}
    record = provenance(
        experiment="dose response of texts", model=model.name, weights=model.weights_hash, target=goal.name,
        prompts=list(goal.prompts), unrelated=list(goal.unrelated), max_new_tokens=max_new_tokens,
        temperature=temperature, limit=limit, seed=seed, n_attempted=n, n_scored=n, examples="continuations",
    )  # fmt: skip
    return DoseResponse(response_dataset(list(plans), numbers, each, units, extra, {}, seed), record)


def repeats(text: str) -> bool:
    """Whether fewer than half of a text's three-word sequences are different ones; a text of few words does not."""
    words = text.lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(triples) > 3 and len(set(triples)) < len(triples) / 2


def _judged(judge: Judge, text: str) -> float:
    value = float(judge(text))
    if not 0 <= value <= 1:
        raise InterpError(f"The judge says {value} of {text!r}; it must say a number from 0 to 1.")
    return value


@torch.no_grad()
def _log_probabilities(
    model: LanguageModel, prompts: Prompts, edits: Sequence[Edit]
) -> list[Float[Tensor, "pos d_vocab"]]:
    """Of the token behind each token of each prompt, in nats."""
    out: list[Tensor] = []
    for start in range(0, len(prompts), _AT_ONCE):
        some = prompts.select(range(start, min(start + _AT_ONCE, len(prompts))))
        if any(edit.rows is not None or isinstance(edit.positions, Tensor) for edit in edits):
            raise ShapeError("Edits of single rows or of positions row by row mean nothing on unrelated texts.")
        logits = run(model, some, edits).logits
        assert logits is not None
        out += [row[:n].log_softmax(-1) for row, n in zip(logits, some.lengths.tolist(), strict=True)]
    return out


def _kl(p: Tensor, q: Tensor) -> float:
    return float((p.exp() * (p - q)).sum(-1).mean())


def _perplexity(prompts: Prompts, log_probabilities: Sequence[Tensor]) -> float:
    """The exponential of the mean surprise over all tokens but the first of each text."""
    surprise = [
        -told[:-1].gather(1, ids[1 : len(told), None])[:, 0]
        for ids, told in zip(prompts.ids, log_probabilities, strict=True)
    ]
    return float(torch.cat(surprise).mean().exp())


def _surprise(model: LanguageModel, prompts: Prompts, tokens: Tensor) -> list[float]:
    """Nats per new token, by the unsteered model after the prompts."""
    from interp.models.prompts import from_token_lists

    rows = [
        [*ids[:length], *new]
        for ids, length, new in zip(prompts.ids.tolist(), prompts.lengths.tolist(), tokens.tolist(), strict=True)
    ]
    whole = from_token_lists(None, rows, device=model.device)
    told = _log_probabilities(model, whole, ())
    found = []
    for ids, one, length in zip(rows, told, prompts.lengths.tolist(), strict=True):
        new = torch.tensor(ids[length:], device=one.device)
        found.append(float(-one[length - 1 : -1].gather(1, new[:, None]).mean()))
    return found
