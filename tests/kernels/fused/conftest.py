"""What the kernels' tests share: repairs of Triton's interpreter, which keeps bfloat16 as the bits of whole numbers."""

from __future__ import annotations

import jaxtyping
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def bfloat16():
    """`tl.dot` multiplies those bits (triton issue 11584), and float32 is cut off where a GPU rounds to the nearest."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    import numpy as np
    import triton.language as tl

    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def values(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return dot(self, values(a), values(b), *rest)

    def cast_impl(self, x, kind):
        if (x.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, kind)
        rounded = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(rounded, tl.bfloat16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_dot", create_dot)
        patch.setattr(builder, "cast_impl", cast_impl)
        yield


@pytest.fixture
def unchecked():
    """As for a user: without the tests' checker of annotations, which would refuse what the launchers have to."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
