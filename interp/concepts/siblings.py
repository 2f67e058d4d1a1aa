"""Do features that have a parent share neurons, and what do the shared and the unshared ones do?

Features of an MLP (`interp.dictionaries.semi_nmf`) are sets of neurons. Of siblings, the children of one parent in a
hierarchy (`interp.dictionaries.refine`), the *core* is the neurons that all of them hold with the same sign, and what
is *exclusive* to one are those that no other holds. The claim: amplifying the core makes the words of all siblings
likelier, amplifying what is exclusive makes those of one likelier, at the cost of the others.

Here it is asked of the model. At the last token of some prompts each set of neurons is added to the activation, with
the feature's own values, scaled to one length; what is told is the change of the mean log probability of each kind's
words as the next token, in nats.

The control: the same values on neurons drawn at random (so a set of the same size and length), many times. `rank` says
in which share of the draws, and of the set itself, the change was at least as large.

When it misleads: words that are likelier next are one effect of a feature of many; what stands for a word that is read
need not make it likelier to be said. A core of few neurons is easily empty or a matter of luck; `sizes` stands in the
result. Ranks are of single comparisons, with a smallest value of 1 / (draws + 1).

Source: Shafran, Geiger, Geva 2025 (arXiv:2506.10920), who call the two core and exclusive neurons. We differ: lengths
are equal, the effects are averaged over prompts with intervals, and stand beside random sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.edits import Add
from interp.interventions.run import run
from interp.interventions.sweep import sweep
from interp.models.language_model import LanguageModel
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval
from interp.tasks.metrics import FunctionMetric

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CORE = "core"


@dataclass(frozen=True, repr=False, eq=False)
class SiblingEffects(Result):
    """What amplifying the shared and the exclusive neurons of siblings does to the words of each kind.

    `.data` holds `effect` [edit, words], nats, mean over prompts, with its 95 % interval `effect_low`, `effect_high`;
    `random` [edit, draw, words]; `rank` [edit, words]; and `sizes` [edit], numbers of neurons. Edits are `"core"` and
    the names of the siblings (what is exclusive to each).
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Amplifying what siblings share, and what not, at {p['site']} · {p['model']}"

    def summary(self) -> str:
        """Every effect beside the middle 95 % of the random sets."""
        data, p = self.data, self.provenance
        lines = [
            f"SiblingEffects: {self.title}",
            f"  change of the words' mean log probability, nats; {p['n_prompts']} prompts, {p['draws']} random sets",
        ]
        for edit in map(str, data["edit"].values):
            lines.append(f"  {edit} ({int(data['sizes'].sel(edit=edit))} neurons)")
            for words in map(str, data["words"].values):
                one = data.sel(edit=edit, words=words)
                low, high = np.quantile(one["random"].values, [0.025, 0.975])
                effect, start, end, rank = (float(one[n]) for n in ("effect", "effect_low", "effect_high", "rank"))
                lines.append(
                    f"    {words}: {effect:+.2f} [{start:+.2f}, {end:+.2f}], random {low:+.2f} to {high:+.2f}, "
                    f"rank {rank:.2f}"
                )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """The effects, a group of bars for each edit, with intervals over prompts."""
        from interp.plots import bars

        data = self.data
        return bars(
            data["effect"], y="edit", bar="words", low=data["effect_low"], high=data["effect_high"],
            title=self.title, unit="nats", quantity="change of log p", y_labels=list(map(str, data["edit"].values)),
        )  # fmt: skip


@torch.no_grad()
def sibling_effects(
    model: LanguageModel,
    site: Site | str,
    siblings: Mapping[str, Float[Tensor, "_"]],
    words: Mapping[str, Sequence[str]],
    prompts: Sequence[str],
    *,
    strength: float = 1.0,
    draws: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> SiblingEffects:
    """Amplify the core of some features and what is exclusive to each, at the last token of each prompt.

    Args:
        site: where the features live, `mlp_act` of a layer.
        siblings: by name, two features or more as neurons [d_mlp]; 0 where a neuron is not part of it.
        words: by kind, the words whose probability is measured (those of the siblings, and others to compare with),
            each one token; a leading space is theirs.
        prompts: that could go on with any of them.
        strength: length of what is added, in mean lengths of the site's activation at these tokens.
        draws: random sets for each edit.
        seed: of the draws.

    Raises:
        InterpError: fewer than two siblings, no prompts or draws, a strength that is not above 0; siblings without a
            common neuron, or one without a neuron of its own.
        ShapeError: features of another width than the site's, or not finite; a site with heads.
        PairError: no words of a kind, or a word that is not one token.
        SiteError: a site that the model does not have.
    """
    import xarray as xr

    place = model.check(site)
    if len(siblings) < 2 or not prompts or draws < 1 or not strength > 0:
        raise InterpError(
            f"{len(siblings)} siblings, {len(prompts)} prompts, {draws} draws, strength {strength}: at least two "
            "siblings, one prompt and one draw are needed, and a strength above 0."
        )
    if isinstance(prompts, str):
        raise InterpError(f"One prompt, {prompts[:40]!r}, would be read letter by letter: give a list.")
    ids = {kind: _token_ids(model, kind, some) for kind, some in words.items()}
    if not ids:
        raise PairError("No words: say whose probability is measured.")
    if model.heads_of(place):
        raise ShapeError(f"{place} has heads, and no neurons that features could share; take mlp_act.")
    sets = _parts(siblings, model.width_of(place), place)
    tokens = model.prompts(list(prompts))
    typical = run(model, tokens, (), [place], logits=False)[place]
    length = strength * typical[torch.arange(len(tokens)), tokens.lengths - 1].norm(dim=-1).mean()
    generator = torch.Generator().manual_seed(seed)
    added = []
    for one in sets.values():
        unit = (one / one.norm()).to(typical) * length
        added += [unit, *(unit[torch.randperm(len(unit), generator=generator)] for _ in range(draws))]
    metrics = [FunctionMetric(_mean_log_probability(some), kind, "nats") for kind, some in ids.items()]
    swept = sweep(model, tokens, [[Add(place, one, positions=-1)] for one in added], metrics, progress=progress)
    change = torch.stack([swept.values[kind] - swept.base[kind] for kind in ids], 1).float().cpu().numpy()
    change = change.reshape(len(sets), 1 + draws, len(ids), len(tokens))
    effect, random = change[:, 0], change[:, 1:].mean(-1)
    low, high = bootstrap_interval(effect, seed=seed)
    rank = (1 + (random >= effect.mean(-1)[:, None]).sum(1)) / (1 + draws)
    pair, nats = ("edit", "words"), {"units": "nats"}
    data: dict[str, Any] = {
        "effect": (pair, effect.mean(-1), nats), "effect_low": (pair, low, nats), "effect_high": (pair, high, nats),
        "random": (("edit", "draw", "words"), random, nats), "rank": (pair, rank),
        "sizes": ("edit", [int((one != 0).sum()) for one in sets.values()]),
    }  # fmt: skip
    about = provenance(
        experiment="effects of siblings", model=model.name, weights=model.weights_hash, site=str(place), seed=seed,
        prompts=list(prompts), n_prompts=len(prompts), draws=draws, strength=strength,
        words={kind: list(some) for kind, some in words.items()},
    )  # fmt: skip
    return SiblingEffects(xr.Dataset(data, {"edit": list(sets), "words": list(ids)}), about)


def _parts(siblings: Mapping[str, Tensor], width: int | None, place: Site) -> dict[str, Tensor]:
    """The core, and what is exclusive to each: neurons with the features' own values, 0 elsewhere."""
    for name, one in siblings.items():
        if one.shape != (width,) or not one.isfinite().all():
            raise ShapeError(
                f"{name} has shape {list(one.shape)}; {place} has {width} neurons, and all must be finite."
            )
        if name == CORE:
            raise InterpError(f"{CORE!r} is what all siblings share; call this one otherwise.")
    stacked = torch.stack([one.detach().float() / one.norm().clamp(min=1e-12) for one in siblings.values()])
    held = stacked != 0
    alike = held.all(0) & ((stacked > 0).all(0) | (stacked < 0).all(0))
    parts = {CORE: stacked.mean(0) * alike}
    for name, one, own in zip(siblings, stacked, held, strict=True):
        parts[name] = one * (own & (held.sum(0) == 1))
    for name, one in parts.items():
        if not one.any():
            what = "no neuron in common, with one sign" if name == CORE else f"no neuron that is {name}'s alone"
            raise InterpError(f"{', '.join(siblings)} have {what}. Keep more neurons of each (`kept` of `semi_nmf`).")
    return parts


def _token_ids(model: LanguageModel, kind: str, words: Sequence[str]) -> list[int]:
    if isinstance(words, str) or not words:
        raise PairError(f"Words of {kind!r}: give a list of at least one, got {words!r}.")
    found = []
    for word in words:
        ids = list(model.tokenizer(f" {word.strip()}", add_special_tokens=False).input_ids)
        if len(ids) != 1:
            raise PairError(
                f"{word!r} ({kind}) is {len(ids)} tokens after a space; leave it out, or take another word."
            )
        found += ids
    return found


def _mean_log_probability(ids: Sequence[int]) -> Any:
    return lambda logits, _example: logits.float().log_softmax(-1)[:, ids].mean(1)
