"""Fill a store with the activations of a model, shard by shard.

What a shard holds is decided before anything runs (so many texts, so many pictures), so a harvest that was killed goes
on behind its last whole shard and ends with the same store. A byte budget ends it before the shard that would exceed
it.

What makes it cheap: one forward pass per batch of texts of about equal length, without an unembedding; one sampling per
batch of pictures, all sites, steps and branches at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.dictionaries.store import Store
from interp.errors import InterpError, PairError, SiteError
from interp.interventions.captured import DenoisingRun
from interp.interventions.checkpoint import fingerprint
from interp.interventions.denoise import Denoising, denoise
from interp.interventions.edits import When
from interp.interventions.run import run
from interp.models.denoiser import Denoiser, Sampling
from interp.models.guidance import Branch
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts, from_token_lists
from interp.models.site import ATTENTION_PARTS, Site
from interp.progress import Progress, silent
from interp.tasks.image_metrics import as_bytes

if TYPE_CHECKING:
    from interp.shapes.scene import Scene

BATCH_TOKENS = 2048
"""Tokens of one forward pass, padding included."""
SHARD_ROWS = 32_768
"""Tokens of a shard, about."""
PICTURES = 32
"""Pictures of a shard, and of one sampling."""
_CONDITIONAL = When(branch=Branch.COND)


def harvest_texts(
    model: LanguageModel,
    texts: Sequence[str],
    sites: Sequence[Site | str],
    folder: str | Path,
    *,
    context: int = 128,
    first: int = 1,
    dtype: str = "float32",
    max_bytes: int | None = None,
    progress: Progress = silent,
) -> Store:
    """Activations at every token of some texts. Rows are labelled by `text`, `position` (in the text) and `token` (id).

    Args:
        texts: longer ones are cut into pieces of `context` tokens, which are run apart.
        sites: of which all heads are taken side by side; not scores or patterns.
        folder: of the store; one that the same harvest began is gone on with.
        first: position in each piece from which tokens are kept. The first token of a prompt, which most models use as
            a sink of attention, has activations unlike all others, whose size would decide the standardisation.
        dtype: in which activations are kept: float32, bfloat16 or float16.
        max_bytes: of all shards; the harvest ends before the one that would exceed it.

    Raises:
        PairError: no text; a text without tokens.
        SiteError: no site; a site that the model does not have; scores or patterns.
        ShapeError: activations that are not finite (with where).
        InterpError: no token that is kept; a folder with another harvest.
    """
    found = [model.check(site) for site in sites]
    _refuse(found)
    if context < 1 or not 0 <= first < context:
        raise InterpError(f"context={context}, first={first}: keep tokens from a position below the context.")
    pieces = _pieces(model, texts, context)
    plan = _text_shards([len(ids) - first for _, _, ids in pieces])
    if not plan:
        raise InterpError(f"No text has a token at position {first} or behind; there is nothing to keep.")
    widths = {str(site): _width(model, site) for site in found}
    about = {
        "model": model.name, "weights": model.weights_hash, "inputs": "texts", "n_inputs": len(texts),
        "context": context, "first": first,
    }  # fmt: skip
    store = _begun(folder, about, [[ids for _, _, ids in pieces], about], widths, dtype, 1)
    for shard in progress(plan[len(store.shards) :], f"{len(pieces)} pieces of text"):
        rows = sum(len(pieces[i][2]) - first for i in shard)
        if _exceeds(store, rows, max_bytes):
            break
        parts: dict[str, list[Tensor]] = {name: [] for name in (*widths, "text", "position", "token")}
        for batch in _batches(shard, [len(ids) for _, _, ids in pieces]):
            prompts = from_token_lists(model.tokenizer, [pieces[i][2] for i in batch], device=model.device)
            keep = prompts.mask.clone()
            keep[:, :first] = False
            _take(parts, model, prompts, found, keep)
            text = torch.tensor([pieces[i][0] for i in batch])[:, None].expand(keep.shape)
            start = torch.tensor([pieces[i][1] for i in batch])[:, None] + torch.arange(keep.shape[1])
            for name, label in (("text", text), ("position", start), ("token", prompts.ids.cpu())):
                parts[name].append(label[keep.cpu()])
        whole = {name: torch.cat(tensors) for name, tensors in parts.items()}
        if not store.append({site: whole.pop(site) for site in widths}, whole, max_bytes=max_bytes):
            break
    return _ended(store, len(plan))


def harvest_pictures(
    model: Denoiser,
    inputs: Sequence[str] | Sequence[Scene] | Sampling,
    sites: Sequence[Site | str],
    folder: str | Path,
    *,
    when: When = _CONDITIONAL,
    seed: int = 0,
    dtype: str = "float32",
    max_bytes: int | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Store:
    """Activations at every cell of some sites while pictures are made.

    Rows are labelled by `picture`, `branch` (0: cond, 1: uncond), `cell` and `step`, and ordered so, steps innermost.
    The store also keeps what was made: `extra("pictures")`, the texts `prompts`; for the shapes world what is seen in
    every picture as `extra("masks")` [picture, concept, y, x] with the names in `about["concepts"]`, and, of scenes,
    the asked-for `factors`.

    Args:
        inputs: prompts, one picture each, picture i from the noise of seed `seed` + i; scenes of the shapes world,
            which are asked for by their captions; or a finished sampling.
        sites: with a map of one value per cell and channel; all of the same grid.
        when: steps and branches to keep; by default all steps of the conditional branch.
        **settings: of the sampling: `steps`, `guidance`, `negative` … as in `Denoiser.sampling`.

    Raises:
        PairError: no input; a prompt that the pipeline does not know.
        SiteError: no site; one without cells; sites of different grids; scores or patterns.
        ShapeError: activations that are not finite (with where).
        InterpError: `when` admits nothing; a folder with another harvest.
    """
    found = [model.check(site) for site in sites]
    _refuse(found)
    sampling, factors = _sampling(model, inputs, seed, settings)
    for site in found:
        if site in model.text or site.part in ("cross_k", "cross_v", "time_embed"):
            raise SiteError(f"{site} has no cells; harvest outputs of blocks, like 'up.1.0.block_out'.")
    grids = {model.grid_of(site, sampling) for site in found}
    if len(grids) > 1:
        raise SiteError(f"Sites of different grids, {sorted(grids)}, have no common rows; harvest them apart.")
    widths = {str(site): _width(model, site) for site in found}
    shapes = _is_shapes(model)
    about = {
        "model": model.name, "weights": model.weights_hash, "inputs": "pictures", "n_inputs": len(sampling),
        "grid": list(grids.pop()), "when": str(when), "steps": sampling.steps, "guidance": sampling.guidance,
    }  # fmt: skip
    if shapes:
        from interp.tasks.concept_masks import SHAPES_CONCEPTS

        about["concepts"] = list(SHAPES_CONCEPTS)
    asked = [sampling.prompts, sampling.negative, sampling.seeds, dict(sampling.options)]
    steps = len(Denoising(model, sampling.select([0]), [()]).schedule.timesteps)  # some schedulers add one
    store = _begun(folder, about, [asked, about], widths, dtype, steps)
    plan = [range(i, min(i + PICTURES, len(sampling))) for i in range(0, len(sampling), PICTURES)]
    for shard in progress(plan[len(store.shards) :], f"{len(sampling)} pictures"):
        made = denoise(model, sampling.select(shard), (), found, when=when)
        x, labels = _cells(made, found, shard.start)
        assert made.images is not None
        pictures = as_bytes(made.images)
        extra = {"pictures": torch.from_numpy(pictures)}
        texts: dict[str, Any] = {"prompts": [sampling.prompts[i] for i in shard]}
        if shapes:
            from interp.tasks.concept_masks import seen_masks

            extra["masks"] = torch.from_numpy(seen_masks(pictures).masks)
        if factors is not None:
            texts["factors"] = [factors[i] for i in shard]
        if not store.append(x, labels, extra, texts, max_bytes=max_bytes):
            break
    return _ended(store, len(plan))


# -- of both -----------------------------------------------------------------------------------------


def _refuse(sites: Sequence[Site]) -> None:
    if not sites:
        raise SiteError("No site: name at least one.")
    for site in sites:
        if site.part in ATTENTION_PARTS:
            raise SiteError(f"{site}: scores and patterns have no fixed width, so no dictionary; take what they write.")


def _width(model: LanguageModel | Denoiser, site: Site) -> int:
    """Channels of a row: of all heads side by side, or of the one that the site names."""
    heads = 1 if site.head is not None else model.heads_of(site) or 1
    return heads * (model.width_of(site) or 0)


def _begun(
    folder: str | Path, about: Mapping[str, Any], plan: Sequence[Any], widths: Mapping[str, int], dtype: str, steps: int
) -> Store:
    """The store of this harvest, opened where it was begun."""
    mark = fingerprint([*plan, json.dumps(about), list(widths), dtype])
    if not (Path(folder) / "index.json").exists():
        return Store.create(folder, mark, about, widths, dtype, steps)
    store = Store.open(folder)
    if store.mark_of_plan != mark:
        raise InterpError(
            f"{folder} holds another harvest (of {store.about.get('model')}: {', '.join(store.sites)}); give another "
            "folder, or delete it."
        )
    return store


def _exceeds(store: Store, rows: int, max_bytes: int | None) -> bool:
    size = rows * sum(store.widths.values()) * torch.empty(0, dtype=store.dtype).element_size()
    return max_bytes is not None and store.bytes + size > max_bytes


def _ended(store: Store, planned: int) -> Store:
    if not store.shards:
        raise InterpError("The byte budget is smaller than the first shard; nothing was kept.")
    whole = len(store.shards) == planned
    store.finish("all inputs" if whole else f"byte budget, after {len(store.shards)} of {planned} shards")
    return store


# -- texts -------------------------------------------------------------------------------------------


def _pieces(model: LanguageModel, texts: Sequence[str], context: int) -> list[tuple[int, int, list[int]]]:
    """(text, position of its first token, token ids) of every piece."""
    if isinstance(texts, str) or not len(texts):
        raise PairError("No texts: give a list of at least one.")
    pieces = []
    for number, text in enumerate(texts):
        ids = list(model.tokenizer(text).input_ids) if text else []
        if not ids:
            raise PairError(f"Text {number} has no tokens: {text!r}.")
        pieces += [(number, start, ids[start : start + context]) for start in range(0, len(ids), context)]
    return pieces


def _text_shards(rows: Sequence[int]) -> list[list[int]]:
    """Pieces, in order, of about `SHARD_ROWS` rows each; those without a row are left out."""
    shards: list[list[int]] = []
    held = SHARD_ROWS
    for piece, n in enumerate(rows):
        if n <= 0:
            continue
        if held >= SHARD_ROWS:
            shards.append([])
            held = 0
        shards[-1].append(piece)
        held += n
    return shards


def _batches(shard: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Pieces of about equal length, `BATCH_TOKENS` together."""
    batches: list[list[int]] = []
    for piece in sorted(shard, key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(piece)
    return batches


def _take(
    parts: dict[str, list[Tensor]], model: LanguageModel, prompts: Prompts, sites: Sequence[Site], keep: Tensor
) -> None:
    with torch.no_grad():
        made = run(model, prompts, capture=sites, logits=any(site.part == "logits" for site in sites))
    for site in sites:
        parts[str(site)].append(made[site].flatten(2)[keep].cpu())


# -- pictures ----------------------------------------------------------------------------------------


def _is_shapes(model: Denoiser) -> bool:
    from interp.shapes.pipeline import ShapesPipeline

    return isinstance(model.pipeline, ShapesPipeline)


def _sampling(
    model: Denoiser, inputs: Any, seed: int, settings: Mapping[str, Any]
) -> tuple[Sampling, list[dict[str, str]] | None]:
    from interp.shapes.caption import full_caption
    from interp.shapes.scene import Scene, factors_of

    if isinstance(inputs, Sampling):
        return model.sampling(inputs, seeds=(), **settings), None
    if isinstance(inputs, str) or not len(inputs):
        raise PairError("No inputs: give a list of at least one prompt or scene.")
    scenes = [scene for scene in inputs if isinstance(scene, Scene)]
    if scenes and len(scenes) < len(inputs):
        raise PairError("Give prompts or scenes, not both.")
    prompts = [full_caption(scene) for scene in scenes] if scenes else list(inputs)
    sampling = model.sampling(prompts, seeds=0, **settings)
    sampling = replace(sampling, seeds=tuple(range(seed, seed + len(sampling))))
    return sampling, [factors_of(scene) for scene in scenes] if scenes else None


def _cells(
    made: DenoisingRun, sites: Sequence[Site], first: int
) -> tuple[dict[str, Tensor], dict[str, Int[Tensor, "row"]]]:
    """Rows (picture, branch, cell, step) of every site, and their labels."""
    x = {}
    for site in sites:
        ordered = made[site].permute(2, 1, 3, 0, *range(4, made[site].ndim))
        x[str(site)] = ordered.flatten(4).flatten(0, 3).cpu()
    rows, cells = made[sites[0]].shape[2:4]
    steps = torch.tensor(made.steps)
    branches = torch.tensor([0 if branch is Branch.COND else 1 for branch in made.branches])
    values = (torch.arange(first, first + rows), branches, torch.arange(cells), steps)
    grid = torch.meshgrid(*values, indexing="ij")
    return x, {name: g.flatten() for name, g in zip(("picture", "branch", "cell", "step"), grid, strict=True)}
