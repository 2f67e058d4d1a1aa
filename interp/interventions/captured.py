"""`Run`: what one execution of a model returned: logits, captured activations, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import SiteError
from interp.models.prompts import Prompts
from interp.models.site import Site


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
        if isinstance(site, str):
            site = Site.parse(site)
        elif isinstance(site, tuple):
            site = Site(*site)
        if site in self.activations:
            return self.activations[site]
        whole = self.activations.get(site.all_heads)
        if whole is None or site.head is None:
            have = ", ".join(map(str, self.activations)) or "none"
            raise SiteError(f"{site} was not captured in this run. Captured: {have}.")
        axis = 1 if site.part in ("attn_scores", "attn_pattern") else 2
        return whole.select(axis, site.head)

    def last_logits(self) -> Float[Tensor, "batch d_vocab"]:
        """Logits at each prompt's last token."""
        if self.logits is None:
            raise SiteError("This run kept no logits; run it with logits=True.")
        rows = self.prompts.lengths.new_tensor(range(len(self.prompts)))
        return self.logits[rows, self.prompts.lengths - 1]

    def __repr__(self) -> str:
        sites = ", ".join(map(str, list(self.activations)[:6])) + (" …" if len(self.activations) > 6 else "")
        return f"Run({len(self.prompts)} prompts × {self.prompts.ids.shape[1]} tokens; captured: {sites or 'nothing'})"
