"""A tap: the tensor at one side of one module, and the view of it that a site means.

`q` of a GPT-2 layer is the first third of what `c_attn` returns, seen as heads; `z` of a Llama layer is
what `o_proj` receives. A `Tap` says so as data, so that capture and edit are one mechanism for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

Side = Literal["input", "shared_input", "output", "scores", "pattern"]


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """Where a site's tensor is met, and how to see it.

    Attributes:
        module: the module at which it passes.
        side: `"input"` (first argument), `"output"` (the tensor, or the first of a tuple), or
            `"shared_input"`: an input that the caller keeps and adds again later, as a block does with
            the residual stream; an edit must reach both uses. `"scores"` and `"pattern"` are no side: they exist
            inside an attention while it computes (`interp.models.attention`).
        start: the first column of the last axis.
        width: number of columns, `None` for all.
        heads: number of heads into which these columns are split, `None` for no split.
        interleaved: index within each head's (q, k, v) triple, where the family stores them so.
        spatial: the tensor is [batch, channel, height, width], seen as [batch, pos, channel].
        item: which tensor of a tuple the module returns.
    """

    module: nn.Module
    side: Side
    start: int = 0
    width: int | None = None
    heads: int | None = None
    interleaved: int | None = None
    spatial: bool = False
    item: int = 0

    def read(self, x: Tensor) -> Tensor:
        """The site's view of `x`: [..., width] or [..., head, d_head]."""
        if self.spatial:
            x = x.flatten(-2).transpose(-1, -2)
        if self.interleaved is not None:
            assert self.heads is not None
            return x.unflatten(-1, (self.heads, 3, -1))[..., self.interleaved, :]
        if self.width is not None:
            x = x[..., self.start : self.start + self.width]
        return x if self.heads is None else x.unflatten(-1, (self.heads, -1))

    def write(self, x: Tensor, new: Tensor) -> Tensor:
        """`x` with the site's view replaced by `new`; `x` itself is not changed."""
        if self.spatial:
            channels_last = replace(self, spatial=False).write(x.flatten(-2).transpose(-1, -2), new)
            # In the layout of x: convolutions of another layout may add in another order.
            return torch.empty_like(x).copy_(channels_last.transpose(-1, -2).reshape(x.shape))
        if self.interleaved is not None:
            assert self.heads is not None
            out = x.unflatten(-1, (self.heads, 3, -1)).clone()
            out[..., self.interleaved, :] = new
            return out.flatten(-3)
        flat = new if self.heads is None else new.flatten(-2)
        if self.width is None or self.width == x.shape[-1]:
            return flat
        out = x.clone()
        out[..., self.start : self.start + self.width] = flat
        return out
