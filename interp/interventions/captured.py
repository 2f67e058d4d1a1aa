"""What one execution of a model returned: a `Run` of a language model, a `DenoisingRun` of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import SiteError
from interp.models.denoiser import Sampling
from interp.models.guidance import Branch
from interp.models.prompts import Prompts
from interp.models.site import ATTENTION_PARTS, Site
from interp.tasks.image_metrics import as_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One forward pass over a batch of prompts.

    Attributes:
        prompts: the prompts, left-aligned; columns past a prompt's length hold nothing meaningful.
        logits: `None` if they were not asked for.
        activations: the captured sites, after any edit made there; shapes as in `interp.models.site`.
        positions: [batch, n] positions that were kept, in place of the position axis; `None`: all.
    """

    prompts: Prompts
    logits: Float[Tensor, "batch pos d_vocab"] | None
    activations: Mapping[Site, Tensor]
    positions: Int[Tensor, "batch n"] | None = None

    def __getitem__(self, site: Site | str | tuple) -> Tensor:
        """A captured activation: `run[Site("z", 5)]`, `run["z", 5]`, `run["z", 5, 3]`, `run["blocks.5.attn.hook_z"]`.

        Raises:
            SiteError: the site was not captured.
        """
        return _captured(self.activations, site)

    def last_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """Logits at each prompt's last token."""
        if self.logits is None:
            raise SiteError("This run kept no logits; run it with logits=True.")
        rows = self.prompts.lengths.new_tensor(range(len(self.prompts)))
        return self.logits[rows, self.prompts.lengths - 1]

    def __repr__(self) -> str:
        sites = ", ".join(map(str, list(self.activations)[:6])) + (" …" if len(self.activations) > 6 else "")
        return f"Run({len(self.prompts)} prompts × {self.prompts.ids.shape[1]} tokens; captured: {sites or 'nothing'})"


@dataclass(frozen=True, slots=True, eq=False)
class DenoisingRun:
    """One run of a diffusion pipeline.

    Attributes:
        sampling: what was asked for.
        images: pictures in [0, 1]; `None` where the run stopped before the end.
        latents: what the denoiser received at each step.
        timesteps: of the scheduler, and `sigmas` the noise levels σ/α, of every step.
        steps: the steps at which activations were kept.
        branches: the branches that were kept.
        activations: the captured sites, after any edit made there: [step, branch, row, pos, …]; of the text encoders
            [branch, row, pos, …]; scores and patterns [step, branch, row, head, query, key].
        partial: whether only some positions were kept.
    """

    sampling: Sampling
    images: Float[Tensor, "row 3 height width"] | None
    latents: Float[Tensor, "step row ..."]
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    steps: tuple[int, ...]
    branches: tuple[Branch, ...]
    activations: Mapping[Site, Tensor]
    partial: bool = False

    def __getitem__(self, site: Site | str | tuple) -> Tensor:
        """A captured activation: `run["cross_attn_out", "up.1.0"]`, `run["up.1.0.cross_attn_out"]`.

        Raises:
            SiteError: the site was not captured.
        """
        return _captured(self.activations, site)

    def at(self, site: Site, step: int | None, branch: Branch) -> Float[Tensor, "row pos ..."]:
        """The activation at one step (`None` for a text encoder's) in one branch.

        Raises:
            SiteError: the site, step or branch was not captured.
        """
        x = self[site]
        if branch not in self.branches or (step is not None and step not in self.steps):
            raise SiteError(
                f"{site} at step {step} in branch {branch.value!r} was not captured; this run kept steps "
                f"{list(self.steps)} of {', '.join(b.value for b in self.branches)}."
            )
        b = self.branches.index(branch)
        return x[b] if step is None else x[self.steps.index(step), b]

    def pictures(self) -> list[Any]:
        """The images as PIL images."""
        from PIL import Image

        if self.images is None:
            raise SiteError("This run stopped before its pictures were made.")
        return [Image.fromarray(picture) for picture in as_bytes(self.images)]

    def __repr__(self) -> str:
        sites = ", ".join(map(str, list(self.activations)[:6])) + (" …" if len(self.activations) > 6 else "")
        return f"DenoisingRun({len(self.sampling)} rows × {len(self.timesteps)} steps; captured: {sites or 'nothing'})"


def _captured(activations: Mapping[Site, Tensor], site: Site | str | tuple) -> Tensor:
    if isinstance(site, str):
        site = Site.parse(site)
    elif isinstance(site, tuple):
        site = Site(*site)
    if site in activations:
        return activations[site]
    whole = activations.get(site.all_heads)
    if whole is None or site.head is None:
        have = ", ".join(map(str, activations)) or "none"
        raise SiteError(f"{site} was not captured in this run. Captured: {have}.")
    return whole.select(-3 if site.part in ATTENTION_PARTS else -2, site.head)
