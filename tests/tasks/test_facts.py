"""The shipped facts, and the program that mines them."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from interp.errors import PairError
from interp.tasks import facts
from interp.tasks.facts import _load, fact_relations, fill
from interp.tasks.mine_facts import mine, read_candidates, write

ROWS = _load()


# --- the data file ----------------------------------------------------------------------------------------


def test_there_are_enough_facts_of_enough_relations():
    counts = Counter(row["relation"] for row in ROWS)
    assert len(ROWS) >= 200
    assert len(counts) >= 8
    assert min(counts.values()) >= 10
    assert set(counts) == set(fact_relations())


def test_every_partner_is_a_symmetric_replacement(tokenizer):
    lengths = [len(tokenizer(fill(row["template"], row["subject"])[0]).input_ids) for row in ROWS]
    for i, row in enumerate(ROWS):
        assert row["partners"], row
        for j in row["partners"]:
            other = ROWS[j]
            assert i in other["partners"]
            assert lengths[i] == lengths[j]
            assert (row["relation"], row["template"]) == (other["relation"], other["template"])
            assert row["answer"] != other["answer"]


def test_facts_are_different_candidates_with_their_answers_and_do_not_give_them_away():
    candidates = read_candidates()
    assert len({(row["relation"], row["subject"]) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        entry = candidates[row["relation"]]
        assert row["template"] in entry["templates"]
        assert entry["facts"][row["subject"]] == row["answer"]
        assert row["answer"].strip().casefold() not in row["subject"].casefold().split()
        assert 0 < row["probability"] <= 1
    assert sum(len(entry["facts"]) for entry in candidates.values()) >= 700


def test_prompts_read_as_sentences():
    """No article in the middle has a capital letter, none stands after a noun or another article."""
    for row in ROWS:
        prompt, _ = fill(row["template"], row["subject"])
        assert not re.search(r"[a-z,] (The|A|An) ", prompt), prompt
        assert not re.search(r"(?i)\b(the|a|an|landmark|company|food|figure) (the|a|an) ", prompt), prompt


# --- the task ---------------------------------------------------------------------------------------------


def test_all_facts_encode(model):
    task = facts()
    encoded = task.encode(model)
    assert len(task) == len(ROWS)
    assert (encoded.clean.ids != encoded.corrupted.ids).any(1).all()


def test_pairs_hold_the_facts_and_differ_in_the_subject_alone():
    by_prompt = {fill(row["template"], row["subject"])[0]: row for row in ROWS}
    for pair in facts(seed=3).pairs:
        clean, corrupted = by_prompt[pair.clean], by_prompt[pair.corrupted]
        assert (pair.answer, pair.wrong_answer) == (clean["answer"], corrupted["answer"])
        assert pair.label == clean["relation"] == corrupted["relation"]
        assert pair.clean.replace(pair.subject, pair.corrupted_subject, 1) == pair.corrupted


def test_the_eiffel_tower_is_in_paris():
    pairs = [pair for pair in facts().pairs if pair.clean == "The Eiffel Tower is located in the city of"]
    assert [pair.answer for pair in pairs] == [" Paris"]


def test_the_seed_draws_facts_and_partners():
    assert facts(20, seed=1) == facts(20, seed=1)
    assert facts(20, seed=1).pairs != facts(20, seed=2).pairs
    one, two = facts(seed=1), facts(seed=2)
    assert [pair.clean for pair in one.pairs] == [pair.clean for pair in two.pairs]
    assert [pair.corrupted for pair in one.pairs] != [pair.corrupted for pair in two.pairs]
    assert len({pair.clean for pair in facts(50, seed=4).pairs}) == 50


def test_relations_select():
    wanted = fact_relations()[:2]
    assert {pair.label for pair in facts(relations=wanted).pairs} == set(wanted)


def test_refusals():
    with pytest.raises(PairError, match=r"no relation 'country_capitol'. Did you mean 'country_capital'"):
        facts(relations=["country_capitol"])
    with pytest.raises(PairError, match=r"No relation was asked for. Allowed: country_capital"):
        facts(relations=[])
    with pytest.raises(PairError, match=r"There are .* facts of these relations and this split; got n=100000"):
        facts(100_000)
    with pytest.raises(PairError, match="at least 1; got n=0"):
        facts(0)


# --- mining -----------------------------------------------------------------------------------------------


class Oracle:
    """A network that continues the prompts it was told about, and says " the" after all others."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, known):
        self.vocabulary = len(tokenizer)
        self.other = tokenizer(" the").input_ids[0]
        self.known = {
            tuple(tokenizer(prompt).input_ids): tokenizer(word).input_ids[0] for prompt, word in known.items()
        }

    def __call__(self, input_ids, use_cache, logits_to_keep):
        logits = torch.zeros(len(input_ids), 1, self.vocabulary)
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, 0, self.known.get(tuple(ids), self.other)] = 20.0
        return SimpleNamespace(logits=logits)


def capitals(countries, template="The capital of {} is"):
    return {template.format(country): answer for country, answer in countries.items()}


COUNTRIES = {
    "France": " Paris", "Germany": " Berlin", "Italy": " Rome", "Spain": " Madrid", "Japan": " Tokyo",
    "Egypt": " Cairo", "Cuba": " Havana", "Peru": " Lima", "Greece": " Athens", "Austria": " Vienna",
}  # fmt: skip


def test_mining_keeps_what_the_model_completes_and_can_pair(tokenizer):
    answers = COUNTRIES | {"England": " London", "Mexico City": " Mexico", "Malaysia": " Kuala Lumpur"}
    candidates = {
        "capital": {"templates": ["The capital of {} is"], "facts": answers},
        "few": {"templates": ["{} is a kind of"], "facts": {"robin": " bird", "oak": " tree"}},
    }
    known = capitals(COUNTRIES) | {"Robin is a kind of": " bird", "Oak is a kind of": " tree"}
    known["The capital of Mexico City is"] = " Mexico"
    mined = mine(Oracle(tokenizer, known), tokenizer, candidates)
    # England is not known, Mexico City gives its answer away, Kuala Lumpur is no token, two are too few.
    assert [fact.subject for fact in mined] == list(COUNTRIES)
    assert all(fact.probability > 0.99 and fact.relation == "capital" for fact in mined)


def test_mining_drops_what_has_no_partner(tokenizer):
    answers = COUNTRIES | {"the former Yugoslavia": " Belgrade"}
    candidates = {"capital": {"templates": ["The capital of {} is"], "facts": answers}}
    mined = mine(Oracle(tokenizer, capitals(answers)), tokenizer, candidates)
    assert [fact.subject for fact in mined] == list(COUNTRIES)


def test_mining_asks_in_the_first_template_that_works(tokenizer):
    templates = ["In {}, the capital is", "The capital of {} is"]
    more = {"Sweden": " Stockholm", "Norway": " Oslo"}
    known = capitals(COUNTRIES) | capitals(COUNTRIES | more, templates[0])
    known = {k: v for k, v in known.items() if k != "In France, the capital is" and "In Spain" not in k}
    known.pop("The capital of Cuba is")
    candidates = {"capital": {"templates": templates, "facts": COUNTRIES | more}}
    asked = {fact.subject: fact.template for fact in mine(Oracle(tokenizer, known), tokenizer, candidates)}
    assert asked.pop("France") == asked.pop("Spain") == templates[1]
    assert set(asked.values()) == {templates[0]}
    assert len(asked) == len(COUNTRIES | more) - 2


def test_a_written_file_reads_back(tokenizer, tmp_path):
    import json

    candidates = {"capital": {"templates": ["The capital of {} is"], "facts": COUNTRIES}}
    mined = mine(Oracle(tokenizer, capitals(COUNTRIES)), tokenizer, candidates)
    write(mined, tmp_path / "facts.json", "an oracle")
    data = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
    assert data["model"] == "an oracle"
    assert data["facts"][0]["partners"] == list(range(1, 10))
