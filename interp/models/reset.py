"""The same architecture with random weights: the network in which there is nothing to be found."""

from __future__ import annotations

import copy

import torch

from interp.models.language_model import LanguageModel
from interp.models.load import describe


def reset(model: LanguageModel, seed: int = 0) -> LanguageModel:
    """The same architecture with random weights; `model` keeps its own.

    Every matrix is drawn from a normal distribution with the root mean square of the old one, and the entries of every
    vector (biases, gains of norms) are shuffled, so that activations keep their order of magnitude.
    """
    network = copy.deepcopy(model.network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                drawn = torch.randn(weight.shape, generator=generator) * weight.float().square().mean().sqrt().cpu()
                weight.copy_(drawn)
            else:
                weight.copy_(weight[torch.randperm(len(weight), generator=generator).to(weight.device)])
    return describe(network, model.tokenizer, f"{model.name}, reset {seed}")
