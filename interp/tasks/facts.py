"""Facts: "The Eiffel Tower is located in the city of" → " Paris".

Facts that a small model knows, so that where and how it recalls them can be asked. They were mined by
`interp.tasks.mine_facts`: each is completed correctly, greedily, by SmolLM2-135M-Instruct on the bare prompt.
Another model may not know them all, and another tokenizer may make the prompts of a pair unequally long
(`Task.encode` then refuses): mine again for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from random import Random

from interp.errors import PairError
from interp.tasks.pairs import PromptPair, Task, check_choice, check_count, part_of, split_name


def facts(n: int | None = None, seed: int = 0, relations: Sequence[str] | None = None, split: str = "all") -> Task:
    """Pairs for factual recall.

    The corrupted prompt asks the same of another subject, of as many tokens, whose answer the model knows as
    well: `answer` and `wrong_answer` are the two answers, `subject` and `corrupted_subject` the two subjects
    as they stand in the prompts, and `label` is the relation. No subject contains its answer.

    Args:
        n: number of pairs, different facts drawn at random; `None` means all, in the order of the file.
        seed: draws the facts and, for each, which of its possible partners it is paired with.
        relations: only facts of these; see `fact_relations()`. `None` means all.
        split: `"train"` and `"held out"` share no subject.

    Raises:
        PairError: an unknown relation or `split`, no relation, or an `n` below 1 or above the number of facts.

    Source: after the CounterFact set of Meng et al. 2022 (arXiv:2202.05262) in form; the facts are our own,
    simple enough for a model of 135M parameters. They corrupt the subject with noise, which `tracing` does
    from the clean prompt alone; the pairs here replace it by another subject.
    """
    rows = _load()
    chosen = list(range(len(rows)))
    if relations is not None:
        wanted = [relations] if isinstance(relations, str) else list(relations)
        for relation in wanted:
            check_choice("relation", relation, fact_relations())
        chosen = [row for row in chosen if rows[row]["relation"] in wanted]
    if not chosen:
        raise PairError(f"No relation was asked for. Allowed: {', '.join(fact_relations())}.")
    partners = _partners(rows, split)
    chosen = [row for row in chosen if partners[row]]
    random = Random(seed)
    if n is not None:
        check_count(n)
        if n > len(chosen):
            raise PairError(f"There are {len(chosen)} facts of these relations and this split; got n={n}.")
        chosen = random.sample(chosen, n)
    pairs = tuple(_pair(rows[row], rows[random.choice(partners[row])]) for row in chosen)
    source = "interp.tasks.mine_facts, after Meng et al. 2022, arXiv:2202.05262"
    return Task(split_name("facts", split), pairs, source, seed)


def fact_relations() -> tuple[str, ...]:
    """The relations of the shipped facts."""
    return tuple(dict.fromkeys(row["relation"] for row in _load()))


def fill(template: str, subject: str) -> tuple[str, str]:
    """The prompt, and the subject as it is written there: a capital letter opens a sentence."""
    if template.startswith("{}"):
        subject = subject[0].upper() + subject[1:]
    return template.format(subject), subject


def _partners(rows: list[dict], split: str) -> list[list[int]]:
    """Of each fact, the rows that it may be paired with: none if its subject is not in the split."""
    inside = set(part_of(tuple(dict.fromkeys(row["subject"] for row in rows)), split))
    return [
        [other for other in row["partners"] if rows[other]["subject"] in inside] if row["subject"] in inside else []
        for row in rows
    ]


def _pair(fact: dict, partner: dict) -> PromptPair:
    clean, subject = fill(fact["template"], fact["subject"])
    corrupted, corrupted_subject = fill(partner["template"], partner["subject"])
    return PromptPair(
        clean=clean,
        corrupted=corrupted,
        answer=fact["answer"],
        wrong_answer=partner["answer"],
        subject=subject,
        corrupted_subject=corrupted_subject,
        label=fact["relation"],
    )


@cache
def _load() -> list[dict]:
    """The rows of the data file; `partners` are row numbers."""
    return json.loads((files("interp.tasks") / "data" / "facts.json").read_text(encoding="utf-8"))["facts"]
