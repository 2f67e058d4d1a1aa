"""Steering of a language model, judged: `text_dose_response`.

Prompts are continued at every dose of every method, with the same draws, and

- *success* is what a judge of texts says of each continuation: a function from text to a number in [0, 1], which must
  know nothing of the direction (`interp.tasks.concept_texts` has some). A continuation ends at the first special token
  (of the text, of a turn in a conversation); what the model writes behind it is not judged.
- *damage* is the KL divergence KL(p ‖ p_steered), in nats per token, of the model's next-token distributions on texts
  that have nothing to do with the concept, steered at every token just as the continuations are. So methods are
  edits at every token, perhaps behind a gate: of edits at some positions or steps, damage could not be told.
- *garbage* (`is_garbage`): a continuation that repeats itself, salad of few words, or mostly no letters.
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

from interp.errors import InterpError, PairError
from interp.interventions.edits import Edit
from interp.interventions.generate import generate
from interp.interventions.run import run
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.progress import Progress, silent
from interp.results import provenance
from interp.steering.measured import Manifold
from interp.steering.response import PROMPT_EDIT, DoseResponse, Method, Planned, planned, response_dataset

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
        PairError: no prompts or no unrelated texts; one text that is no list; reworded prompts of another number.
    """

    name: str
    prompts: Sequence[str]
    judge: Judge
    unrelated: Sequence[str]
    reworded: Sequence[str] = ()

    def __post_init__(self) -> None:
        for texts in (self.prompts, self.unrelated, self.reworded):
            if isinstance(texts, str):
                raise PairError(f"{self.name}: one text, {texts[:40]!r}, would be read letter by letter; give a list.")
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
        InterpError: doses and methods as `planned`; edits at some places or steps only; a judge that answers outside
            [0, 1]; as `generate`.
    """
    numbers, plans = planned(methods, doses)
    for name, plan in plans.items():
        _check_everywhere(name, plan)
    if goal.reworded:
        plans[PROMPT_EDIT] = Planned(False, ([],))
    shape, n = (len(plans), len(numbers)), len(goal.prompts)
    each = {name: np.full((*shape, n), np.nan) for name in ("success", "garbage", "distance")}
    each["damage"] = np.full((*shape, len(goal.unrelated)), np.nan)
    fluency, perplexity = np.full((*shape, n), np.nan), np.full(shape, np.nan)
    texts = np.full((*shape, n), "", dtype=object)
    unrelated = model.prompts(list(goal.unrelated))
    plain = _log_probabilities(model, unrelated, ())
    work = [(m, name, d) for m, (name, plan) in enumerate(plans.items()) for d in range(len(plan.edits))]
    for m, name, d in progress(work, f"{n} continuations each"):
        edits, asked = plans[name].edits[d], name == PROMPT_EDIT
        at = (m, d) if plans[name].dosed else (m, slice(None))
        inputs = goal.reworded if asked else goal.prompts
        sites = [one.site for one in manifolds]
        made = generate(
            model, list(inputs), edits, sites, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        new = [_until_special(model, row) for row in made.tokens.tolist()]
        told = [model.tokenizer.decode(row) for row in new]
        texts[at] = told
        each["success"][at] = [_judged(goal.judge, text) for text in told]
        each["garbage"][at] = [float(is_garbage(text, row)) for text, row in zip(told, new, strict=True)]
        if manifolds:
            away = [one.distance(made.activations[one.site].flatten(0, 1)[None])[0] for one in manifolds]
            by_step = torch.stack(away).mean(0).unflatten(0, (n, -1)).cpu()
            # Step k reads token k − 1 of the continuation, step 0 the prompt's last.
            each["distance"][at] = [float(x[: len(row) + 1].mean()) for x, row in zip(by_step, new, strict=True)]
        fluency[at] = _surprise(model, model.prompts(list(goal.prompts)), new)
        if not asked:
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
    return DoseResponse(response_dataset(plans, numbers, each, units, extra, {}, seed), record)


def is_garbage(text: str, tokens: Sequence[int]) -> bool:
    """Whether a continuation is no text.

    - Fewer than half of its three-token sequences are different ones ("lalalala", "!!!!", a sentence repeated), or
    - of its last 24 words fewer than half are different ones (salad of a few words, in any order), or
    - fewer than half of its characters, blanks aside, are letters.

    An empty continuation is none, nor one too short to tell (fewer than 6 tokens, 8 words).
    """
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    words = text.lower().split()[-24:]
    letters, characters = sum(map(str.isalpha, text)), sum(not one.isspace() for one in text)
    return (
        (len(triples) > 3 and len(set(triples)) < len(triples) / 2)
        or (len(words) >= 8 and len(set(words)) < len(words) / 2)
        or (len(text) > 0 and letters * 2 < max(characters, 1))
    )


def _check_everywhere(name: str, plan: Planned) -> None:
    for edit in (edit for edits in plan.edits for edit in edits):
        if edit.positions is not None or edit.rows is not None or edit.when is not None:
            raise InterpError(
                f"Method {name!r} edits {edit.site} at some positions, rows or steps only. Damage is measured on "
                "unrelated texts at every token, where such an edit would act on few of them or on none; leave out "
                "`positions`, `rows` and `when` (a gate may stay)."
            )


def _until_special(model: LanguageModel, tokens: Sequence[int]) -> list[int]:
    """A continuation up to the first special token, which ends the text or the turn."""
    special = set(model.tokenizer.all_special_ids)
    end = next((i for i, token in enumerate(tokens) if token in special), len(tokens))
    return list(tokens[:end])


def _judged(judge: Judge, text: str) -> float:
    said = judge(text)
    try:
        value = float(said)
    except (TypeError, ValueError):
        value = np.nan
    if not 0 <= value <= 1:
        raise InterpError(f"The judge says {said!r} of {text!r}; it must say a number from 0 to 1.")
    return value


@torch.no_grad()
def _log_probabilities(
    model: LanguageModel, prompts: Prompts, edits: Sequence[Edit]
) -> list[Float[Tensor, "pos d_vocab"]]:
    """Of the token behind each token of each prompt, in nats."""
    out: list[Tensor] = []
    for start in range(0, len(prompts), _AT_ONCE):
        some = prompts.select(range(start, min(start + _AT_ONCE, len(prompts))))
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


def _surprise(model: LanguageModel, prompts: Prompts, tokens: Sequence[Sequence[int]]) -> list[float]:
    """Nats per new token, by the unsteered model after the prompts; NaN where there is none."""
    from interp.models.prompts import from_token_lists

    rows = [
        [*ids[:length], *new]
        for ids, length, new in zip(prompts.ids.tolist(), prompts.lengths.tolist(), tokens, strict=True)
    ]
    whole = from_token_lists(None, rows, device=model.device)
    told = _log_probabilities(model, whole, ())
    found = []
    for ids, one, length in zip(rows, told, prompts.lengths.tolist(), strict=True):
        new = torch.tensor(ids[length:], dtype=torch.long, device=one.device)
        found.append(float(-one[length - 1 : -1].gather(1, new[:, None]).mean()))  # NaN of none
    return found
