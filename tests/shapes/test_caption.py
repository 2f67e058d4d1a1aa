"""Captions: they say what the scene holds; the tokenizer reads every word of theirs and no other."""

from __future__ import annotations

from random import Random

import pytest

from interp.errors import PairError
from interp.shapes.caption import MAX_TOKENS, SYNONYMS, VOCABULARY, caption, full_caption, tokenizer
from interp.shapes.scene import (
    BACKGROUNDS,
    COLOUR_FAMILIES,
    COLOURS,
    SHAPE_FAMILIES,
    SHAPES,
    SIZES,
    VARIANTS,
    Object,
    Scene,
    sample_scenes,
)

SCENES = sample_scenes(400, seed=21)
FIRST = {second: first for first, second in SYNONYMS.items()}


def parse(text):
    """Background and the objects that a caption describes, by a grammar written down a second time."""
    words = [FIRST.get(word, word) for word in text.split()]
    background = None
    if "background" in words:
        at = words.index("background")
        background = words[at - 1]
        words = words[at + 2 :] if words[at + 1 :] and words[at + 1] == "with" else words[: at - 3]
    objects = []
    for phrase in " ".join(words).split(" and "):
        tokens = phrase.split()
        cell = " ".join(tokens[tokens.index("at") + 1 : tokens.index("at") + 3]) if "at" in tokens else None
        found = [next((t for t in tokens if t in values), None) for values in (SHAPES, COLOURS, SIZES)]
        objects.append((*found, cell))
    return background, sorted(objects, key=str)


def told(scene):
    return scene.background, sorted([(o.shape, o.colour, o.size, o.cell) for o in scene.objects], key=str)


def test_a_caption_that_keeps_everything_determines_the_scene():
    random = Random(0)
    texts = [caption(scene, random, keep=1.0) for scene in SCENES]
    assert [parse(text) for text in texts] == [told(scene) for scene in SCENES]
    assert [parse(full_caption(scene)) for scene in SCENES] == [told(scene) for scene in SCENES]
    assert len({text.split()[0] for text in texts}) >= 3  # a, an, at: the order varies
    assert set(SYNONYMS.values()) <= {word for text in texts for word in text.split()}


def test_a_caption_omits_but_never_lies():
    random = Random(1)
    omitted = 0
    for scene in SCENES:
        background, objects = parse(caption(scene, random, keep=0.7))
        truth = told(scene)
        assert background in (None, truth[0])
        for thing in objects:
            assert any(all(said in (None, true) for said, true in zip(thing, other, strict=True)) for other in truth[1])
            omitted += thing.count(None)
    assert omitted / sum(3 * len(scene.objects) for scene in SCENES) == pytest.approx(0.3, abs=0.05)


FAMILY_WORDS = {*SHAPE_FAMILIES, *COLOUR_FAMILIES}


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_b_names_families(variant):
    random = Random(2)
    texts = [caption(scene, random, variant=VARIANTS[variant]) for scene in sample_scenes(400, 3, variant)]
    said = FAMILY_WORDS & {word for text in texts for word in text.split()}
    assert said == (FAMILY_WORDS if variant == "B" else set())


def test_english_has_an_orange_ring():
    assert full_caption(Scene("gray", (Object("ring", "orange", "small", "top left"),))) == (
        "a small orange ring at top left on a gray background"
    )
    texts = [caption(scene, Random(3), keep=0.5) for scene in SCENES]
    assert not any(f"a {word}" in text for text in texts for word in ("orange", "angular"))
    assert any("an orange" in text for text in texts)


def test_the_vocabulary_has_every_value_once():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert {*SHAPES, *COLOURS, *SIZES, *BACKGROUNDS} <= set(VOCABULARY)


def test_the_tokenizer_pads_to_a_fixed_length_and_ends_every_caption_with_padding():
    words = tokenizer()
    assert words.model_max_length == MAX_TOKENS
    random = Random(4)
    texts = [caption(scene, random, keep=1.0) for scene in SCENES]
    coded = words(texts, padding="max_length", max_length=words.model_max_length, truncation=True, return_tensors="pt")
    assert coded.input_ids.shape == (len(texts), MAX_TOKENS)
    assert (coded.input_ids[:, 0] == 1).all() and (coded.input_ids[:, -1] == 0).all()
    assert ((coded.input_ids == 2).sum(1) == 1).all()
    assert [" ".join(VOCABULARY[i] for i in row if i > 2) for row in coded.input_ids.tolist()] == texts
    assert words("")["input_ids"] == [1, 2]
    assert words("A Red Circle")["input_ids"] == words("a red circle")["input_ids"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a crimson circle", "does not know the word 'crimson'"),
        ("a redd circle", "Did you mean 'red'"),
        ("a <pad>", "<pad>"),
        ("a " * 23, "has 23"),
    ],
)
def test_the_tokenizer_refuses_what_the_model_cannot_read(prompt, message):
    with pytest.raises(PairError, match=message):
        tokenizer()(prompt)
    with pytest.raises(PairError, match=message):
        tokenizer()(["a red circle", prompt])
