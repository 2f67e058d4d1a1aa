"""How close a kernel's result must be to the reference computed in float32."""

from __future__ import annotations

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RELATIVE = 1e-5
"""float32: of the largest number of the reference."""
ULPS = 2
"""float16 and bfloat16: units in the last place of each number; of those that nearly cancel, float32's tolerance."""


def assert_close(found, reference):
    """`found`, of any of DTYPES, against a reference in float32."""
    assert reference.dtype == torch.float32 and found.shape == reference.shape
    assert torch.equal(found.isnan(), reference.isnan())
    size = reference.abs().nan_to_num()
    error, allowed = (found.float() - reference).abs().nan_to_num(), torch.zeros_like(reference)
    if found.dtype != torch.float32:
        info = torch.finfo(found.dtype)
        allowed = ULPS * info.eps * 2.0 ** torch.floor(torch.log2(size.clamp(min=info.tiny)))
    if found.numel():
        allowed = allowed.clamp(min=RELATIVE * float(size.max()))
        assert bool((error <= allowed).all()), f"{float((error / allowed).max()):.3g} times what is allowed"


def counted(monkeypatch, module, *names):
    """Counts the launches of a module's kernels: {name: launches}."""
    launches = dict.fromkeys(names, 0)

    class Counting:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            launches[self.name] += 1
            return self.kernel[grid]

    for name in names:
        monkeypatch.setattr(module, name, Counting(name, getattr(module, name)))
    return launches
