"""A learned reading of a picture, with probabilities: a small convolutional network over the four cells.

It is trained on clean and on spoilt renders: noise, blur, shifted colours, cut, doubled and melted shapes, blots,
colours between and beyond the six, backgrounds that are none of the four. What is no longer one clear thing must be
called `UNCLEAR`, so that a steered picture that fell apart does not count as a success. A learned judge can still
be fooled by what it never saw: compare with `interp.shapes.checker`, which shares nothing with it. Start with
`load_judge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import ShapeError
from interp.shapes.pipeline import assets, load_into, read_weights
from interp.shapes.reading import UNCLEAR, Reading, Seen
from interp.shapes.render import SIDE
from interp.shapes.scene import BACKGROUNDS, CELLS, COLOURS, SHAPES, SIZES

WEIGHTS = "judge.safetensors"
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "shape": ("none", UNCLEAR, *SHAPES),
    "colour": (UNCLEAR, *COLOURS),
    "size": SIZES,
    "background": (UNCLEAR, *BACKGROUNDS),
}
"""What the judge can answer. The first three are asked of every cell; "none" says that it is empty."""
_CELL_FACTORS = ("shape", "colour", "size")
_CHANNELS = 96


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Log-probabilities (nats) of every answer, in the order of `ANSWERS`."""

    shape: Float[Tensor, "batch 4 7"]
    colour: Float[Tensor, "batch 4 7"]
    size: Float[Tensor, "batch 4 2"]
    background: Float[Tensor, "batch 5"]

    def readings(self) -> list[Reading]:
        """The most probable answers, one reading per picture."""
        best = {name: getattr(self, name).argmax(-1).tolist() for name in ANSWERS}
        return [
            Reading(
                ANSWERS["background"][best["background"][row]],
                tuple(
                    None
                    if best["shape"][row][cell] == 0
                    else Seen(*(ANSWERS[name][best[name][row][cell]] for name in _CELL_FACTORS))
                    for cell in range(len(CELLS))
                ),
            )
            for row in range(len(self.background))
        ]


class Judge(nn.Module):
    """The network: five convolutions, then one linear answer per factor for every cell, and for the whole."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, _CHANNELS, 2), (_CHANNELS, _CHANNELS, 1))
        layers = []
        for before, after, stride in widths:
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.answers = nn.ModuleDict(
            {name: nn.Linear(16 * _CHANNELS, len(ANSWERS[name])) for name in _CELL_FACTORS}
            | {"background": nn.Linear(_CHANNELS, len(ANSWERS["background"]))}
        )
        self.temperature = nn.Parameter(torch.ones(()), requires_grad=False)  # fitted after training

    def forward(self, pictures: Float[Tensor, "batch 3 32 32"]) -> Verdict:
        """The verdict on pictures in [-1, 1]; differentiable."""
        features = self.body(pictures)  # batch 96 8 8: a cell is 4×4
        cells = features.unflatten(2, (2, 4)).unflatten(4, (2, 4))  # batch 96 2 4 2 4
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # batch 4 1536
        logits = {name: self.answers[name](cells) for name in _CELL_FACTORS}
        logits["background"] = self.answers["background"](features.mean((2, 3)))
        return Verdict(**{name: (x / self.temperature).log_softmax(-1) for name, x in logits.items()})

    @torch.no_grad()
    def judge(self, pictures: np.ndarray) -> Verdict:
        """The verdict on RGB pictures, uint8 [batch, 32, 32, 3].

        Raises:
            ShapeError: not uint8 pictures of 32×32.
        """
        if pictures.ndim != 4 or pictures.shape[1:] != (SIDE, SIDE, 3) or pictures.dtype != np.uint8:
            raise ShapeError(
                f"uint8 pictures of [batch, {SIDE}, {SIDE}, 3] are needed; got {pictures.dtype} {pictures.shape}."
            )
        return self(torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1)


def load_judge(folder: Path | None = None) -> Judge:
    """The trained judge, in float32 on the CPU.

    Args:
        folder: holds `judge.safetensors` and `sha256.json`; the ones that come with interp if not given.

    Raises:
        LoadError: a file that is missing, damaged, or of another judge.
    """
    judge = Judge().eval()
    load_into(judge, "judge", read_weights((assets() if folder is None else folder) / WEIGHTS))
    return judge
