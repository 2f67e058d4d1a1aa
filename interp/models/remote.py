"""nnsight as a second runner behind the same waist.

`interp.load` of an nnsight model gives a `LanguageModel` whose forward passes are nnsight traces: the same
edits and captures, at the same taps, entered as interventions of one trace. It is the independent oracle
of our hooks. Everything runs on whole forward passes; nothing is replayed block by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import LoadError, UnfiredError
from interp.models.hooks import Core, Watcher, routed, seen_through
from interp.models.prompts import Prompts
from interp.models.tap import Tap


@dataclass(frozen=True, slots=True, eq=False)
class NNsightRunner:
    """Runs forward passes through an nnsight model."""

    envoy: Any

    @torch.no_grad()
    def forward(
        self,
        network: nn.Module,
        prompts: Prompts,
        watchers: Sequence[tuple[str, Tap, Watcher]],
        cores: Mapping[nn.Module, Core],
    ) -> Tensor:
        """Logits of one trace in which every watcher has seen, and may have replaced, its tap's tensor.

        Raises:
            UnfiredError: a tap that the trace did not reach.
        """
        import nnsight
        from nnsight.intervention.interleaver import OutOfOrderError

        model = self.envoy
        paths = {module: path for path, module in network.named_modules()}
        batch = len(prompts)
        places = [(paths[tap.module], tap.side, seen_through(tap, watch, batch)) for _, tap, watch in watchers]
        mask = prompts.mask.long()
        try:
            with routed(cores), model.trace(input_ids=prompts.ids, attention_mask=mask, use_cache=False):
                kept = nnsight.save({})
                for path, side, see in places:
                    envoy = model.get(path) if path else model
                    if side == "output":
                        output = envoy.output
                        value = output[0] if isinstance(output, tuple) else output
                        value = value.logits if hasattr(value, "logits") else value
                        new = see(value)
                        if new is not None:
                            if isinstance(output, tuple):
                                envoy.output = (new, *output[1:])
                            elif hasattr(output, "logits"):
                                output.logits = new
                            else:
                                envoy.output = new
                    else:
                        value = envoy.input
                        new = see(value)
                        if new is not None and side == "shared_input":
                            value.copy_(new)
                        elif new is not None:
                            envoy.input = new
                kept["logits"] = model.output.logits
        except OutOfOrderError as error:
            raise UnfiredError(f"nnsight's trace did not reach a place in time: {error}") from error
        return kept["logits"]


def unwrap_nnsight(envoy: Any) -> tuple[nn.Module, object, NNsightRunner]:
    """(network, tokenizer, runner) of an nnsight model with its weights in this process.

    Raises:
        LoadError: a model whose weights have not been loaded.
    """
    network = envoy._module
    if any(weight.is_meta for weight in network.parameters()):
        raise LoadError("This nnsight model has no weights yet: create it with dispatch=True, or call .dispatch().")
    return network, getattr(envoy, "tokenizer", None), NNsightRunner(envoy)
