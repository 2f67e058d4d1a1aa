"""Closed-form editing of concepts: what the model reads as "red", let it read as "blue", and everything else as before.

A prompt enters the picture through linear maps W: the keys and values of cross-attention, which read the states of its
tokens, or projections inside the text encoder. Let k be what such a map reads of a prompt with the concept, k* of the
same prompt with the target in its place, p of prompts that shall stay. The edit solves

    min over Δ:  mean ‖(W + Δ) k − W k*‖²  +  κ · mean ‖Δ p‖²  +  λ ‖Δ‖²

in closed form, Δ = W · mean[(k* − k) kᵀ] · (mean[k kᵀ] + κ mean[p pᵀ] + λ I)⁻¹, in float64. Seen so, Δ is W after a
map of the *states*: with one λ for all keys and values, the edit equals a linear edit of the prompt's embedding.

Start with `edit_concept`; `interp.steering.edit_report` measures what it did.

When it misleads: a concept with two words (purple, violet) is edited under the one that is named; what stays is what
`keep` holds and what is like it; and a linear map of states cannot be right in every context where a concept's state
depends on the others.

Source: the ridge form of UCE (Gandikota et al. 2024, arXiv:2308.14761: all cross-attention keys and values), LocoEdit
(Basu et al. 2024, arXiv:2405.01008: those of some blocks) and DiffQuickFix (Basu et al. 2024, arXiv:2310.13730: the
first attention's output projection in CLIP). We differ: pairs are averaged, not summed, so κ and λ do not depend on how
many there are; λ is given in units of the mean square of what W reads; and by default not only the concept's last
token is paired (`tokens="last"`), but all, because later tokens have read the concept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError, PairError
from interp.models.denoiser import Denoiser
from interp.models.pipelines import tokens_through
from interp.models.projections import Projection, projections, states_read
from interp.models.site import Site
from interp.results import provenance
from interp.steering.weight_edit import EditedDenoiser, LowRank, edited_with

TEMPLATES = ("{}", "a {}", "the {}", "a photo of a {}", "an image of {}", "a picture of the {}", "a painting of {}")
"""Contexts for models whose captions we do not have."""
SHAPES_CONTEXTS, SHAPES_KEPT = 48, 96


def edit_concept(
    model: Denoiser,
    concept: str,
    target: str,
    *,
    where: Sequence[Site | str] = ("cross_k", "cross_v"),
    contexts: Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    tokens: Literal["all", "last"] = "all",
    ridge: float = 1e-4,
    keep_weight: float = 1.0,
    seed: int = 0,
) -> EditedDenoiser:
    """A new model that reads `concept` as `target`: `interp.edit_concept(model, "red", "blue")`.

    Args:
        concept: a word or phrase as prompts have it.
        target: what it shall mean.
        where: the linear maps to edit (`interp.models.projections`): sites, or part names for every block. Maps of a
            text encoder are edited in forward order, each seeing the edits before it.
        contexts: prompts with `{}` where the concept stands. For the shapes model, captions drawn by `seed` if not
            given; `TEMPLATES` for others.
        keep: prompts that shall be read as before. For the shapes model, captions without the concept if not given;
            the empty prompt for others.
        tokens: which tokens are paired: `"last"`, the concept's last with the target's last; `"all"`, also those
            before and after them, and padding.
        ridge: λ in units of the mean of ‖k‖².
        keep_weight: κ.
        seed: of the captions.

    Returns:
        A model that shares every untouched module with `model`; `.original` is `model`, unchanged.

    Raises:
        SiteError: a place that is no linear map of the prompt, or that the model does not have.
        PairError: an empty concept or target; a context without exactly one `{}`; words that the model does not know.
        InterpError: ridge not above 0, keep_weight below 0, or another `tokens`.
    """
    if not ridge > 0 or not keep_weight >= 0 or tokens not in ("all", "last"):
        raise InterpError(
            f"ridge={ridge}, keep_weight={keep_weight}, tokens={tokens!r}: ridge must be above 0, keep_weight at least "
            "0, tokens 'all' or 'last'."
        )
    found = projections(model, where)
    if not found:
        raise InterpError("`where` names nothing; name a part, like 'cross_k', or sites.")
    contexts, keep = _defaults(model, concept, contexts, keep, seed)
    _check_contexts(concept, target, contexts)
    deltas: dict[str, LowRank] = {}
    current = model
    for group in _groups(found):
        here = projections(current, [one.site for one in group])[0]
        now, then = (current, here), (model, group[0])
        keys, wanted = _paired(now, then, (concept, target), contexts, tokens)
        kept, kept_before = (_of_kept(which, keep, keys) for which in (now, then))
        left, right = ridge_update(keys, wanted, kept, kept_before, ridge, keep_weight)
        for one in group:
            kind = torch.promote_types(one.module.weight.dtype, torch.float32)
            change = one.module.weight.double() @ left
            deltas[one.path] = LowRank(change.to(kind), right.to(kind))
        record = provenance(
            experiment="closed-form edit", model=model.name, weights=None, concept=concept, target=target,
            sites=[str(one.site) for one in found], contexts=list(contexts), keep=list(keep), tokens=tokens,
            ridge=ridge, keep_weight=keep_weight, seed=seed, name=f"{model.name}, {concept} → {target}",
        )  # fmt: skip
        current = edited_with(model, deltas, record, record["name"])
    assert isinstance(current, EditedDenoiser)
    return current


def ridge_update(
    keys: Float[Tensor, "pair d_in"],
    wanted: Float[Tensor, "pair d_in"],
    kept: Float[Tensor, "kept d_in"],
    kept_before: Float[Tensor, "kept d_in"],
    ridge: float,
    keep_weight: float,
) -> tuple[Float[Tensor, "d_in rank"], Float[Tensor, "d_in rank"]]:
    """Factors (left, right) of C, where W + W C is the solution for any W; `right` has orthonormal columns.

    C = (mean[(k* − k) kᵀ] + κ mean[(p* − p) pᵀ]) · (mean[k kᵀ] + κ mean[p pᵀ] + ridge · mean ‖k‖² · I)⁻¹

    Args:
        keys: k, what is read now; wanted: k*, what it shall be read as.
        kept: p, what is read now and shall stay as `kept_before` (p*), which differs where an earlier edit has touched
            what is read.
    """
    x = torch.cat([keys, kept]).double()
    away = torch.cat([wanted, kept_before]).double() - x
    weight = x.new_full((len(x), 1), 1 / len(keys))
    weight[len(keys) :] = keep_weight / max(1, len(kept))
    weighted = x * weight
    penalty = ridge * keys.double().square().sum(1).mean()
    gram = x.T @ weighted + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    moved = away.abs().amax(1) > 0  # pairs that already agree add nothing to the numerator
    inverse = torch.linalg.solve(gram, weighted[moved].T)
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(away[moved].T), torch.linalg.qr(inverse)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T)
    rank = int((s > torch.finfo(keys.dtype).eps * s.max()).sum()) if len(s) else 0
    return q_left @ u[:, :rank] * s[:rank], q_right @ vh[:rank].T


def _groups(found: Sequence[Projection]) -> list[list[Projection]]:
    """Projections that read the same and are solved together: each of a text encoder's alone, then keys and values."""
    alone = [[one] for one in found if not one.reads_text]
    together = [one for one in found if one.reads_text]
    return [*alone, *([together] if together else [])]


def _check_contexts(concept: str, target: str, contexts: Sequence[str]) -> None:
    if not concept.strip() or not target.strip():
        raise PairError(f"{concept!r} → {target!r}: name both; to let a concept go, give a neutral word as target.")
    if wrong := [context for context in contexts if context.count("{}") != 1]:
        raise PairError(f"{wrong[0]!r} has {wrong[0].count('{}')} places for the concept; a context has one, {{}}.")
    if not contexts:
        raise PairError("No context: give at least one prompt with {} where the concept stands.")


def _paired(
    now: tuple[Denoiser, Projection],
    then: tuple[Denoiser, Projection],
    phrases: tuple[str, str],
    contexts: Sequence[str],
    tokens: str,
) -> tuple[Tensor, Tensor]:
    """What is read now of the concept's prompts, and what was read of the target's, token by token [pair, d_in]."""
    model, at = then
    number = {"text2": 1, "text3": 2}.get(str(at.site.layer).partition(".")[0], 0)
    tokenizer = getattr(model.pipeline, model.family.encoders[number][1])
    read = [
        states_read(*which, [context.replace("{}", phrase) for context in contexts])
        for which, phrase in zip((now, then), phrases, strict=True)
    ]
    (states, mask), (states_then, mask_then) = read
    keys, wanted = [], []
    for row, context in enumerate(contexts):
        start = context[: context.index("{}")]
        ends = [tokens_through(tokenizer, start + phrase) for phrase in phrases]
        i, j = aligned(tokens_through(tokenizer, start), ends, (states.shape[1], states_then.shape[1]), tokens)
        both = mask[row, i] & mask_then[row, j]
        keys.append(states[row, i][both])
        wanted.append(states_then[row, j][both])
    return torch.cat(keys), torch.cat(wanted)


def _of_kept(which: tuple[Denoiser, Projection], keep: Sequence[str], like: Tensor) -> Tensor:
    """What is read of the prompts that shall stay [token, d_in]."""
    if not keep:
        return like[:0]
    states, mask = states_read(*which, keep)
    return states[mask]


def aligned(start: int, ends: Sequence[int], lengths: Sequence[int], tokens: str) -> tuple[list[int], list[int]]:
    """Positions of two prompts that correspond, where one has a phrase and the other another in its place.

    Of the phrases, which begin at `start` and end before `ends`, only the last tokens correspond; what stands before
    and after them does word by word, and so does padding, up to the `lengths`.
    """
    last, other = (end - 1 for end in ends)
    if tokens == "last":
        return [last], [other]
    after = min(length - end for length, end in zip(lengths, ends, strict=True))
    return [*range(start), *range(last, last + after + 1)], [*range(start), *range(other, other + after + 1)]


def _defaults(
    model: Denoiser, concept: str, contexts: Sequence[str] | None, keep: Sequence[str] | None, seed: int
) -> tuple[Sequence[str], Sequence[str]]:
    """What is not given: captions of the shapes world for its model, templates for others."""
    from interp.shapes.pipeline import ShapesPipeline

    own = isinstance(model.pipeline, ShapesPipeline)
    if contexts is None:
        contexts = _captions(concept, SHAPES_CONTEXTS, seed) if own else TEMPLATES
    if keep is None:
        keep = ["", *_captions(concept, SHAPES_KEPT, seed, without=True)] if own else [""]
    return contexts, keep


def _captions(concept: str, n: int, seed: int, without: bool = False) -> list[str]:
    """Captions that have the concept once, as contexts; or captions that do not have it."""
    from interp.shapes.caption import caption
    from interp.shapes.scene import sample_scene

    random, phrase = Random(f"edit {seed} {without}"), re.compile(rf"\b{re.escape(concept)}\b")
    out: list[str] = []
    for _ in range(200 * n):
        text = caption(sample_scene(random), random)
        count = len(phrase.findall(text))
        if count == (0 if without else 1):
            out.append(text if without else phrase.sub("{}", text))
        if len(out) == n:
            return out
    raise PairError(f"Captions of the shapes world hardly ever say {concept!r}; give `contexts`.")
