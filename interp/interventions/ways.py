"""Which way the operations of a packed sweep go, by the same choice that every call makes (`interp.kernels.path`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from interp.interventions.base_states import BaseStates
from interp.interventions.packed import only_added
from interp.interventions.plan import Plan
from interp.kernels.path import Path, in_one_piece, path_on
from interp.models.site import ATTENTION_PARTS

_EXPLICIT = Path(False, "attention weights are edited there, or scores in another way than by adding to them")


def ways(device: torch.device, dtype: torch.dtype, base: BaseStates, plans: Sequence[Plan]) -> list[str]:
    """A line for every operation that these plans take, or several where it goes several ways, with its sites.

    Args:
        device: of the model.
        dtype: of its states.
    """
    states = [*base.keys, *base.values]
    attention = path_on(
        "prefix_attention", device, {dtype, *(t.dtype for t in states)}, one_piece=in_one_piece(*states),
        d_head=states[0].shape[-1],
    )  # fmt: skip
    found: dict[str, dict[Path, list[str]]] = defaultdict(lambda: defaultdict(list))
    for site, ops in (item for plan in plans for item in plan.sites.items()):
        if attention.fused and site.part in ATTENTION_PARTS:
            if site.part == "attn_scores" and only_added(ops):
                continue  # the attention kernel adds it itself
            found["prefix_attention"][_EXPLICIT].append(str(site))
        for op in ops:
            name, way = op.way(device, dtype)
            if way.fused and site.part in ATTENTION_PARTS:  # whose layout hangs on the heads
                way = Path(True, "where their keys lie in one piece")
            found[name][way].append(str(site))
    found["prefix_attention"][attention].append("the other layers")
    return [
        f"{name}{f' at {_few(sites)}' if len(by_way) > 1 else ''}: {way}."
        for name, by_way in sorted(found.items())
        for way, sites in by_way.items()
    ]


def _few(sites: Sequence[str]) -> str:
    """Distinct sites, the first three by name."""
    names = list(dict.fromkeys(sites))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
