"""Texts of concepts: judges tell the sentences apart that they never saw, and share no word with what is compared."""

from __future__ import annotations

import math
import re

import pytest

from interp.errors import PairError
from interp.tasks.concept_texts import CONCEPTS, SPLITS, LanguageJudge, WordJudge, concept_texts


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("concept", CONCEPTS)
def test_texts_are_pairs_and_prompts_are_open(concept, split):
    texts = concept_texts(concept, split)
    assert len(texts.positive) == len(texts.negative) >= 20 and len(texts.prompts) == len(texts.reworded) >= 20
    everything = [*texts.positive, *texts.negative, *texts.prompts, *texts.unrelated]
    assert len(set(everything)) == len(everything)
    assert sum(map(texts.judge, texts.unrelated)) == 0
    assert sum(map(texts.judge, texts.prompts)) <= 2


@pytest.mark.parametrize("concept", CONCEPTS)
def test_what_is_chosen_on_is_not_what_is_told(concept):
    chosen_on, told = (concept_texts(concept, split) for split in ("development", "held out"))
    assert not set(chosen_on.prompts) & set(told.prompts) and len(told.prompts) >= 40
    assert not set(chosen_on.unrelated) & set(told.unrelated)
    assert (chosen_on.positive, chosen_on.negative) == (told.positive, told.negative)


def stem(word):
    """Crude: endings go as long as three letters stay, in either spelling."""
    word, before = word.replace("our", "or"), ""
    while before != word:
        before = word
        for end in ("ness", "ment", "ful", "ing", "ies", "ers", "er", "ed", "es", "ly", "al", "s", "e", "y", "d"):
            if word.endswith(end) and len(word) - len(end) >= 3:
                word = word[: -len(end)]
                break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def test_other_forms_of_a_word_are_found_out():
    pairs = "love loved, enjoyed enjoys, thrilling thrilled, poor poorly, problems problem, sail sails, tides tide"
    for pair in f"{pairs}, harbor harbour".split(", "):
        one, other = map(stem, pair.split())
        assert one == other
    assert stem("good") != stem("gold")


@pytest.mark.parametrize("concept", ["sentiment", "sea"])
def test_words_of_a_judge_occur_in_nothing_that_a_direction_is_found_in(concept):
    texts = concept_texts(concept)
    prompts = (*texts.prompts, *concept_texts(concept, "development").prompts)
    read = re.findall(r"[a-z]+", " ".join((*texts.positive, *texts.negative, *prompts)).lower())
    judge = texts.judge
    assert isinstance(judge, WordJudge)
    assert not set(map(stem, read)) & set(map(stem, (*judge.wanted, *judge.unwanted)))
    assert not set(judge.wanted) & set(judge.unwanted) and len(judge.wanted) > 40


def test_a_language_is_told_from_sentences_that_were_not_learned():
    texts = concept_texts("french")
    assert sum(map(texts.judge, texts.positive)) >= len(texts.positive) - 1
    assert [texts.judge(text) for text in texts.negative] == [0.0] * len(texts.negative)
    for text in (
        "", "12, 13!", "C C C C", "la la la la la la", "<|endoftext|>", "quid pro quo", "ABC DEF GHI JKL MNO",
        "El perro come en la cocina con los niños.", "No sé dónde está la biblioteca",
        "Oggi andiamo al mare con tutta la famiglia", "Hoje vamos à praia com toda a família",
        "Ich weiß nicht, wo die Bibliothek ist",
    ):  # fmt: skip
        assert texts.judge(text) == 0.0, text
    for text in ("Je ne sais pas.", "une femme qui marchait dans la rue avec son chien", "et elle est partie."):
        assert texts.judge(text) == 1.0, text


def test_words_are_counted():
    judge = WordJudge(["good", "fine"], ["bad"])
    for text, verdict in (("A good, fine day", 1), ("goodness", 0), ("good and bad", 0), ("bad", 0), ("Good!", 1)):
        assert judge(text) == verdict


def test_odds_by_hand():
    judge = LanguageJudge(["aa"], ["bb"], ["aa cc"])  # " aa" "aa " against " bb" "bb ", and both and two others
    # 6 are known, and one stands for the rest: 1/4 + 1/14 against 1/14; against 1/8 + 1/14.
    assert LanguageJudge(["aa"], ["bb"]).log_odds("aa") == pytest.approx(2 * math.log((1 / 4 + 1 / 10) * 10))
    assert judge.log_odds("aa aa aa") == judge.log_odds("aa") == pytest.approx(2 * math.log(9 / 28 / (11 / 56)))
    assert judge.log_odds("dd") == 0 and judge("aa") == judge("bb") == 0


def test_refusals():
    with pytest.raises(PairError, match="no concept 'sad'"):
        concept_texts("sad")
    with pytest.raises(PairError, match="no split 'train'"):
        concept_texts("sea", "train")
    for others in ([], [[]]):
        with pytest.raises(PairError, match="at least one other"):
            LanguageJudge(["a"], *others)
