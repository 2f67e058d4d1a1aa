"""The same architecture with random weights: the network in which there is nothing to be found."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from interp.models.denoiser import Denoiser, describe_pipeline
from interp.models.language_model import LanguageModel
from interp.models.load import describe

Model = TypeVar("Model", LanguageModel, Denoiser)


def reset(model: Model, seed: int = 0) -> Model:
    """The same architecture with random weights; `model` keeps its own.

    Every matrix is drawn from a normal distribution with the root mean square of the old one, and the entries of every
    vector (biases, gains of norms) are shuffled, so that activations keep their order of magnitude. Of a pipeline the
    denoiser is reset; its text encoders stay.
    """
    network = copy.deepcopy(model.network)
    _redraw(network, torch.Generator().manual_seed(seed))
    name = f"{model.name}, reset {seed}"
    if isinstance(model, LanguageModel):
        return describe(network, model.tokenizer, name)
    pipeline = copy.copy(model.pipeline)
    pipeline.register_modules(**{key: network for key, part in pipeline.components.items() if part is model.network})
    return describe_pipeline(pipeline, name)


@torch.no_grad()
def _redraw(network: nn.Module, generator: torch.Generator) -> None:
    for weight in network.parameters():
        if weight.ndim > 1:
            drawn = torch.randn(weight.shape, generator=generator) * weight.float().square().mean().sqrt().cpu()
            weight.copy_(drawn)
        else:
            weight.copy_(weight[torch.randperm(len(weight), generator=generator).to(weight.device)])
