"""Muon for matrices, AdamW for the rest: about half the steps of AdamW alone on this model.

Muon takes momentum of a matrix's gradient and replaces it by the nearest semi-orthogonal matrix, so that every
direction of the weight moves equally far. Convolutions count as matrices [out, in · height · width]. Embeddings,
biases, norms and the first and last convolution are left to AdamW.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale of the update,
which makes AdamW's learning rates fit, from Liu et al. 2025, "Muon is Scalable for LLM Training"
(arXiv:2502.16982), equation 4. torch.optim.Muon is its own for 2-D weights one by one; here equal shapes are
orthogonalised in one batched product, which a CPU needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

_MOMENTUM = 0.95
_DECAY = 0.01
_PLAIN_RATE = 0.4  # AdamW's rate in units of Muon's


class Muon:
    """The optimiser of a set of named parameters, and its state as named tensors.

    Args:
        parameters: by name; those named in `plain` and all vectors go to AdamW.
        plain: parts of names of matrices that are no maps between hidden spaces.
    """

    def __init__(self, parameters: Mapping[str, Parameter], plain: tuple[str, ...]) -> None:
        matrices = {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.ndim >= 2 and not any(part in name for part in plain)
        }
        self._shapes: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, parameter in matrices.items():
            self._shapes[parameter.shape[0], parameter[0].numel()].append(name)
        self._matrices = matrices
        self._momentum = {name: torch.zeros_like(parameter) for name, parameter in matrices.items()}
        self._others = {name: parameter for name, parameter in parameters.items() if name not in matrices}
        self._adam = torch.optim.AdamW(self._others.values(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter by its gradient, and forget the gradients."""
        for (rows, columns), names in self._shapes.items():
            gradients = [_gradient(self._matrices[name]) for name in names]
            momenta = [self._momentum[name] for name in names]
            # torch has no public name for it
            torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)  # pyright: ignore[reportPrivateImportUsage]
            ahead = torch.stack(
                [g.lerp(m, _MOMENTUM).reshape(rows, columns) for g, m in zip(gradients, momenta, strict=True)]
            )
            updates = orthogonalised(ahead) * (0.2 * max(rows, columns) ** 0.5)
            for name, update in zip(names, updates, strict=True):
                parameter = self._matrices[name]
                parameter.mul_(1 - rate * _DECAY).sub_(update.view_as(parameter), alpha=rate)
                parameter.grad = None
        for group in self._adam.param_groups:
            group["lr"] = rate * _PLAIN_RATE
        self._adam.step()
        self._adam.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """What `load_state` needs to continue exactly."""
        state = {f"momentum.{name}": tensor for name, tensor in self._momentum.items()}
        for name, parameter in self._others.items():
            state |= {f"adam.{key}.{name}": value for key, value in self._adam.state[parameter].items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()` of an optimiser of the same parameters."""
        for name, momentum in self._momentum.items():
            momentum.copy_(state[f"momentum.{name}"])
        for name, parameter in self._others.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"adam.step.{name}" in state:  # before the first step AdamW has no state
                self._adam.state[parameter] = {key: state[f"adam.{key}.{name}"].float().clone() for key in keys}


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix of each, roughly: singular values end within 0.7–1.2."""
    rows, columns = matrices.shape[-2:]
    x = matrices.bfloat16()
    x = x.mT if rows > columns else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):  # a quintic Newton–Schulz iteration with Jordan's coefficients
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if rows > columns else x).float()


def _gradient(parameter: Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in the loss"
    return parameter.grad
