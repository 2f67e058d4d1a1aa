"""What tests of several folders share: described tiny models, made once, and prompts for them."""

from __future__ import annotations

from functools import cache

import torch
from models.tiny import CONFIGS, tiny

from interp.interventions.run import run
from interp.models.load import describe
from interp.models.prompts import from_token_lists
from interp.models.site import PARTS

FAMILIES = tuple(CONFIGS)
VOCABULARY = 61


@cache
def described(family: str, dtype: torch.dtype = torch.float64):
    """A tiny model without tokenizer; shared, so no test may change its network."""
    return describe(tiny(family, dtype), None, family)


@cache
def ragged(lengths=(7, 5, 6), seed=1):
    """(clean, corrupted): prompts of these lengths, which differ in token 2 of the even rows, 1 of the odd."""
    generator = torch.Generator().manual_seed(seed)
    clean = [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    corrupted = [
        [(t + 7) % VOCABULARY if p == 2 - row % 2 else t for p, t in enumerate(c)] for row, c in enumerate(clean)
    ]
    return from_token_lists(None, clean), from_token_lists(None, corrupted)


def parts_of(model):
    """Every part that the model can serve."""
    return [part for part in PARTS if part not in model.untouchable]


@cache
def captured(family: str, dtype: torch.dtype = torch.float64):
    """A run on the clean prompts that captured every part."""
    model = described(family, dtype)
    return run(model, ragged()[0], (), parts_of(model))


def hooks_on(network) -> int:
    """Number of hooks that hang anywhere in a network."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())
