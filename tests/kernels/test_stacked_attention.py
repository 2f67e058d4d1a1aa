"""Stacked attention against the same rows taken one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.kernels.segment_attention import Segment, segment_attention
from interp.kernels.stacked_attention import stack_rows, stacked_attention

EXAMPLES, POSITIONS, HEADS, KV_HEADS, D_HEAD = 4, 9, 4, 2, 3
LAYOUTS = {
    # name: (groups: example, starts of its rows, end of the example), stacks expected
    "alike, one token": ([(0, [8], 9), (1, [8], 9), (2, [8], 9)], 1),
    "alike, several rows and tokens": ([(0, [5, 5], 9), (3, [5, 5], 9)], 1),
    "prefixes of unlike length": ([(0, [3], 6), (1, [6], 9), (2, [0], 3)], 1),
    "ragged rows": ([(0, [2, 3, 5], 8), (1, [3, 4], 9)], 1),
    "unlike sizes": ([(1, [8], 9), (0, [0] * 6, 9), (2, [7], 8), (3, [4], 5)], 2),
    "two groups of one example": ([(1, [0, 0], 9), (1, [8, 8], 9), (2, [0, 0], 9), (2, [8, 8], 9)], 1),
    "from the first token": ([(0, [0], 1), (1, [0], 1)], 1),
}


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_stacks_equal_rows_one_by_one(layout: str, softcap: float | None) -> None:
    groups, n_stacks = LAYOUTS[layout]
    rows = [(example, start, end) for example, starts, end in groups for start in starts]
    length = np.array([end - start for _, start, end in rows])
    begin = np.cumsum(length) - length
    bounds = np.cumsum([0] + [len(starts) for _, starts, _ in groups])
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    n = int(length.sum())
    own = normal(n, HEADS, D_HEAD), normal(n, KV_HEADS, D_HEAD), normal(n, KV_HEADS, D_HEAD)
    prefix = normal(EXAMPLES, POSITIONS, KV_HEADS, D_HEAD), normal(EXAMPLES, POSITIONS, KV_HEADS, D_HEAD)
    stacks = stack_rows(
        begin, np.array([start for _, start, _ in rows]), length, np.array([example for example, _, _ in rows]),
        [slice(int(a), int(b)) for a, b in zip(bounds, bounds[1:], strict=False)], torch.device("cpu"),
    )  # fmt: skip
    assert len(stacks.stacks) == n_stacks
    options = {"scaling": 1 / math.sqrt(D_HEAD), "softcap": softcap}
    ours = stacked_attention(*own, *prefix, stacks, **options)
    plain = torch.cat(
        [
            segment_attention(
                *(x[b : b + size] for x in own), *prefix, [Segment(slice(0, size), 1, start, size, example)], **options
            )
            for b, size, (example, start, _) in zip(begin.tolist(), length.tolist(), rows, strict=True)
        ]
    )
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)
    weight = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weight).sum(), [*own, *prefix], allow_unused=True) for x in (ours, plain)]
    for x, got, expected in zip([*own, *prefix], *gradients, strict=True):
        got, expected = (torch.zeros_like(x) if each is None else each for each in (got, expected))
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
