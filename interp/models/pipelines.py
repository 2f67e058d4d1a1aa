"""What differs between diffusion pipelines: a table, and the encoding of their prompts.

Everything else about a pipeline is found by looking at its modules (`interp.models.denoiser`) or by measuring
(`interp.models.guidance`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from interp.errors import LoadError, PairError, nearest


@dataclass(frozen=True, slots=True)
class PipelineFamily:
    """How a pipeline is called.

    Attributes:
        denoiser: attribute that holds the denoiser.
        encoders: attributes of the text encoders, with their tokenizers; empty for class-conditional pipelines.
        embeds: the outputs of `encode_prompt` for a prompt, by their index, with the names under which the call takes
            them back; `negative_` before a name makes it the unconditional one.
        arguments: arguments of every call.
        encoding: arguments of every call of `encode_prompt`.
        guidance: the call's argument for classifier-free guidance, which is on above 1.
        default_negative: the prompt that stands for none; `None`: no such branch without a negative prompt.
        whole_numbers: prompts are class labels.
        image_item: index of the image stream among the outputs of a transformer block.
        reads: the encoders whose tokens the denoiser attends to, one's after the other's (others add channels to the
            same tokens, or a pooled vector).
    """

    denoiser: str
    encoders: tuple[tuple[str, str], ...] = ()
    embeds: tuple[tuple[int, str], ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    encoding: dict[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    default_negative: str | None = ""
    whole_numbers: bool = False
    image_item: int = 0
    reads: tuple[int, ...] = (0,)


_CLIP = ("text_encoder", "tokenizer")
_CLIP2 = ("text_encoder_2", "tokenizer_2")

FAMILIES: dict[str, PipelineFamily] = {
    "StableDiffusionPipeline": PipelineFamily(
        "unet", (_CLIP,), ((0, "prompt_embeds"),),
        encoding={"num_images_per_prompt": 1, "do_classifier_free_guidance": False},
    ),
    "StableDiffusionXLPipeline": PipelineFamily(
        "unet", (_CLIP, _CLIP2), ((0, "prompt_embeds"), (2, "pooled_prompt_embeds")),
        encoding={"do_classifier_free_guidance": False},
    ),
    "PixArtAlphaPipeline": PipelineFamily(
        "transformer", (_CLIP,), ((0, "prompt_embeds"), (1, "prompt_attention_mask")),
        arguments={"negative_prompt": None, "clean_caption": False, "use_resolution_binning": False},
        encoding={"do_classifier_free_guidance": False, "clean_caption": False},
    ),
    "DiTPipeline": PipelineFamily("transformer", whole_numbers=True),
    "StableDiffusion3Pipeline": PipelineFamily(
        "transformer", (_CLIP, _CLIP2, ("text_encoder_3", "tokenizer_3")),
        ((0, "prompt_embeds"), (2, "pooled_prompt_embeds")),
        encoding={"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False},
        image_item=1, reads=(0, 2),
    ),
    "FluxPipeline": PipelineFamily(
        "transformer", (_CLIP, _CLIP2), ((0, "prompt_embeds"), (1, "pooled_prompt_embeds")),
        encoding={"prompt_2": None}, guidance="true_cfg_scale", default_negative=None, image_item=1, reads=(1,),
    ),
}  # fmt: skip


def family_of(pipeline: Any) -> PipelineFamily:
    """The family of a pipeline, by its class or one that it extends.

    Raises:
        LoadError: a pipeline of another kind.
    """
    for cls in type(pipeline).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    name = type(pipeline).__name__
    raise LoadError(f"{name} is no pipeline that interp knows how to call." + nearest(name, FAMILIES))


def encode(
    pipeline: Any, family: PipelineFamily, prompts: Sequence[str], extra: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Embeddings of prompts [batch, …], by the names under which the call takes them.

    One branch at a time, so that whoever watches the text encoders knows which one it sees.
    """
    known = inspect.signature(type(pipeline).encode_prompt).parameters
    concerned = {name: value for name, value in extra.items() if name in known}  # clip_skip, max_sequence_length
    settings = {**family.encoding, **concerned}
    outputs = pipeline.encode_prompt(list(prompts), device=pipeline._execution_device, **settings)
    return {name: outputs[index] for index, name in family.embeds}


def check_words(pipeline: Any, family: PipelineFamily, prompts: Sequence[str], extra: Mapping[str, Any]) -> None:
    """Refuse prompts that a tokenizer would cut off or not understand.

    Raises:
        PairError: words beyond the tokenizer's length, or unknown to a tokenizer that has a word for that.
    """
    asked = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    for encoder, attribute in family.encoders:
        tokenizer = getattr(pipeline, attribute, None)
        if tokenizer is None:
            continue
        limit = tokenizer.model_max_length
        if asked is not None and getattr(pipeline, encoder).config.model_type.startswith("t5"):
            limit = min(limit, extra.get("max_sequence_length", asked.default))
        for prompt in prompts:
            ids = tokenizer(prompt).input_ids
            if len(ids) > limit:
                raise PairError(f"{prompt!r} has {len(ids)} tokens, and {attribute} cuts off at {limit}.")
            unknown = tokenizer.unk_token_id
            special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
            if unknown is not None and unknown in ids and unknown not in special:
                words = [word for word in prompt.split() if unknown in tokenizer(word).input_ids]
                raise PairError(f"{prompt!r}: {attribute} knows no word {', '.join(map(repr, words))}.")


def tokens_of_word(tokenizer: Any, prompt: str, word: int) -> list[int]:
    """Positions of the tokens of a prompt's n-th word, as white space parts them."""
    words = prompt.split()
    return list(range(*(tokens_through(tokenizer, " ".join(words[:n])) for n in (word, word + 1))))


def tokens_through(tokenizer: Any, beginning: str) -> int:
    """Number of tokens up to the end of a beginning of a prompt, special ones before it included."""
    ids = tokenizer(beginning.rstrip()).input_ids
    return len(ids) - (ids[-1:] == [tokenizer.eos_token_id])


def word_in_denoiser(pipeline: Any, family: PipelineFamily, prompt: str, word: int) -> list[int]:
    """Positions of a word among the tokens that the denoiser attends to: every encoder's that it reads."""
    found, start = [], 0
    for number in family.reads:
        tokenizer = getattr(pipeline, family.encoders[number][1], None)
        if tokenizer is not None:
            found += [start + position for position in tokens_of_word(tokenizer, prompt, word)]
            start += tokenizer.model_max_length
    return found
