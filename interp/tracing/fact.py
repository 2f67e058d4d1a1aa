"""A fact to trace: a prompt, where its subject is, and the answer whose probability is measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import PairError
from interp.interventions.run import run
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts, from_token_lists
from interp.tasks.metrics import LogProbability, Metric, Probability

Answer = str | Sequence[str] | None
"""The text that should follow; several texts for a question with many answers; `None`: the model's own."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One prompt, tokenised together with what its metric reads.

    Attributes:
        ids: the prompt's tokens, and all but the last token of a longer answer.
        n_prompt: tokens of the prompt alone: the positions of its trace.
        subject: (first, last) token of the subject.
        answers: token ids: one sequence, or several single tokens.
    """

    prompt: str
    ids: tuple[int, ...]
    n_prompt: int
    subject: tuple[int, int]
    answers: tuple[tuple[int, ...], ...]
    answer_text: tuple[str, ...]

    @classmethod
    def of(cls, model: LanguageModel, prompt: str, subject: str, answer: Answer) -> Fact:
        """Find the subject's tokens and the answer's.

        Raises:
            PairError: an empty prompt; a subject that does not occur, or occurs twice; an answer that is
                no continuation of the prompt's tokens; alternatives of more than one token.
        """
        ids = model.prompts(prompt).ids[0].tolist()
        first, last = subject_tokens(model, prompt, subject)
        if answer is None:
            token = int(run(model, prompt).last_logits()[0].argmax())
            text = model.tokenizer.decode([token])
            return cls(prompt, tuple(ids), len(ids), (first, last), ((token,),), (text,))
        texts = (answer,) if isinstance(answer, str) else tuple(answer)
        answers = tuple(_continuation(model, prompt, ids, text) for text in texts)
        if not answers or (answers[1:] and any(len(a) > 1 for a in answers)):
            raise PairError(
                f"Alternative answers must be one token each; got {dict(zip(texts, answers, strict=True))}."
            )
        return cls(prompt, (*ids, *answers[0][:-1]), len(ids), (first, last), answers, texts)


def subject_tokens(model: LanguageModel, prompt: str, subject: str) -> tuple[int, int]:
    """(first, last) token that overlaps the subject's text.

    Raises:
        PairError: the subject does not occur in the prompt, or more than once.
    """
    found = [match.start() for match in re.finditer(re.escape(subject), prompt)] if subject else []
    if len(found) != 1:
        times = "does not occur" if not found else f"occurs {len(found)} times"
        raise PairError(f"The subject {subject!r} {times} in {prompt!r}; it must occur exactly once, spelt as there.")
    start, end = found[0], found[0] + len(subject)
    spans = model.tokenizer(prompt, return_offsets_mapping=True).offset_mapping
    inside = [i for i, (a, b) in enumerate(spans) if prompt[max(a, start) : min(b, end)].strip()]
    return inside[0], inside[-1]


def _continuation(model: LanguageModel, prompt: str, ids: list[int], answer: str) -> tuple[int, ...]:
    whole = model.prompts(prompt + answer).ids[0].tolist() if answer else ids
    if whole[: len(ids)] != ids or len(whole) == len(ids):
        tokens = model.prompts(prompt + answer).tokens[0]
        hint = f" Did you mean {' ' + answer!r}?" if answer and not answer.startswith(" ") else ""
        raise PairError(
            f"The answer {answer!r} does not continue the prompt's tokens: together they read {list(tokens)}.{hint}"
        )
    return tuple(whole[len(ids) :])


def as_prompts(model: LanguageModel, facts: Sequence[Fact]) -> Prompts:
    """The facts' tokens as a batch."""
    return from_token_lists(model.tokenizer, [fact.ids for fact in facts], device=model.device)


def answer_metric(facts: Sequence[Fact], name: str, device: torch.device) -> Metric:
    """(Log-)probability of each fact's answer, teacher-forced over the tokens of a longer one."""
    steps = max(1 if f.answers[1:] else len(f.answers[0]) for f in facts)
    kinds = max(len(f.answers) for f in facts)
    tokens = torch.full((len(facts), steps, kinds), -1)
    for row, fact in zip(tokens, facts, strict=True):
        for kind, answer in enumerate(fact.answers):
            row[steps - len(answer) :, kind] = torch.tensor(answer)
    ends = torch.tensor([len(fact.ids) for fact in facts])
    # A shorter answer's padding reads some earlier token, and counts nothing.
    positions: Int[Tensor, "batch read"] = (ends[:, None] - steps + torch.arange(steps)).clamp(min=0)
    metric = Probability if name == "probability" else LogProbability
    return metric(tokens.to(device), positions=positions.to(device))
