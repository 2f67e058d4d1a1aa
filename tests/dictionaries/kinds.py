"""A small dictionary of every kind."""

from __future__ import annotations

from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpReLU
from interp.dictionaries.matching_pursuit import MatchingPursuit
from interp.dictionaries.topk import BatchTopK, Matryoshka, TopK

LATENTS, K = 40, 4
MAKERS = {
    "topk": lambda read, **k: TopK(read, LATENTS, K, **k),
    "batch_topk": lambda read, **k: BatchTopK(read, LATENTS, K, **k),
    "matryoshka": lambda read, **k: Matryoshka(read, LATENTS, K, prefixes=(5, 15, LATENTS), **k),
    "jumprelu": lambda read, **k: JumpReLU(read, LATENTS, **k),
    "gated": lambda read, **k: Gated(read, LATENTS, **k),
    "matching_pursuit": lambda read, **k: MatchingPursuit(read, LATENTS, K, **k),
}
