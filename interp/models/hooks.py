"""Hooks: the only place that attaches anything to a network, and always takes it off again.

Two mechanisms. `tapped` lets functions see, and replace, the tensors at taps. `routed` makes chosen
attention modules compute their attention in a function of ours (their *core*), while projections,
rotary embeddings and everything else stay the network's own; modules that are not routed keep the
implementation they had (SDPA, usually). Both end with the block, also on an exception or Ctrl-C, and
`tapped` ends with an error if one of its taps was never reached.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable
from weakref import WeakSet

import torch
from torch import Tensor, nn

from interp.errors import InterpError, UnfiredError
from interp.models.tap import Tap

Watcher = Callable[[Tensor], Tensor | None]
"""Sees a tap's view; returns its replacement, or None to leave it."""


@runtime_checkable
class Core(Protocol):
    """What a routed attention module calls instead of its attention function.

    `query` is [batch, head, query, d_head]; `key`, `value` [batch, kv_head, key, d_head], rotary already
    applied; `how` holds the module's own scaling, softcap, sliding_window. Returns [batch, query, head, d_head].
    """

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, /, **how: Any
    ) -> Tensor:
        """Attention output for one call of the module."""
        ...


@contextmanager
def tapped(watchers: Sequence[tuple[str, Tap, Watcher]], batch: int | None, *, first: bool = False) -> Iterator[None]:
    """While the block runs, each watcher sees its tap's tensor on every forward pass.

    Args:
        watchers: (name for messages, tap, function), applied in this order at a shared tap.
        batch: rows of the forward pass; tells [batch · pos, width] apart (OPT flattens its tokens). `None`: a tensor of
            two axes is [batch, width].
        first: before the hooks that others have attached (transformers collects hidden states by hooks of its own).

    Raises:
        UnfiredError: on leaving the block normally, if a tap was not reached.
    """
    fired = dict.fromkeys((name for name, _, _ in watchers), False)
    handles = []
    try:
        for name, tap, watch in watchers:
            handles.append(_attach(tap, watch, batch, lambda name=name: fired.__setitem__(name, True), first))
        yield
    finally:
        for handle in handles:
            handle.remove()
    if silent := [name for name, reached in fired.items() if not reached]:
        raise UnfiredError(
            f"The forward pass never reached {', '.join(silent)}. Nothing was captured or edited there: the "
            "module was skipped or replaced (torch.compile, a fused or cached path), so no result is returned."
        )


_HELD: WeakSet[nn.Module] = WeakSet()
"""Networks that carry hooks of a block that has not ended, beside those of the run at hand."""


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """While the block runs, `refuse_held` refuses the network: its hooks would change what is measured.

    Raises:
        InterpError: the network is held already.
    """
    refuse_held(network)
    _HELD.add(network)
    try:
        yield
    finally:
        _HELD.discard(network)


@contextmanager
def released(network: nn.Module) -> Iterator[None]:
    """While the block runs, a held network is not refused: whoever holds it sees to it that its hooks do nothing."""
    was = network in _HELD
    _HELD.discard(network)
    try:
        yield
    finally:
        if was:
            _HELD.add(network)


def refuse_held(network: nn.Module) -> None:
    """Refuse a network that is steered by a block around this call.

    Raises:
        InterpError: it is.
    """
    if network in _HELD:
        raise InterpError(
            "This network is steered by a `with interp.steer(…)` block around this call, which would steer it twice, "
            "or in part. Use the methods of what `steer` returned, or leave the block."
        )


def seen_through(tap: Tap, watch: Watcher, batch: int | None) -> Watcher:
    """A watcher of the module's own tensor, from one of the tap's view of it."""

    def see(x: Tensor) -> Tensor | None:
        shaped = x if x.ndim != 2 else x[:, None] if batch is None else x.unflatten(0, (batch, -1))
        new = watch(tap.read(shaped))
        return None if new is None else tap.write(shaped, new).reshape(x.shape)

    return see


def _attach(tap: Tap, watch: Watcher, batch: int | None, mark: Callable[[], None], first: bool):
    look = seen_through(tap, watch, batch)

    def see(x: Tensor) -> Tensor | None:
        mark()
        return look(x)

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        x = args[0] if args else kwargs["hidden_states"]
        new = see(x)
        if new is None:
            return None
        if tap.side == "shared_input":
            # The block keeps this very tensor as its residual stream, so the value has to change in
            # place. It is the fresh result of an addition, held by nobody else.
            x.copy_(new)
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def after(_module: nn.Module, _args: tuple, output: Any) -> Any:
        if isinstance(output, Tensor):
            return see(output)
        if hasattr(output, "logits"):
            new = see(output.logits)
            if new is not None:
                output = copy.copy(output)
                output.logits = new
            return output
        if hasattr(output, "sample"):
            new = see(output.sample)
            if new is not None:
                output = copy.copy(output)
                output.sample = new
            return output
        new = see(output[tap.item])
        return None if new is None else (*output[: tap.item], new, *output[tap.item + 1 :])

    if tap.side == "output":
        return tap.module.register_forward_hook(after, prepend=first)
    return tap.module.register_forward_pre_hook(before, with_kwargs=True)


@contextmanager
def routed(cores: Mapping[nn.Module, Core]) -> Iterator[dict[nn.Module, dict[str, Any]]]:
    """While the block runs, these attention modules compute their attention in the given cores.

    Yields, per module, the keyword arguments of its latest call (rotary tables among them).
    """
    seen: dict[nn.Module, dict[str, Any]] = {}
    configs = {module: module.config for module in cores}
    handles = []

    def inject(core: Core):
        def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            seen[module] = kwargs
            return args, kwargs | {"interp_core": core}

        return before

    try:
        for module, core in cores.items():
            handles.append(module.register_forward_pre_hook(inject(core), with_kwargs=True))
            module.config = routed_config(module.config)
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for module, config in configs.items():
            module.config = config


@contextmanager
def stopping_at(module: nn.Module) -> Iterator[list[Tensor]]:
    """While the block runs, a forward pass ends where `module` would begin; yields its inputs.

    The block must not use the forward pass's result: there is none.
    """
    inputs: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])
        raise _Stopped

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield inputs
    except _Stopped:
        pass
    finally:
        handle.remove()


Forward = Callable[..., Any]


@contextmanager
def replaced(calls: Mapping[nn.Module, Callable[[Forward], Forward]]) -> Iterator[None]:
    """While the block runs, each module computes `wrap(its own forward)`; hooks on it still see what passes.

    Diffusers replaces `forward` of a module in the same way for its caches, and so finds ours as the original.
    """
    own = {module: module.__dict__.get("forward") for module in calls}
    try:
        for module, wrap in calls.items():
            module.forward = wrap(module.forward)
        yield
    finally:
        for module, forward in own.items():
            del module.forward
            if forward is not None:
                module.forward = forward


@contextmanager
def stepping(scheduler: Any, before: Callable[[Tensor], Tensor], after: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `before` may replace the model output that each `scheduler.step` receives.

    The wrapper keeps the signature: pipelines look there for `eta` and `generator`, and drop them if they see none.
    """
    step, own = scheduler.step, vars(scheduler).get("step")

    @functools.wraps(step)
    def counted(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = step(before(model_output), *args, **kwargs)
        after()
        return result

    scheduler.step = counted
    try:
        yield
    finally:
        del scheduler.step
        if own is not None:
            scheduler.step = own


class _Stopped(Exception):
    """Unwinds a forward pass that has served its purpose."""


def routed_config(config: Any) -> Any:
    """A copy of a module's configuration that sends its attention to the core it is called with."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if "interp" not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register("interp", _call_core)
    config = copy.copy(config)
    config._attn_implementation_internal = "interp"
    return config


def attention_options(config: Any, how: dict[str, Any]) -> dict[str, Any]:
    """What `segment_attention` must honour to compute what a module of this configuration would itself.

    Explicit ("eager") attention in transformers takes its softmax in float32, whatever the model's type.
    """
    eager = config._attn_implementation == "eager"
    return {
        "scaling": how["scaling"],
        "softcap": how.get("softcap"),
        "window": how.get("sliding_window"),
        "softmax_dtype": torch.float32 if eager else None,
    }


def _call_core(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    interp_core: Core,
    **how: Any,
) -> tuple[Tensor, None]:
    return interp_core(module, query, key, value, attention_mask, **how), None


def original_attention(module: nn.Module) -> Core:
    """The attention function a module uses now, as a core."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    explicit = sys.modules[type(module).__module__].eager_attention_forward
    config = cast(Any, module.config)  # torch takes every attribute of a module for a submodule or a tensor
    function = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, explicit)

    def core(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any) -> Tensor:
        return function(module, query, key, value, mask, **how)[0]

    return core
