"""What does adding a latent do to the next token? Measured, not read off the unembedding.

At the last token of some prompts the latent's direction is added, as much of it as stands there in an ordinary row
where the latent is on; the logarithm of the next token's probability changes by so many nats, and these are averaged
over the prompts. Latents that push a token up say something about what follows them; most do not.

The control is a random direction of the same length for each latent, added at the same places: what it changes is what
the length alone does. `kl` (to the unchanged distribution, nats) and `kl_random` are to be read beside each other.

All latents are rows of few forward passes, which begin at the site and at the last token. In place of it one often
multiplies the direction with the unembedding ("logit lens"), which leaves out all layers between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.dictionaries.codes import checked_latents
from interp.dictionaries.dictionary import Dictionary
from interp.errors import InterpError, ShapeError
from interp.interventions.differentiable import Differentiable, differentiable
from interp.interventions.edits import Add
from interp.models.language_model import LanguageModel
from interp.models.prompts import token_strings
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance

NEUTRAL = (
    "I think that the", "Yesterday we talked about", "The next thing is", "It was a", "There are many",
    "In the beginning", "She said that", "The most important",
)  # fmt: skip
"""Beginnings that call for no token in particular."""
_ROWS = 96


@dataclass(frozen=True, repr=False, eq=False)
class TokenEffects(Result):
    """Changes of next-token log probabilities.

    `.data` holds by `latent`: `promoted`, `promoted_by` and `suppressed`, `suppressed_by` [latent, rank], tokens and
    nats, the largest changes of all tokens, mean over prompts; `kl` and `kl_random`, mean over prompts, nats.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"What adding a latent at {p['site']} does to the next token · {p['model']}"

    def summary(self) -> str:
        """How many latents do more than random directions, and the strongest."""
        kl, random = self.data["kl"].values, self.data["kl_random"].values
        lines = [
            f"TokenEffects: {self.title}",
            f"  {len(kl)} latents, {self.provenance['n_prompts']} prompts; KL {np.median(kl):.3g} nats in the median, "
            f"random directions of the same lengths {np.median(random):.3g}",
            f"  {int((kl > random).sum())} of {len(kl)} change more than their random direction",
        ]
        for i in np.argsort(-kl)[:5]:
            words = ", ".join(repr(str(t)) for t in self.data["promoted"].values[i][:5])
            lines.append(f"  latent {int(self.data['latent'][i])}: {kl[i]:.3g} nats; promotes {words}")
        return "\n".join(lines)


@torch.no_grad()
def token_effects(
    model: LanguageModel,
    dictionary: Dictionary,
    site: Site | str,
    latents: Sequence[int],
    amounts: Sequence[float],
    *,
    prompts: Sequence[str] = NEUTRAL,
    n_tokens: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> TokenEffects:
    """Add each latent at the last token of each prompt.

    Args:
        dictionary: that writes at the site.
        site: one without heads, in the residual stream or written into it.
        latents: numbers in the dictionary.
        amounts: of each, in units of its code; an atlas has `mean`, the mean code where the latent is on.
        n_tokens: of either side that are kept.
        seed: of the random directions.

    Raises:
        InterpError: no latent, or not as many amounts.
        ShapeError: a latent that is not there; a dictionary that writes another width than the site's; an amount that
            is not finite.
        SiteError: a site that the model does not have.
    """
    import xarray as xr

    place = model.check(site)
    chosen = checked_latents(list(latents), dictionary.n_latents)
    if not len(chosen) or len(amounts) != len(chosen):
        raise InterpError(f"{len(chosen)} latents and {len(amounts)} amounts; give at least one, and one for each.")
    strength = torch.as_tensor(list(amounts), dtype=torch.float32)
    if not strength.isfinite().all():
        raise ShapeError("An amount is not finite.")
    if dictionary.write.width != model.width_of(place) or model.heads_of(place):
        raise ShapeError(f"The dictionary writes rows of {dictionary.write.width}; {place} has no such rows.")
    added = dictionary.directions(chosen) * strength[:, None]
    random = torch.randn(added.shape, generator=torch.Generator().manual_seed(seed))
    random *= added.norm(dim=1, keepdim=True) / random.norm(dim=1, keepdim=True)
    ready = differentiable(model, list(prompts), [place])
    base = ready.base_logits()[:, 0].float().log_softmax(-1)
    up, down, sizes = [], [], []
    at_once = max(1, _ROWS // len(prompts))
    for start in progress(range(0, len(chosen), at_once), f"{len(chosen)} latents"):
        change, kl = _changed(ready, place, added[start : start + at_once], base)
        up.append(change.topk(n_tokens))
        down.append((-change).topk(n_tokens))
        sizes.append(torch.stack([kl, _changed(ready, place, random[start : start + at_once], base)[1]]))
    kl, kl_random = torch.cat(sizes, 1).cpu().numpy()
    data: dict[str, Any] = {"kl": ("latent", kl, _NATS), "kl_random": ("latent", kl_random, _NATS)}
    for name, parts, sign in (("promoted", up, 1), ("suppressed", down, -1)):
        ids = torch.cat([part.indices for part in parts]).cpu()
        words = np.array(token_strings(model.tokenizer, ids.flatten().tolist()), dtype=object).reshape(ids.shape)
        data[name] = (("latent", "rank"), words)
        data[f"{name}_by"] = (
            ("latent", "rank"),
            sign * torch.cat([part.values for part in parts]).cpu().numpy(),
            _NATS,
        )
    about = provenance(
        experiment="token effects", model=model.name, weights=model.weights_hash, site=str(place), seed=seed,
        prompts=list(prompts), n_prompts=len(prompts), amounts=[float(a) for a in amounts],
    )  # fmt: skip
    return TokenEffects(xr.Dataset(data, {"latent": chosen.numpy()}), about)


_NATS = {"units": "nats"}


def _changed(
    ready: Differentiable, site: Site, added: Float[Tensor, "latent width"], base: Float[Tensor, "prompt token"]
) -> tuple[Float[Tensor, "latent token"], Float[Tensor, "latent"]]:
    """Mean change of log probabilities, and mean KL to the changed distribution."""
    rows = ready.rows([[Add(site, one.to(base.device), positions=-1)] for one in added])
    new = rows.logits[:, 0].float().log_softmax(-1)
    change = new - base[rows.example]
    kl = -(base[rows.example].exp() * change).sum(-1)
    many = torch.bincount(rows.variant, minlength=len(added)).to(change)
    total = torch.zeros(len(added), change.shape[1], device=change.device).index_add(0, rows.variant, change)
    return total / many[:, None], torch.zeros_like(many).index_add(0, rows.variant, kl) / many
