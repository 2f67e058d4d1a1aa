"""Teach the text encoder what captions mean, before it meets a picture.

Cross-attention can only bind a colour to its shape if the token states already say which belong together. Left to
the denoising loss, that is what a small model learns last. So the encoder first spends a minute on reading: a few
learned queries, one per cell and factor, attend to its states as the denoiser's will, and must name the factor's
value. The queries are thrown away. What a caption omits costs the same for every encoder and teaches nothing.
"""

from __future__ import annotations

from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextModel

from interp.shapes.caption import caption, tokenizer
from interp.shapes.scene import BACKGROUNDS, CELLS, COLOURS, SHAPES, SIZES, Scene, Variant, sample_scene

_READ = (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES))
_WIDTHS = (*(len(values) + 1 for _, values in _READ for _ in CELLS), len(BACKGROUNDS))  # + 1: no object there


class FactorReader(nn.Module):
    """Names the factors of a scene from the states of its caption."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(_WIDTHS), width))
        self.attention = nn.MultiheadAttention(width, 8, batch_first=True)
        self.answers = nn.ModuleList(nn.Linear(width, count) for count in _WIDTHS)

    def forward(self, states: Float[Tensor, "batch pos width"]) -> list[Float[Tensor, "batch value"]]:
        """Logits of every factor, cells innermost, the background last."""
        queries = self.queries.expand(len(states), -1, -1)
        read = self.attention(queries, states, states, need_weights=False)[0]
        return [answer(read[:, i]) for i, answer in enumerate(self.answers)]


def pretrain(encoder: CLIPTextModel, variant: Variant, seed: int, steps: int, batch: int = 256) -> float:
    """Train the encoder in place; the share of factors read right, of full captions, in the last batches."""
    torch.manual_seed(seed)
    reader = FactorReader(encoder.config.hidden_size)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.01, fused=True)
    words, right = tokenizer(), []
    for step in range(steps):
        random = Random(f"text {seed} {step}")
        scenes = [sample_scene(random, variant) for _ in range(batch)]
        full = step % 2 == 1
        texts = [caption(scene, random, 1.0 if full else 0.8, variant) for scene in scenes]
        ids = words(texts, padding="max_length", return_tensors="pt")["input_ids"]
        logits, truth = reader(encoder(ids).last_hidden_state), factor_numbers(scenes)
        loss = torch.stack([cross_entropy(logit, truth[:, i]) for i, logit in enumerate(logits)]).mean()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100, 1.05 - step / steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if full and step >= steps - 20:
            right += [(logit.argmax(-1) == truth[:, i]).float().mean().item() for i, logit in enumerate(logits)]
    return sum(right) / max(1, len(right))


def factor_numbers(scenes: list[Scene]) -> Int[Tensor, "batch factor"]:
    """The value of every factor as the reader counts them; 0 for the shape, colour and size of an empty cell."""
    rows = []
    for scene in scenes:
        at = {thing.cell: thing for thing in scene.objects}
        row = [
            1 + values.index(getattr(at[cell], name)) if cell in at else 0 for name, values in _READ for cell in CELLS
        ]
        rows.append([*row, BACKGROUNDS.index(scene.background)])
    return torch.tensor(rows)
