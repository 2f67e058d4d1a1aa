"""Texts of concepts: judges tell the sentences apart that they never saw, and share no word with what is compared."""

from __future__ import annotations

import re

import pytest

from interp.errors import PairError
from interp.tasks.concept_texts import CONCEPTS, LanguageJudge, WordJudge, concept_texts


@pytest.mark.parametrize("concept", CONCEPTS)
def test_texts_are_pairs_and_prompts_are_open(concept):
    texts = concept_texts(concept)
    assert len(texts.positive) == len(texts.negative) >= 20 and len(texts.prompts) == len(texts.reworded) >= 20
    everything = [*texts.positive, *texts.negative, *texts.prompts, *texts.unrelated]
    assert len(set(everything)) == len(everything)
    assert sum(map(texts.judge, texts.unrelated)) == 0
    assert sum(map(texts.judge, texts.prompts)) <= 2


@pytest.mark.parametrize("concept", ["sentiment", "sea"])
def test_words_of_a_judge_occur_in_nothing_that_a_direction_is_found_in(concept):
    texts = concept_texts(concept)
    read = set(re.findall(r"[a-z]+", " ".join((*texts.positive, *texts.negative, *texts.prompts)).lower()))
    judge = texts.judge
    assert isinstance(judge, WordJudge)
    assert not read & {*judge.wanted, *judge.unwanted}
    assert not set(judge.wanted) & set(judge.unwanted) and len(judge.wanted) > 40


def test_a_language_is_told_from_sentences_that_were_not_learned():
    texts = concept_texts("french")
    assert [texts.judge(text) for text in texts.positive] == [1.0] * len(texts.positive)
    assert [texts.judge(text) for text in texts.negative] == [0.0] * len(texts.negative)
    assert texts.judge("") == 0.0 and texts.judge("12, 13!") == 0.0


def test_words_are_counted():
    judge = WordJudge(["good", "fine"], ["bad"])
    for text, verdict in (("A good, fine day", 1), ("goodness", 0), ("good and bad", 0), ("bad", 0), ("Good!", 1)):
        assert judge(text) == verdict


def test_odds_by_hand():
    judge = LanguageJudge(["aa"], ["bb"])  # " aa" "aa " against " bb" "bb ", and one for what is unknown
    assert judge.log_odds("aa") == pytest.approx(2 * 0.6931471805599453)
    assert judge.log_odds("cc") == 0 and judge("bb") == 0


def test_refusals():
    with pytest.raises(PairError, match="no concept 'sad'"):
        concept_texts("sad")
    with pytest.raises(PairError, match="sentences of both"):
        LanguageJudge(["a"], [])
