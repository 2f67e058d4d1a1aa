"""Inside an attention of a denoiser: scores and pattern, seen and replaced while they are computed.

The module's own processor runs, with its projections, norms of queries and keys, rotary embedding and masks. What it
hands to `scaled_dot_product_attention` (SDPA) is seen on the way, and the explicit softmax is computed *beside* the
output of SDPA, which stays: looking changes no bit. Only queries whose weights an edit changed get the product of their
new weights and the values. Modules that nobody asks about are left alone.

A processor that computes its softmax itself (`AttnProcessor`, which honours `upcast_attention`) is seen there. Others
(sliced, xFormers, image prompts, another backend) compute in ways that cannot be seen, and are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from interp.errors import InterpError, SiteError, UnfiredError
from interp.models.hooks import Forward, Watcher, replaced
from interp.models.tap import Tap

EXPLICIT = ("AttnProcessor",)
"""Processors that compute their softmax themselves."""
TEXT_FIRST = ("FluxAttnProcessor",)
"""Processors of joint attentions that put the prompt's tokens before the cells of the picture."""
SEEN = ("AttnProcessor2_0", "JointAttnProcessor2_0", *TEXT_FIRST, *EXPLICIT)
"""Processors whose attention can be seen, by the name of their class."""

_MASKED = -5_000.0
"""Scores below are masked: diffusers adds −10,000 where a prompt has ended."""


def unseen(attention: nn.Module) -> str | None:
    """Why the scores and pattern of a module cannot be seen; `None` if they can."""
    processor = cast(Any, attention).processor
    name, backend = type(processor).__name__, getattr(processor, "_attention_backend", None)
    if name not in SEEN:
        return f"its attention runs through {name}, and interp sees inside {', '.join(SEEN)}: set one of these there"
    if backend is not None and getattr(backend, "value", backend) != "native":
        return f"its attention backend is {getattr(backend, 'value', backend)}: call set_attention_backend('native')"
    return None


@contextmanager
def attending(watchers: Sequence[tuple[str, Tap, Watcher]], n_text: int) -> Iterator[None]:
    """While the block runs, each watcher sees the scores or the pattern of its tap's module, in float32 or wider.

    Args:
        watchers: (name for messages, tap, function of [batch, head, query, key]). Scores are scaled and masked. Of a
            joint attention both axes hold the cells of the picture, then the tokens of the prompt.
        n_text: number of these tokens.

    Raises:
        UnfiredError: a processor that was called, but not seen to compute one attention; on leaving the block normally,
            a module that was never called.
        InterpError: edited scores that leave a query nothing but masked keys.
        SiteError: attention of a kind that is not served: causal, grouped queries, with dropout.
    """
    inside: dict[nn.Module, dict[str, tuple[str, Watcher]]] = {}
    for name, tap, watch in watchers:
        inside.setdefault(tap.module, {})[tap.side] = (name, watch)
    called: set[nn.Module] = set()

    def seeing(module: nn.Module) -> Callable[[Forward], Forward]:
        def wrap(forward: Forward) -> Forward:
            def call(*args: Any, **kwargs: Any) -> Any:
                called.add(module)
                with _Sight(module, inside[module], n_text) as sight:
                    output = forward(*args, **kwargs)
                sight.check()
                return output

            return call

        return wrap

    with replaced({module: seeing(module) for module in inside}):
        yield
    if silent := [name for module in inside.keys() - called for name, _ in inside[module].values()]:
        raise UnfiredError(f"The forward pass never reached {', '.join(silent)}. Nothing was captured or edited there.")


class _Sight(TorchFunctionMode):
    """Sees the one attention that a module computes while this is entered."""

    def __init__(self, module: nn.Module, watchers: Mapping[str, tuple[str, Watcher]], n_text: int) -> None:
        super().__init__()
        self.processor = type(cast(Any, module).processor).__name__
        self.heads, self.watchers, self.attentions = int(cast(Any, module).heads), watchers, 0
        self.n_text = n_text if self.processor in TEXT_FIRST else 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Where torch calls a function of tensors; ours are no longer seen in here."""
        output = func(*args, **(kwargs or {}))
        if func is scaled_dot_product_attention:
            return self._sdpa(output, *args, **(kwargs or {}))
        if func is Tensor.softmax and self.processor in EXPLICIT:
            return self._softmax(output, args[0])
        return output

    def check(self) -> None:
        """Refuse an output whose attention was not seen.

        Raises:
            UnfiredError: no attention was computed as expected, or several.
        """
        if self.attentions != 1:
            raise UnfiredError(
                f"{self._name}: {self.processor} was called, and {self.attentions} attentions were seen where there is "
                "one. Another attention backend (DIFFUSERS_ATTN_BACKEND) computes them out of sight; use 'native'."
            )

    @property
    def _name(self) -> str:
        return " and ".join(name for name, _ in self.watchers.values())

    def _sdpa(
        self,
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """The output of SDPA, but for queries whose pattern is edited."""
        if is_causal or enable_gqa or dropout_p:
            raise SiteError(f"{self._name}: causal attention, grouped queries and dropout are not served.")
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = query.to(wide) @ key.to(wide).transpose(-1, -2)
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        own = scores.softmax(-1)
        pattern = self._edited(scores, own)
        if pattern is own:
            return output
        changed = (pattern != own).any(-1, keepdim=True)
        return torch.where(changed, (pattern @ value.to(wide)).to(output.dtype), output)

    def _softmax(self, output: Tensor, scores: Tensor) -> Tensor:
        """The weights of an explicit softmax over [batch · head, query, key], but for queries that are edited."""
        wide = torch.promote_types(scores.dtype, torch.float32)
        own = output.unflatten(0, (-1, self.heads)).to(wide)
        pattern = self._edited(scores.unflatten(0, (-1, self.heads)).to(wide), own)
        if pattern is own:
            return output
        return torch.where((pattern != own).any(-1, keepdim=True), pattern, own).flatten(0, 1).to(output.dtype)

    def _edited(self, scores: Tensor, own: Tensor) -> Tensor:
        """The pattern after edits; `own` itself if there are none."""
        self.attentions += 1
        pattern = own
        edited = self._shown("scores", scores)
        if edited is not None:
            blind = (edited.amax(-1) < _MASKED) & (scores.amax(-1) >= _MASKED)
            if blind.any():
                raise InterpError(
                    f"{self._name}: {int(blind.sum())} queries would see masked keys only; leave them a token of the "
                    "prompt."
                )
            pattern = edited.softmax(-1)
        edited = self._shown("pattern", pattern)
        return pattern if edited is None else edited

    def _shown(self, what: str, x: Tensor) -> Tensor | None:
        """What a watcher makes of [batch, head, query, key], cells before tokens."""
        if what not in self.watchers:
            return None
        axes, n = (-2, -1), self.n_text
        new = self.watchers[what][1](x.roll((-n, -n), axes) if n else x)
        return new.roll((n, n), axes) if n and new is not None else new
