"""What heads look at, and what they copy: the first questions about the heads of a circuit.

Both are descriptions, not effects. A head that attends to a name need not move it; whether it matters is asked of
`exact_nodes`, path patching and `evaluate`. What belongs together is a head with an effect *and* a behaviour.

Sources: attention by role, Wang et al. 2022, "Interpretability in the Wild" (arXiv:2211.00593) and Olsson et al. 2022
(arXiv:2209.11895); copying, Wang et al. 2022, appendix H.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.circuits.problem import Pairs
from interp.circuits.stream import project
from interp.errors import InterpError, SiteError, nearest
from interp.interventions.run import run
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site
from interp.results import Result, provenance
from interp.tasks.pairs import EncodedTask, PromptPair, Task

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

ROLES = {
    "answer": "last token → where the answer stands in the prompt",
    "wrong answer": "last token → where the wrong answer stands first",
    "wrong answer again": "last token → where the wrong answer stands again",
    "previous token": "each token → the one before it",
    "same token": "each token → where it stood before",
    "after same token": "each token → what followed it before (induction)",
    "first token": "each token → the first of the prompt, where heads rest",
}
"""Where attention goes. A sum over such keys, a mean over the queries that have one; NaN where a prompt has none."""

_BUDGET = 2**28
"""Bytes of attention patterns that are held at once."""


@dataclass(frozen=True, repr=False, eq=False)
class HeadBehaviour(Result):
    """What every head attends to, and whether it copies.

    `.data` holds over `layer` × `head` × `example`: `attention`, also over `role` (see `ROLES`), weight of attention
    on the clean prompt; `copying`, 1 where the head, attending to nothing but the answer's token, raises that token
    among the `top` highest logits of its own output, else 0; `suppressing`, the same of the lowest. NaN where the
    answer does not stand in the prompt.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"What heads attend to and copy · {p['task']} ({p['n_scored']} pairs) · {p['model']}"

    def of(self, heads: Sequence[str]) -> pandas.DataFrame:
        """A row per head, named as in a graph (`"a3.h5"`): means over examples.

        Raises:
            SiteError: no such head.
        """
        import pandas

        sizes = self.data.sizes
        known = {f"a{layer}.h{head}": (layer, head) for layer in range(sizes["layer"]) for head in range(sizes["head"])}
        if unknown := [name for name in heads if name not in known]:
            raise SiteError(f"There is no head {unknown[0]!r}." + nearest(unknown[0], known))
        means = self.data.mean("example")
        rows = {}
        for name in heads:
            one = means.isel(layer=known[name][0], head=known[name][1])
            rows[name] = {
                **{role: float(one["attention"].sel(role=role)) for role in ROLES},
                "copying": float(one["copying"]), "suppressing": float(one["suppressing"]),
            }  # fmt: skip
        return pandas.DataFrame.from_dict(rows, orient="index")

    def summary(self) -> str:
        """The three strongest heads of every role, and of copying."""
        means = self.data.mean("example")
        lines = [f"HeadBehaviour: {self.title}"]
        found = {role: means["attention"].sel(role=role).values for role in ROLES}
        found |= {name: means[name].values for name in ("copying", "suppressing")}
        for name, values in found.items():
            if np.isnan(values).all():
                lines.append(f"  {name:>18}: no prompt has one")
                continue
            order = np.argsort(-np.nan_to_num(values), axis=None, kind="stable")[:3]
            at = [np.unravel_index(i, values.shape) for i in order]
            lines.append(f"  {name:>18}: " + ", ".join(f"a{x}.h{h} {values[x, h]:.2f}" for x, h in at))
        return "\n".join(lines)

    def plot(self, roles: Sequence[str] = ("answer", "wrong answer", "wrong answer again")) -> Figure:
        """A heat map per role.

        Raises:
            InterpError: no such role, or none that a prompt has.
        """
        from interp.plots import heatmap

        if unknown := [role for role in roles if role not in ROLES]:
            raise InterpError(f"There is no role {unknown[0]!r}." + nearest(unknown[0], ROLES))
        means = self.data["attention"].sel(role=list(roles)).mean("example").dropna("role", how="all")
        if not means.size:
            raise InterpError(f"No prompt of this task has {', '.join(map(repr, roles))}; others: {', '.join(ROLES)}.")
        return heatmap(
            means, x="head", y="layer", facet="role", title=self.title, unit="attention weight", diverging=False
        )


@torch.no_grad()
def head_behaviour(model: LanguageModel, task: Pairs, *, top: int = 5, budget: int = _BUDGET) -> HeadBehaviour:
    """Attention by role on the clean prompts, and copying, of every head.

    Copying follows Wang et al. 2022: the state behind the first block at the answer's token (of the first layer's
    heads: the embedding) goes through the head's values and output projection, as if the head attended to it alone,
    then through the final norm and the unembedding. Theirs takes names of their templates; here it is the task's
    answer, wherever it stands in the prompt.

    Args:
        top: how near the top (or the bottom) of the vocabulary counts.
        budget: bytes of attention patterns that are held at once.

    Raises:
        InterpError: a model that does not serve attention patterns; `top` outside the vocabulary.
        PairError: as `Task.encode`.
    """
    import xarray as xr

    if isinstance(task, PromptPair):
        task = Task(task.label or "given", (task,), "given by the caller", None)
    encoded = task if isinstance(task, EncodedTask) else task.encode(model)
    if not 1 <= top <= model.d_vocab // 2:
        raise InterpError(f"top={top}: between 1 and half of the vocabulary of {model.d_vocab:,}.")
    prompts = encoded.clean
    n, layers, heads = len(encoded), model.n_layers, model.n_heads
    attention = np.full((len(ROLES), layers, heads, n), np.nan)
    copying, suppressing = (np.full((layers, heads, n), np.nan) for _ in range(2))
    width = prompts.ids.shape[1]
    step = max(1, budget // (layers * heads * width**2 * model.dtype.itemsize))
    states = [Site("resid_pre", 0)] + ([Site("resid_pre", 1)] if layers > 1 else [])
    for rows in torch.arange(n, device=model.device).split(step):
        some = prompts.select(rows)
        found = run(model, some, (), [*model.sites("attn_pattern"), *states], logits=False).activations
        keys = _keys(some, encoded.answer[rows], encoded.wrong_answer[rows])
        at = rows.cpu().numpy()
        for role, (weights, queries) in enumerate(keys):
            for layer in range(layers):
                looked = (found[Site("attn_pattern", layer)] * weights[:, None]).sum((2, 3))
                attention[role, layer, :, at] = (looked / queries[:, None]).double().cpu().numpy()
        stands = keys[0][0].sum(1)  # [batch, key], where the answer stands
        having = torch.nonzero(stands.any(1))[:, 0]
        place = stands[having].int().argmax(1)
        for layer in range(layers):
            state = found[states[min(layer, len(states) - 1)]][having, place]
            for head, logits in enumerate(_written(model, layer, state)):
                own = logits.gather(1, encoded.answer[rows][having, None])
                above, below = (logits > own).sum(1), (logits < own).sum(1)
                columns = at[having.cpu().numpy()]
                copying[layer, head, columns] = (above < top).double().cpu().numpy()
                suppressing[layer, head, columns] = (below < top).double().cpu().numpy()
    dims = ("layer", "head", "example")
    share = {"unit": "share"}
    data = xr.Dataset(
        {
            "attention": (("role", *dims), attention, {"unit": "weight"}),
            "copying": (dims, copying, share), "suppressing": (dims, suppressing, share),
        },
        {"role": list(ROLES), "layer": list(range(layers)), "head": list(range(heads)), "example": list(range(n))},
    )  # fmt: skip
    record = provenance(
        experiment="head behaviour", model=model.name, weights=model.weights_hash, task=encoded.task.name,
        task_seed=encoded.task.seed, top=top, n_attempted=n, n_scored=n,
        clean=[pair.clean for pair in encoded.task.pairs],
    )  # fmt: skip
    return HeadBehaviour(data, record)


def _keys(
    prompts: Prompts, answer: Int[Tensor, "batch"], wrong: Int[Tensor, "batch"]
) -> list[tuple[Float[Tensor, "batch query key"], Float[Tensor, "batch"]]]:
    """For each role: the (query, key) pairs that count, and the number of queries that have one (NaN for none)."""
    ids, width = prompts.ids, prompts.ids.shape[1]
    position = torch.arange(width, device=ids.device)
    real = prompts.mask
    last = position == (prompts.lengths - 1)[:, None]
    causal = (position[:, None] >= position) & real[:, :, None] & real[:, None]
    same = ids[:, :, None] == ids[:, None]
    earlier = position[:, None] > position
    after = torch.zeros_like(same)
    after[:, :, 1:] = (same & earlier)[:, :, :-1]

    def stands(token: Tensor) -> Tensor:
        return (ids == token[:, None]) & real

    again = stands(wrong)
    first = again & (again.cumsum(1) == 1)
    pairs = [
        last[:, :, None] & stands(answer)[:, None],
        last[:, :, None] & first[:, None],
        last[:, :, None] & (again & ~first)[:, None],
        (position[:, None] == position + 1).expand_as(same),
        same & earlier,
        after,
        ((position == 0) & earlier).expand_as(same),
    ]
    counted = [causal & pair for pair in pairs]
    queries = [pair.any(2).sum(1).double() for pair in counted]
    return [(pair.double(), torch.where(n > 0, n, torch.nan)) for pair, n in zip(counted, queries, strict=True)]


def _written(
    model: LanguageModel, layer: int, state: Float[Tensor, "batch d_model"]
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """Each head's own logits, if it attends to this state alone."""
    kv, group = model.n_kv_heads, model.n_heads // model.n_kv_heads
    values = project(model, layer, state[None, :, None], slice(model.n_heads + kv, None))[:, :, 0]
    modules = model.layers[layer]
    for head, weight in enumerate(model.head_projection(layer)):
        out = values[head // group] @ weight
        out = out if modules.post_attn_norm is None else modules.post_attn_norm(out)
        yield model.unembed_columns(out if model.final_norm is None else model.final_norm(out), None)
