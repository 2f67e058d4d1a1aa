"""Attention knockout: through which layers does the last token read the subject?

Cut the attention edges from one query token to chosen keys, in a window of layers around each layer, and
measure how far the answer falls (Geva et al., "Dissecting Recall of Factual Associations in
Auto-Regressive Language Models", 2023: windows of 9 layers, effect on the answer's probability).

Difference from theirs: the first token of the prompt is a group of its own here. Many heads attend there when
they have nothing to read, so cutting it hurts whatever it says; where the subject opens the prompt, that
damage would be booked as reading the subject. `first_token="grouped"` puts it back with its neighbours.
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

GROUPS = ("first token", "subject", "before and after", "itself")
"""Keys cut together: the prompt's first token; the subject's (other) tokens; all others but the query; the query."""


@dataclass(frozen=True, repr=False, eq=False)
class KnockoutResult(Result):
    """Effect of cutting the last token's attention.

    `.data` holds `m` [layer, pos] (one key token cut), `m_group` [layer, group] (keys of a group cut
    together) and `m_clean`, all values of the metric with the edges cut. A group without any token is NaN.
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
        """A curve per group of keys that has tokens."""
        from interp.plots import curves

        m = str(self.provenance["metric"])
        groups = self.data[f"{m}_group"].dropna("group", how="all")
        return curves(
            groups, x="layer", line="group", title=self.title, unit=m.replace("_", " "),
            line_labels=[self._named(str(name)) for name in groups["group"].values], quantity="value",
            baseline=float(self.data[f"{m}_clean"]),
        )  # fmt: skip

    def _named(self, group: str) -> str:
        """A group's name, with what it lacks or holds of the first token, where that is not plain."""
        opens, apart = self.provenance["subject_opens"], self.provenance["first_token"] == "apart"
        if group != ("subject" if opens else "before and after"):
            return group
        return f"{group} (but the first)" if apart else f"{group} (the first token too)"

    def summary(self) -> str:
        """Where cutting each group costs most."""
        m = str(self.provenance["metric"])
        clean, group = float(self.data[f"{m}_clean"]), self.data[f"{m}_group"]
        lines = [f"KnockoutResult: {self.title}", f"  {m} uncut: {clean:.3f}; lowest when the last token cannot see"]
        for name in group["group"].values:
            column = group.sel(group=name).fillna(np.inf)
            layer = int(column.argmin("layer"))
            if np.isfinite(float(column[layer])):
                where = f"around layer {int(group['layer'].values[layer])}"
                lines.append(f"  {self._named(str(name)):>32}: {float(column[layer]):.3f}, {where}")
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
    first_token: Literal["apart", "grouped"] = "apart",
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
        first_token: `"apart"`: the prompt's first token is a group of its own; `"grouped"`: it belongs to the
            subject, or to what comes before it, as in Geva et al.
        exact: as in `interp.sweep`.
        budget: as in `interp.sweep`.
        progress: as in `interp.sweep`.
        checkpoint: as in `interp.sweep`.

    Raises:
        PairError: a subject that does not occur exactly once; an answer that does not continue the prompt.
        SiteError: a layer that the model does not have.
        InterpError: a window below 1; another `first_token`; a prompt of one token, which has nothing to cut.
    """
    if first_token not in ("apart", "grouped"):
        raise InterpError(f"first_token={first_token!r}: the first token is either 'apart' or 'grouped'.")
    if window < 1:
        raise InterpError(f"A window of {window} layers cuts nothing; the smallest is 1.")
    wanted = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    for layer in wanted:
        model.check(Site("attn_scores", layer))
    fact = Fact.of(model, prompt, subject, answer)
    last = fact.n_prompt - 1
    if last < 1:
        raise InterpError(f"{prompt!r} has one token: there is no attention edge to cut.")
    inside = range(fact.subject[0], fact.subject[1] + 1)
    others = range(1 if first_token == "apart" else 0, last)
    keys = {
        "first token": [0],
        "subject": [i for i in others if i in inside],
        "before and after": [i for i in others if i not in inside],
        "itself": [last],
    }
    shown = GROUPS if first_token == "apart" else GROUPS[1:]

    def cut(centre: int, chosen: list[int]) -> list[Knockout]:
        first = centre - window // 2
        near = range(max(0, first), min(model.n_layers, first + window)) if chosen else ()
        return [Knockout(layer, keys=chosen, positions=last) for layer in near]

    cells = [cut(layer, [position]) for layer in wanted for position in range(last + 1)]
    groups = [cut(layer, keys[name]) for layer in wanted for name in shown]
    prompts = as_prompts(model, [fact])
    reading = answer_metric([fact], metric, model.device)
    plan = plan_sweep(model, prompts, cells + groups, reading, exact=exact, budget=budget)
    swept = plan.run(progress=progress, checkpoint=checkpoint)
    values = swept.values[metric][:, 0].double().cpu().numpy()
    by_token = values[: len(cells)].reshape(len(wanted), -1)
    by_group = values[len(cells) :].reshape(len(wanted), len(shown)).copy()
    by_group[:, [not keys[name] for name in shown]] = np.nan
    import xarray as xr

    attrs = {"unit": "probability" if metric == "probability" else "nats"}
    data = xr.Dataset(
        {
            metric: (("layer", "pos"), by_token, attrs),
            f"{metric}_group": (("layer", "group"), by_group, attrs),
            f"{metric}_clean": ((), float(swept.base[metric][0]), attrs),
        },
        {
            "layer": list(wanted), "pos": list(range(last + 1)), "group": list(shown),
            "token": ("pos", list(model.prompts(prompt).tokens[0])),
        },
    )  # fmt: skip
    record = provenance(
        experiment="attention knockout", model=model.name, weights=model.weights_hash, prompt=prompt, subject=subject,
        answer=list(fact.answer_text), window=window, metric=metric, first_token=first_token,
        subject_opens=fact.subject[0] == 0, exact=str(exact), rows_run=swept.cost.rows,
        rows_skipped=swept.cost.skipped, n_attempted=1, n_scored=1,
    )  # fmt: skip
    return KnockoutResult(data, record)
