"""Attention knockout: through which layers does the last token read the subject?

Cut the attention edges from one query token to chosen keys, in a window of layers around each layer, and
measure how far the answer falls (Geva et al., "Dissecting Recall of Factual Associations in
Auto-Regressive Language Models", 2023: windows of 9 layers, effect on the answer's probability).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from interp.errors import InterpError
from interp.interventions.edits import Knockout
from interp.interventions.schedule import Savings
from interp.interventions.sweep import plan_sweep
from interp.models.language_model import LanguageModel
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.tracing.fact import Answer, Fact, answer_metric, as_prompts

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

GROUPS = ("subject", "before and after", "itself")
"""Keys cut together: the subject's tokens; all other tokens but the query; the query itself."""


@dataclass(frozen=True, repr=False, eq=False)
class KnockoutResult(Result):
    """Effect of cutting the last token's attention.

    `.data` holds `m` [layer, pos] (one key token cut), `m_group` [layer, group] (keys of a group cut
    together) and `m_clean`, all values of the metric with the edges cut.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        return f"Attention from the last token cut, {p['window']}-layer windows · {p['prompt']!r} · {p['model']}"

    def plot(self) -> Figure:
        """A heat map over key tokens: change of the metric when the last token cannot see them."""
        from interp.plots import heatmap

        m = str(self.provenance["metric"])
        change = self.data[m] - self.data[f"{m}_clean"]
        tokens = [str(token) for token in self.data["token"].values]
        unit = f"change of p({self.provenance['answer'][0]!r})" if m == "probability" else f"change of {m}"
        return heatmap(change, x="pos", y="layer", title=self.title, unit=unit, x_labels=tokens)

    def plot_groups(self) -> Figure:
        """A curve per group of keys."""
        from interp.plots import curves

        m = str(self.provenance["metric"])
        return curves(
            self.data[f"{m}_group"], x="layer", line="group", title=self.title, unit=m.replace("_", " "),
            line_labels=list(GROUPS), quantity="value", baseline=float(self.data[f"{m}_clean"]),
        )  # fmt: skip

    def summary(self) -> str:
        """Where cutting each group costs most."""
        m = str(self.provenance["metric"])
        clean, group = float(self.data[f"{m}_clean"]), self.data[f"{m}_group"]
        lines = [f"KnockoutResult: {self.title}", f"  {m} uncut: {clean:.3f}; lowest when the last token cannot see"]
        for name in GROUPS:
            column = group.sel(group=name).fillna(np.inf)
            layer = int(column.argmin("layer"))
            if np.isfinite(float(column[layer])):
                lines.append(
                    f"  {name:>17}: {float(column[layer]):.3f}, around layer {int(group['layer'].values[layer])}"
                )
        return "\n".join(lines)


def knockout(
    model: LanguageModel,
    prompt: str,
    *,
    subject: str,
    answer: Answer = None,
    window: int = 9,
    metric: Literal["probability", "log_probability"] = "probability",
    layers: Sequence[int] | None = None,
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
) -> KnockoutResult:
    """Cut the last token's attention to every token, and to groups of tokens, by windows of layers.

    Args:
        prompt: the text.
        subject: as in `trace`.
        answer: as in `trace`.
        window: adjacent layers cut together, centred on the row's layer and cut off at the model's ends.
        metric: as in `trace`.
        layers: centres of the windows; all if not given.
        exact: as in `interp.sweep`.
        budget: as in `interp.sweep`.
        progress: as in `interp.sweep`.
        checkpoint: as in `interp.sweep`.

    Raises:
        PairError: a subject that does not occur exactly once; an answer that does not continue the prompt.
        SiteError: a layer that the model does not have.
        InterpError: a window below 1; a prompt of one token, which has nothing to cut.
    """
    if window < 1:
        raise InterpError(f"A window of {window} layers cuts nothing; the smallest is 1.")
    wanted = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    for layer in wanted:
        model.check(Site("attn_scores", layer))
    fact = Fact.of(model, prompt, subject, answer)
    last = fact.n_prompt - 1
    if last < 1:
        raise InterpError(f"{prompt!r} has one token: there is no attention edge to cut.")
    inside = list(range(fact.subject[0], fact.subject[1] + 1))
    keys = {
        "subject": [i for i in inside if i != last],
        "before and after": [i for i in range(last) if i not in inside],
        "itself": [last],
    }

    def cut(centre: int, chosen: list[int]) -> list[Knockout]:
        first = centre - window // 2
        near = range(max(0, first), min(model.n_layers, first + window)) if chosen else ()
        return [Knockout(layer, keys=chosen, positions=last) for layer in near]

    cells = [cut(layer, [position]) for layer in wanted for position in range(last + 1)]
    groups = [cut(layer, keys[name]) for layer in wanted for name in GROUPS]
    prompts = as_prompts(model, [fact])
    reading = answer_metric([fact], metric, model.device)
    plan = plan_sweep(model, prompts, cells + groups, reading, exact=exact, budget=budget)
    swept = plan.run(progress=progress, checkpoint=checkpoint)
    values = swept.values[metric][:, 0].double().cpu().numpy()
    by_token = values[: len(cells)].reshape(len(wanted), -1)
    by_group = values[len(cells) :].reshape(len(wanted), len(GROUPS)).copy()
    by_group[:, [not keys[name] for name in GROUPS]] = np.nan
    import xarray as xr

    attrs = {"unit": "probability" if metric == "probability" else "nats"}
    data = xr.Dataset(
        {
            metric: (("layer", "pos"), by_token, attrs),
            f"{metric}_group": (("layer", "group"), by_group, attrs),
            f"{metric}_clean": ((), float(swept.base[metric][0]), attrs),
        },
        {
            "layer": list(wanted), "pos": list(range(last + 1)), "group": list(GROUPS),
            "token": ("pos", list(model.prompts(prompt).tokens[0])),
        },
    )  # fmt: skip
    record = provenance(
        experiment="attention knockout", model=model.name, weights=model.weights_hash, prompt=prompt, subject=subject,
        answer=list(fact.answer_text), window=window, metric=metric, exact=str(exact), rows_run=swept.cost.rows,
        rows_skipped=swept.cost.skipped, n_attempted=1, n_scored=1,
    )  # fmt: skip
    return KnockoutResult(data, record)
