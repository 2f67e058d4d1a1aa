"""Networks whose weights somebody put there one by one: GPT-2 with its norms taken out, and words as tokens.

Without norms a residual stream is a sum of parts and nothing else, so that what a component reads of another can be
said exactly. The module is transformers' own GPT-2, each norm an identity: the family table, the proofs on loading,
block by block running and generation need to know nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.errors import LoadError, PairError, nearest


def normless_gpt2(shape: Mapping[str, Any], weights: Mapping[str, Tensor], activation: str = "relu") -> GPT2LMHeadModel:
    """A GPT-2 without norms, of these weights, in evaluation mode, without gradients to them.

    Args:
        shape: `n_layer`, `n_head`, `n_embd`, `n_inner`, `n_positions`, `vocab_size`.
        weights: by GPT-2's own names; those left out are zero.
        activation: of the MLPs, by transformers' name.

    Raises:
        LoadError: a weight that GPT-2 of this shape does not have, or of another size, or not finite.
    """
    config = GPT2Config(
        **shape, activation_function=activation, tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    network = GPT2LMHeadModel(config)
    for parent in (network.transformer, *network.transformer.h):
        for norm in [name for name, child in parent.named_children() if isinstance(child, nn.LayerNorm)]:
            setattr(parent, norm, nn.Identity())
    own = dict(network.named_parameters())
    for name, weight in weights.items():
        if name not in own or own[name].shape != weight.shape:
            has = tuple(own[name].shape) if name in own else "no such weight"
            raise LoadError(f"Weight {name} of shape {tuple(weight.shape)} does not fit the network, which has {has}.")
        if not torch.isfinite(weight).all():
            raise LoadError(f"Weight {name} holds NaN or infinite values.")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights.get(name, torch.zeros(())))
    return network.eval().requires_grad_(False)


class WordTokenizer(PreTrainedTokenizerFast):
    """One token a word, after a token that begins every prompt; a word that is no token is refused."""

    def __call__(self, text: str | Sequence[str], *args: Any, **options: Any) -> Any:
        """What any tokenizer returns.

        Raises:
            PairError: a word outside the vocabulary.
        """
        known = self.get_vocab()
        for word in (word for prompt in ([text] if isinstance(text, str) else text) for word in prompt.split()):
            if word not in known:
                words = sorted(known, key=known.__getitem__)[1:]
                raise PairError(f"{word!r} is no word of this model." + nearest(word, words))
        return super().__call__(text if isinstance(text, str) else list(text), *args, **options)


def word_tokenizer(vocabulary: Sequence[str]) -> WordTokenizer:
    """A tokenizer of whole words; the first of the vocabulary begins every prompt, and its place is a token's id."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<none>"))
    # The stubs of tokenizers do not know that these can be set.
    # tokenizers declares these attributes without setters
    words.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    words.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{vocabulary[0]} $A", special_tokens=[(vocabulary[0], 0)]
    )
    return WordTokenizer(tokenizer_object=words, bos_token=vocabulary[0])
