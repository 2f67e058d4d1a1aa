"""End-to-end finetuning: let a dictionary's reconstruction change what the model says as little as possible.

    loss = KL( p(x) ‖ p(x̂ in place of x) ) + reconstruction · ‖x − x̂‖² / width

over tokens of texts. A trained dictionary explains the variance of activations, whatever the model does with it; a
short finetuning spends the same codes on what the model reads. What lies below the site does not depend on the
dictionary: it is computed once per batch and kept, and a step runs only the layers above (`interp.differentiable`).

Source: Karvonen 2025, "Revisiting End-To-End Sparse Autoencoder Training: A Short Finetune Is All You Need"
(arXiv:2503.17272). There the two terms are rescaled to be equal at every step; here the weight is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.differentiable import differentiable
from interp.interventions.edits import Replace
from interp.interventions.run import run
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts, from_token_lists
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, repr=False, eq=False)
class FinetuneResult(Result):
    """The curve of a finetuning: by `step`, `kl` in nats per token and the `unexplained` share of the variance."""

    @property
    def title(self) -> str:
        """One line that states what was done."""
        p = self.provenance
        return f"End-to-end finetuning of a {p['kind']} dictionary of {p['site']} · {p['model']}"

    def plot(self) -> Figure:
        """The KL divergence over the steps."""
        from interp.plots import curves

        return curves(self.data["kl"], x="step", title=self.title, unit="nats per token", quantity="KL")


def finetune(
    dictionary: Dictionary,
    model: LanguageModel,
    texts: Sequence[str],
    *,
    steps: int = 200,
    batch: int = 8,
    context: int = 64,
    first: int = 1,
    reconstruction: float | int = 1.0,
    learning_rate: float = 1e-4,
    seed: int = 0,
    progress: Progress = silent,
) -> FinetuneResult:
    """Finetune a dictionary of one site of a language model, in place.

    Args:
        texts: cut into pieces of `context` tokens; what is left of a text is dropped.
        steps: of Adam, the rate falling to 0.
        batch: pieces per step.
        context: tokens of a piece.
        first: position from which activations are replaced, and logits compared.
        reconstruction: weight of the unexplained share of the variance.
        learning_rate: at the start.
        seed: of the order of pieces.

    Raises:
        InterpError: a dictionary of several sites or step bins, or one that writes another site than it reads; steps
            or a batch below 1.
        SiteError: a site that the model does not have.
        ShapeError: a dictionary of another width.
        PairError: no text of `context` tokens.
    """
    sites = dictionary.read.sites
    if not dictionary.autoencodes or len(sites) != 1 or dictionary.read.n_bins != 1:
        raise InterpError("Finetuning needs a dictionary that reads and writes one site of a language model.")
    if min(steps, batch) < 1 or not 0 <= first < context:
        raise InterpError(f"steps={steps}, batch={batch}, first={first}, context={context}: too small.")
    site = model.check(sites[0])
    heads = 1 if site.head is not None else model.heads_of(site) or 1
    if (width := heads * (model.width_of(site) or 0)) != dictionary.read.width:
        raise ShapeError(f"{site} of {model.name} is {width} wide, the dictionary {dictionary.read.width}.")
    cut = pieces(model, texts, context)
    parameters = list(dictionary.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    kl, share = np.full(steps, np.nan), np.full(steps, np.nan)
    for step in progress(list(range(steps)), f"finetuning, {len(cut)} pieces"):
        if len(order) < batch:
            order = torch.cat(
                [order, *(torch.randperm(len(cut), generator=generator) for _ in range(1 + batch // len(cut)))]
            )
        chosen, order = order[:batch], order[batch:]
        prompts = from_token_lists(model.tokenizer, [cut[int(i)] for i in chosen], device=model.device)
        divergence, unexplained = divergence_of(dictionary, model, prompts, site, first)
        loss = divergence + reconstruction * unexplained
        if not loss.isfinite():
            raise InterpError(f"step {step}: the loss is not finite; the dictionary is as the step before left it.")
        for p, grad in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            p.grad = grad
        optimizer.param_groups[0]["lr"] = learning_rate * (steps - step) / steps
        optimizer.step()
        with torch.no_grad():
            dictionary.atoms.div_(dictionary.atoms.norm(dim=1, keepdim=True).clamp_(min=1e-12))
        kl[step], share[step] = float(divergence.detach()), float(unexplained.detach())
    return _result(dictionary, model, site, kl, share, len(cut), seed, {
        "steps": steps, "batch": batch, "context": context, "first": first, "reconstruction": reconstruction,
        "learning_rate": learning_rate,
    })  # fmt: skip


def divergence_of(
    dictionary: Dictionary, model: LanguageModel, prompts: Prompts, site: Site, first: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """KL in nats per token when reconstructions replace a site from a position on, and the unexplained share there.

    Prompts must be equally long. Both are differentiable by the dictionary's parameters.
    """
    length, batch = prompts.ids.shape[1], len(prompts)
    positions: Int[Tensor, "batch read"] = torch.arange(first, length, device=model.device).expand(batch, -1)
    x = run(model, prompts, capture=[site], logits=False)[site][:, first:]
    rows = dictionary.read.apply_to(x.flatten(2).flatten(0, 1))
    out = dictionary.decoded(dictionary.code(rows))
    unexplained = (rows - out).square().mean()
    value = dictionary.write.undo(out).to(x.dtype).reshape(x.shape)
    runner = differentiable(model, prompts, [site], positions=positions)
    edited = runner([Replace(site, value, positions=list(range(first, length)))]).log_softmax(-1)
    with torch.no_grad():
        base = runner.base_logits().log_softmax(-1)
    return (base.exp() * (base - edited)).sum(-1).mean(), unexplained


def pieces(model: LanguageModel, texts: Sequence[str], context: int) -> list[list[int]]:
    """Token ids of texts, in pieces of `context` tokens; what is left of a text is dropped.

    Raises:
        PairError: no text of that many tokens.
    """
    found = []
    for text in texts:
        ids = list(model.tokenizer(text).input_ids) if text else []
        found += [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)]
    if not found:
        raise PairError(f"No text has {context} tokens; give longer ones, or a smaller context.")
    return found


def _result(
    dictionary: Dictionary,
    model: LanguageModel,
    site: Site,
    kl: np.ndarray,
    share: np.ndarray,
    pieces: int,
    seed: int,
    settings: dict[str, float | int],
) -> FinetuneResult:
    import xarray as xr

    data = {"kl": ("step", kl, {"units": "nats per token"}), "unexplained": ("step", share, {"units": "share"})}
    record = provenance(
        experiment="end-to-end finetuning of a dictionary", kind=dictionary.kind, site=str(site), model=model.name,
        weights=model.weights_hash, n_latents=dictionary.n_latents, n_pieces=pieces, seed=seed, settings=settings,
    )  # fmt: skip
    return FinetuneResult(xr.Dataset(data, {"step": np.arange(len(kl))}), record)
