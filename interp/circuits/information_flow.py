"""Information flow: which senders a receiver's input is made of, whatever the task.

The stream that a receiver reads is a sum y = Σ_s z_s (and biases). A sender's share of it is how much of y would be
missed without it, by the L1 norm,

    proximity(s, y) = max(0, ‖y‖₁ − ‖y − z_s‖₁)        importance(s) = proximity(s, y) / Σ_s' proximity(s', y)

at every position of the clean prompts, averaged over positions, then over pairs. It asks for no metric, no corrupted
prompt and no gradient, and knows nothing of what the receiver does with its input: all receivers that read the same
stream get the same scores. A baseline that the others have to beat.

Cost: one forward pass, and the L1 norms of senders × receivers that differ × positions × d_model numbers.

Source: Ferrando & Voita 2024, "Information Flow Routes" (arXiv:2403.00824), eq. for proximity after Ferrando et al.
2022 (ALTI), as an edge score in Mueller et al. 2025 (MIB, arXiv:2504.13151). The paper decomposes heads further, by
the token that they read; here, as there, an edge is a head's whole term.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.circuits.graph import Graph
from interp.circuits.patching import BUDGET
from interp.circuits.problem import Pairs, Problem
from interp.circuits.results import EdgeScores, edge_scores
from interp.circuits.stream import Terms, head_terms
from interp.interventions.run import run
from interp.models.language_model import LanguageModel
from interp.models.site import Site
from interp.progress import Progress, silent


def information_flow(
    model: LanguageModel,
    task: Pairs,
    *,
    metric: str = "logit_difference",
    only_right: bool = False,
    budget: int = BUDGET,
    progress: Progress = silent,
) -> EdgeScores:
    """Each sender's share, 0 to 1, of what a receiver reads on the clean prompts; a receiver's shares add up to 1.

    Args:
        metric: only to say which pairs the model gets right and what the gap is; the scores do not depend on it.

    Raises:
        InterpError: as `Problem.of`.
    """
    problem = Problem.of(model, task, metric, only_right)
    found = []
    for rows, *_ in progress(list(problem.groups(2, budget)), "groups of pairs"):
        found.append(_shares(problem, rows))
    shares = torch.cat(found).double().cpu().numpy()
    error = shares.std(0, ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else np.full_like(shares[0], np.nan)
    return edge_scores(problem, "information flow", shares.mean(0), error, score_unit="share of the input")


@torch.no_grad()
def _shares(problem: Problem, rows: Tensor) -> Float[Tensor, "batch sender receiver"]:
    """Importance of each sender in each receiver's input, mean over a prompt's positions."""
    model, graph, prompts = problem.model, problem.graph, problem.encoded.clean.select(rows)
    after = Site("resid_post", graph.n_layers - 1)
    parts = ["z", "mlp_out", "resid_pre", *([] if graph.parallel else ["resid_mid"])]
    states = run(model, prompts, (), [*(s for p in parts for s in model.sites(p)), after], logits=False).activations
    terms = _written(Terms(model, states), graph)
    mask = prompts.mask
    shares = terms.new_zeros(len(prompts), *graph.edges.shape)
    for layer in range(graph.n_layers):
        pre = states[Site("resid_pre", layer)]
        mid = pre if graph.parallel else states[Site("resid_mid", layer)]
        n = graph.before_attention(layer)
        shares[:, :n, graph.attention(layer)] = _importance(terms[:n], pre, mask)[..., None]
        shares[:, : graph.before_mlp(layer), graph.mlp(layer)] = _importance(
            terms[: graph.before_mlp(layer)], mid, mask
        )
    shares[:, :, -1] = _importance(terms, states[after], mask)
    return shares


def _written(terms: Terms, graph: Graph) -> Float[Tensor, "sender batch pos d_model"]:
    """Every sender's term."""
    layers = range(graph.n_layers)
    written = [(head_terms(terms.model, layer, terms.z(layer)), terms.mlp(layer)[None]) for layer in layers]
    return torch.cat([terms.embedding[None], *(x for pair in written for x in pair)])


def _importance(
    terms: Float[Tensor, "sender batch pos d_model"], stream: Float[Tensor, "batch pos d_model"], mask: Tensor
) -> Float[Tensor, "batch sender"]:
    whole = stream.abs().sum(-1)
    left = torch.stack(
        [(stream - term).abs().sum(-1) for term in terms]
    )  # one at a time: never all differences at once
    proximity = (whole - left).clamp(min=0)
    total = proximity.sum(0)
    share = torch.where(total > 0, proximity / total.clamp(min=torch.finfo(total.dtype).tiny), 0) * mask
    return (share.sum(-1) / mask.sum(-1)).T
