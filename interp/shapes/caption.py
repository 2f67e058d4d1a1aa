"""From scenes to words, and from words to tokens.

A caption names the objects in random order, each with its size, colour and cell or without some of them, and the
background or not: what it leaves out, the model must choose. The vocabulary is closed. A word outside it is an
error, because a model that silently reads `<unk>` answers another question than the one asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.errors import PairError, nearest
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
    Variant,
)

SYNONYMS = MappingProxyType({"circle": "disc", "large": "big", "small": "little", "gray": "grey", "purple": "violet"})
"""The second word that some values have; used one time in four."""

MAX_TOKENS = 24
"""Begin, at most 21 words, end: so at least one padding position closes every caption."""

_PAD, _BEGIN, _END = "<pad>", "<begin>", "<end>"
_GLUE = ("a", "an", "and", "with", "on", "at", "background", "shape", "top", "bottom", "left", "right")
VOCABULARY = (
    _PAD, _BEGIN, _END, *_GLUE, *SHAPES, *COLOURS, *SIZES, *BACKGROUNDS, *SYNONYMS.values(),
    *SHAPE_FAMILIES, *COLOUR_FAMILIES,
)  # fmt: skip
"""Every token; its place is its id."""


def caption(scene: Scene, random: Random, keep: float = 0.85, variant: Variant = VARIANTS["A"]) -> str:
    """One way of describing a scene.

    Args:
        keep: probability that a size, a colour, a cell, the background is said; shapes always are. At 1 the
            caption determines everything but the nuisances.
        variant: one that names families puts, one time in four each, "warm" or "cool" for the colour, and "round
            shape" or "angular shape" for the shape.
    """
    phrases = [_phrase(thing, random, keep, variant) for thing in random.sample(scene.objects, len(scene.objects))]
    text = " and ".join(phrases)
    if random.random() >= keep:
        return text
    background = f"a {_word(scene.background, random)} background"
    return f"{text} on {background}" if random.random() < 0.7 else f"{background} with {text}"


def full_caption(scene: Scene) -> str:
    """The plain description: first word of each synonym, objects as the scene lists them, nothing omitted."""
    phrases = [f"a {thing.size} {thing.colour} {thing.shape} at {thing.cell}" for thing in scene.objects]
    return f"{' and '.join(phrases)} on a {scene.background} background"


def _phrase(thing: Object, random: Random, keep: float, variant: Variant) -> str:
    vague_colour, vague_shape = (variant.names_families and random.random() < 0.25 for _ in range(2))
    words = []
    if random.random() < keep:
        words.append(_word(thing.size, random))
    if random.random() < keep:
        words.append(thing.colour_family if vague_colour else _word(thing.colour, random))
    if random.random() < 0.25:
        words.reverse()
    words.append(f"{thing.shape_family} shape" if vague_shape else _word(thing.shape, random))
    noun = f"{_article(words[0])} {' '.join(words)}"
    if random.random() >= keep:
        return noun
    return f"{noun} at {thing.cell}" if random.random() < 0.75 else f"at {thing.cell} {noun}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _word(value: str, random: Random) -> str:
    return SYNONYMS[value] if value in SYNONYMS and random.random() < 0.25 else value


class ShapesTokenizer(PreTrainedTokenizerFast):
    """One token a word, padded to `MAX_TOKENS`; it refuses what is not in the vocabulary.

    The padding is part of the text that models read, so its attention mask hides nothing.
    """

    def __call__(self, text: str | Sequence[str], *args: Any, **options: Any) -> Any:
        """What any tokenizer returns.

        Raises:
            PairError: a word that is not in `VOCABULARY`, or too many words.
        """
        for prompt in [text] if isinstance(text, str) else text:
            check_prompt(prompt)
        encoding = super().__call__(text if isinstance(text, str) else list(text), *args, **options)
        if isinstance(mask := encoding.get("attention_mask"), Tensor):
            encoding["attention_mask"] = torch.ones_like(mask)
        return encoding

    def tokenize(self, text: str, *args: Any, **options: Any) -> list[str]:
        """What any tokenizer returns. Diffusers looks here first, for names of textual inversions.

        Raises:
            PairError: a word that is not in `VOCABULARY`, or too many words.
        """
        check_prompt(text)
        return super().tokenize(text, *args, **options)


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that the model cannot read.

    Raises:
        PairError: a word that is not in `VOCABULARY`, or too many words.
    """
    words = prompt.lower().split()
    known = VOCABULARY[3:]
    for word in words:
        if word not in known:
            raise PairError(f"The shapes model does not know the word {word!r} of {prompt!r}." + nearest(word, known))
    if len(words) > MAX_TOKENS - 2:
        raise PairError(
            f"The shapes model reads at most {MAX_TOKENS - 2} words; {prompt!r} has {len(words)}. "
            "A scene holds at most two objects."
        )


def tokenizer() -> ShapesTokenizer:
    """The tokenizer of the shapes model."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    words = Tokenizer(WordLevel(ids, unk_token="<unk>"))  # which is no token: an unknown word is an error here too
    # The stubs of tokenizers do not know that these can be set.
    words.normalizer = Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    words.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    words.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{_BEGIN} $A {_END}", special_tokens=[(_BEGIN, ids[_BEGIN]), (_END, ids[_END])]
    )
    return ShapesTokenizer(
        tokenizer_object=words, pad_token=_PAD, bos_token=_BEGIN, eos_token=_END, model_max_length=MAX_TOKENS
    )
