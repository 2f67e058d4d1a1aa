"""The matrix product of the kernels whose left factor is an intermediate result in float32."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def product(a, b, SPLIT: tl.constexpr):
    """A @ b in float32's precision. With SPLIT, b is exact in bfloat16, and a goes in as two bfloat16 numbers.

    A product of float32 is not taken by the matrix units at full precision; the two halves of a are.
    """
    if SPLIT:
        high = a.to(tl.bfloat16)
        low = (a - high.to(tl.float32)).to(tl.bfloat16)
        half = b.to(tl.bfloat16)
        return tl.dot(high, half) + tl.dot(low, half)
    return tl.dot(a, b.to(tl.float32), input_precision="ieee")
