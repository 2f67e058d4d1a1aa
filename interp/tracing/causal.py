"""Causal tracing: which states, restored, bring a fact back after its subject was destroyed?

The protocol of ROME (Meng et al., "Locating and Editing Factual Associations in GPT", 2022):

1. *clean*: run the prompt and keep every state;
2. *corrupted*: add noise N(0, σ²) to the embeddings of the subject's tokens, several times;
3. *restored*: as 2, but one state (token × layer; a window of layers for `mlp_out`, `attn_out`) takes its
   clean value. The probability of the answer, averaged over the noises, is the cell's value.

The *severed* variant also holds the MLP (or attention) outputs of the same token at later layers at
their corrupted values, which shows whether the restored state acts through them. With a prompt pair
instead of noise (`corruption="replacement"`) the same grid is measured under symmetric token replacement,
which keeps the model on its own distribution (Zhang & Nanda 2024).

Differences from ROME: σ is 3 times the standard deviation of all token embeddings, where ROME takes
those of its subjects; noises are rows of one sweep, drawn by `seed`.

When it misleads: noise can push the model off its distribution and inflate the middle MLPs; a window
shows more than its layers; and a restored state shows where information passes, not where it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError, PairError
from interp.interventions.base_states import states_with_source
from interp.interventions.captured import Run
from interp.interventions.edits import Add, Edit, Replace
from interp.interventions.memory import free_bytes
from interp.interventions.packed import needed_sites
from interp.interventions.run import run
from interp.interventions.schedule import Savings
from interp.interventions.sweep import groups, plan_sweep
from interp.models.denoiser import Denoiser
from interp.models.language_model import LanguageModel
from interp.models.prompts import Prompts
from interp.models.site import Site
from interp.progress import Progress, silent
from interp.results import Result, provenance
from interp.statistics import bootstrap_interval, recovered
from interp.tasks.pairs import PromptPair, Task
from interp.tracing.fact import Answer, Fact, answer_metric, as_prompts
from interp.tracing.image import ImageTraceResult, trace_image

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from xarray import Dataset

PARTS = ("resid_post", "resid_pre", "resid_mid", "mlp_out", "attn_out")
ROLES = ("first subject", "middle subject", "last subject", "first after", "further", "last token")
"""Positions of an averaged trace: the tokens of different prompts, aligned by what they are."""


@dataclass(frozen=True, repr=False, eq=False)
class TraceResult(Result):
    """A causal trace.

    `.data` holds, for the metric `m`: `m` [layer, pos, noise] for one fact, or [layer, role, example] for
    an average over facts (each fact's noises and tokens of a role averaged first); `m_mean`, `m_low`,
    `m_high` (95 % bootstrap interval of the mean over noises, or over facts); `m_clean`, `m_corrupted`.
    """

    @property
    def title(self) -> str:
        """One line that states what was measured."""
        p = self.provenance
        what = repr(p["prompts"][0]) if len(p["prompts"]) == 1 else f"{len(p['prompts'])} facts"
        severed = f", {p['severed']} severed" if p["severed"] else ""
        window = f" in windows of {p['window']}" if p["window"] > 1 else ""
        return f"Restoring {p['part']}{window}{severed} after {p['corruption']} · {what} · {p['model']}"

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return str(self.provenance["metric"])

    def recovered(self) -> Dataset:
        """(mean restored − mean corrupted) / (mean clean − mean corrupted), over the grid.

        1 is the clean run's value, 0 the corrupted run's. A ratio of means over facts, so that a fact whose
        answer was hardly destroyed counts little (`interp.statistics.recovered` says more), each role's over the
        facts that have it; for one fact, over its noise draws.

        Returns:
            An xarray.Dataset: `recovered`, and its 95 % bootstrap interval over facts (over noise draws, for
            one fact), `low` and `high`. A role whose facts show no gap of their own is NaN.

        Raises:
            PairError: clean and corrupted do not differ by more than the gap's own uncertainty.
        """
        import xarray as xr

        m, data = self.metric, self.data
        *axes, examples = data[m].dims
        clean = data[f"{m}_clean"].broadcast_like(data[examples]).values
        found = recovered(data[m].values, clean, data[f"{m}_corrupted"].values, m, seed=self.provenance["seed"])
        named = zip(("recovered", "low", "high"), found, strict=True)
        return xr.Dataset({name: (axes, x, {"unit": "share of the gap"}) for name, x in named}).assign_coords(
            {name: x for name, x in data.coords.items() if set(x.dims) <= set(axes)}
        )

    def plot(self) -> Figure:
        """One fact: a heat map over its tokens. An average: a panel per role, with intervals over facts.

        The dashed line of a panel is the corrupted value of the facts that have tokens of its role.
        """
        from interp.plots import heatmap, panels

        m = self.metric
        mean, low, high = (self.data[f"{m}_{name}"] for name in ("mean", "low", "high"))
        answer = self.provenance["answers"][0]
        unit = (
            f"p({answer[0]!r})" if m == "probability" and len(self.provenance["prompts"]) == 1 else m.replace("_", " ")
        )
        if "role" in mean.dims:
            scored = self.data["scored"].max("layer")
            roles = self.data["role"].values[scored.values > 0]
            has = self.data[m].notnull().any("layer")
            ends = {end: float(self.data[f"{m}_{end}"].mean()) for end in ("clean", "corrupted")}
            mean, low, high = (x.sel(role=roles) for x in (mean, low, high))
            return panels(
                mean, x="layer", panel="role", unit=unit, low=low, high=high, quantity="mean",
                title=f"{self.title} · clean {ends['clean']:.3g}, corrupted {ends['corrupted']:.3g} (dashed)",
                panel_labels=[f"{role} · {_count(int(scored.sel(role=role)), 'fact')}" for role in roles],
                baseline=[float(self.data[f"{m}_corrupted"].where(has.sel(role=role)).mean()) for role in roles],
            )  # fmt: skip
        tokens = [str(t) for t in self.data["token"].values]
        many = self.data.sizes["noise"] > 1
        return heatmap(
            mean, x="pos", y="layer", title=self.title, unit=unit, x_labels=tokens, diverging=False,
            low=low if many else None, high=high if many else None,
        )  # fmt: skip

    def summary(self) -> str:
        """Clean and corrupted values, and the best place to restore at each token."""
        m, data, p = self.metric, self.data, self.provenance
        clean, corrupted = float(data[f"{m}_clean"].mean()), float(data[f"{m}_corrupted"].mean())
        lines = [
            f"TraceResult: {self.title}",
            f"  {m} of {p['answers'][0] if len(p['answers']) == 1 else 'each answer'}: clean {clean:.3f}, "
            f"corrupted {corrupted:.3f}; {p['rows_run']} rows run, {p['rows_skipped']} known without running",
        ]
        mean = data[f"{m}_mean"]
        axis = "role" if "role" in mean.dims else "pos"
        best = mean.fillna(-np.inf).argmax("layer").values
        for i, layer in enumerate(best):
            name = str(data[axis].values[i]) if axis == "role" else repr(str(data["token"].values[i]))
            mark = " (subject)" if axis == "pos" and bool(data["in_subject"].values[i]) else ""
            value, at = float(mean.isel({axis: i, "layer": int(layer)})), int(data["layer"].values[int(layer)])
            lines.append(f"  {name:>16}{mark:10} best at layer {at:2d}: {value:.3f}")
        return "\n".join(lines)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


@overload
def trace(model: Denoiser, prompt: str, *, attribute: str, **settings: Any) -> ImageTraceResult: ...


@overload
def trace(
    model: LanguageModel,
    prompt: str | PromptPair | Task,
    *,
    subject: str | None = None,
    answer: Answer = None,
    part: str = "resid_post",
    corruption: Literal["noise", "replacement"] = "noise",
    noise: float | None = None,
    noises: int = 10,
    window: int = 1,
    severed: Literal["mlp_out", "attn_out"] | None = None,
    metric: Literal["probability", "log_probability"] = "probability",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
) -> TraceResult: ...


def trace(
    model: LanguageModel | Denoiser,
    prompt: str | PromptPair | Task,
    *,
    subject: str | None = None,
    answer: Answer = None,
    part: str | None = None,
    corruption: Literal["noise", "replacement"] | None = None,
    noise: float | None = None,
    noises: int = 10,
    window: int | None = None,
    severed: Literal["mlp_out", "attn_out"] | None = None,
    metric: Literal["probability", "log_probability"] = "probability",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    exact: Savings | Literal["naive"] = Savings(),
    budget: int | None = None,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
    attribute: str | None = None,
    **settings: Any,
) -> TraceResult | ImageTraceResult:
    """Trace one fact over its tokens, or average a set of facts over the roles of their tokens.

    On a diffusion pipeline: trace the `attribute` of a prompt over blocks and steps; the arguments are those of
    `interp.tracing.trace_image`.

    Args:
        prompt: a text with `subject` (and `answer`); a pair, or a task of pairs that carry their subjects.
        subject: its text, which must occur exactly once in the prompt.
        answer: the expected continuation, of one token or several; a list of alternatives, whose
            probabilities add up; the model's own greedy answer if not given.
        part: the state that is restored: one of `resid_post` (the default), `resid_pre resid_mid mlp_out attn_out`.
        corruption: `"noise"` on the subject's embeddings (the default for text), or `"replacement"` by a pair's
            corrupted prompt.
        noise: σ in the embeddings' own units; 3 × their standard deviation if not given.
        noises: number of noise draws, at least 10 to be worth reporting.
        window: adjacent layers restored together (ROME: 10 for mlp_out and attn_out).
        severed: outputs held at their corrupted values, at the restored token and all later layers.
        layers: layers of the grid; all if not given.
        metric: of the answer.
        seed: of the noise, and of the bootstrap.
        exact: as in `interp.sweep`.
        budget: as in `interp.sweep`.
        progress: as in `interp.sweep`.
        checkpoint: as in `interp.sweep`.

    Raises:
        PairError: a subject that does not occur once; pairs of unequal length; an answer that does not
            continue the prompt.
        SiteError: a part that the model cannot serve.
    """
    if isinstance(model, Denoiser):
        if attribute is None or not isinstance(prompt, str):
            raise PairError("Tracing a picture needs a prompt as text, and `attribute`, a word of it.")
        return trace_image(
            model, prompt, attribute=attribute, part=part or "cross_attn_out", corruption=corruption or "replacement",
            noise=noise, window=window,
            seed=seed, exact=exact, budget=budget, progress=progress, checkpoint=checkpoint, **settings,
        )  # fmt: skip
    if settings or attribute is not None:
        raise InterpError(f"{', '.join(settings) or 'attribute'}: only the trace of a picture has such a setting.")
    part, corruption, window = part or "resid_post", corruption or "noise", 1 if window is None else window
    if part not in PARTS:
        raise InterpError(f"Restoring {part!r} is no causal trace; allowed: {', '.join(PARTS)}. See interp.patch.")
    if severed and severed == part:
        raise InterpError(f"Restoring {part} while it is severed contradicts itself.")
    if noises < 1 or window < 1:
        raise InterpError(f"noises={noises}, window={window}: both must be at least 1.")
    pairs = _pairs(prompt, subject, answer)
    facts = [Fact.of(model, pair.clean, subject_text, wanted) for pair, subject_text, wanted in pairs]
    wanted_layers = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    for layer in wanted_layers:
        model.check(Site(part, layer))
    corrupted = _replacements(model, pairs, facts) if corruption == "replacement" else None
    sigma = 0.0 if corrupted else _sigma(model) if noise is None else float(noise)
    setting = _Setting(model, part, wanted_layers, window, severed, metric, sigma, 1 if corrupted else noises, seed)
    budget = free_bytes(model.device) // 2 if budget is None else budget
    width = max(len(fact.ids) for fact in facts)
    outcomes = []
    for number, rows in enumerate(groups(model, width, len(facts), 2 * setting.noises, budget)):
        folder = None if checkpoint is None else Path(checkpoint) / f"facts_{number:04d}"
        chosen = [facts[i] for i in rows]
        outcomes.append(
            _group(
                setting, chosen, rows.start, corrupted and [corrupted[i] for i in rows], exact, budget, progress, folder
            )
        )
    single = isinstance(prompt, str | PromptPair)
    record = provenance(
        experiment="causal tracing", model=model.name, weights=model.weights_hash, part=part, corruption=corruption,
        sigma=sigma, noises=setting.noises, window=window, severed=severed, metric=metric, seed=seed, exact=str(exact),
        prompts=[fact.prompt for fact in facts], subjects=[list(fact.subject) for fact in facts],
        answers=[list(fact.answer_text) for fact in facts],
        rows_run=sum(o.rows_run for o in outcomes), rows_skipped=sum(o.rows_skipped for o in outcomes),
        n_attempted=len(facts), n_scored=len(facts),
    )  # fmt: skip
    data = _one_fact(model, setting, facts[0], outcomes[0]) if single else _average(setting, facts, outcomes)
    return TraceResult(data, record)


def _pairs(
    prompt: str | PromptPair | Task, subject: str | None, answer: Answer
) -> list[tuple[PromptPair, str, Answer]]:
    """(pair, subject, answer) of every fact."""
    if isinstance(prompt, Task):
        found = [(pair, pair.subject, pair.answer) for pair in prompt.pairs]
    elif isinstance(prompt, PromptPair):
        found = [(prompt, subject or prompt.subject, answer or prompt.answer)]
    else:
        if not prompt:
            raise PairError("The prompt is empty.")
        found = [(PromptPair(prompt, prompt, "", ""), subject, answer)]
    if not found:
        raise PairError("The task has no pairs.")
    for pair, text, _ in found:
        if text is None:
            raise PairError(f"Which words of {pair.clean!r} are its subject? Give `subject`.")
    return [(pair, str(text), wanted) for pair, text, wanted in found]


def _replacements(
    model: LanguageModel, pairs: list[tuple[PromptPair, str, Answer]], facts: list[Fact]
) -> list[tuple[int, ...]]:
    """Tokens of the corrupted prompts, each followed by its fact's longer answer."""
    texts = [pair.corrupted for pair, _, _ in pairs]
    if any(pair.corrupted == pair.clean for pair, _, _ in pairs):
        raise PairError(
            "Tracing by replacement needs a prompt pair whose corrupted prompt differs; got only one prompt."
        )
    out = []
    for fact, text in zip(facts, texts, strict=True):
        prompts = model.prompts(text)
        if int(prompts.lengths[0]) != fact.n_prompt:
            raise PairError(
                "Clean and corrupted prompts differ in token length: "
                f"{list(model.prompts(fact.prompt).tokens[0])} against {list(prompts.tokens[0])}."
            )
        out.append((*prompts.ids[0].tolist(), *fact.ids[fact.n_prompt :]))
    return out


def _sigma(model: LanguageModel) -> float:
    """3 × the standard deviation of the entries of the token embeddings, as the network outputs them."""
    step = max(1, model.d_vocab // 8192)
    with torch.no_grad():
        return 3 * float(model.embed(torch.arange(0, model.d_vocab, step, device=model.device)).float().std())


@dataclass(frozen=True, slots=True, eq=False)
class _Setting:
    model: LanguageModel
    part: str
    layers: tuple[int, ...]
    window: int
    severed: str | None
    metric: str
    sigma: float
    noises: int
    seed: int

    def restored(self, centre: int) -> list[Site]:
        first = centre - self.window // 2
        return [Site(self.part, layer) for layer in range(max(0, first), min(self.model.n_layers, first + self.window))]

    def cut(self, centre: int) -> list[Site]:
        """Outputs that a restored state could act through."""
        after = centre + (1 if self.part == "resid_post" else 0)
        return (
            [] if self.severed is None else [Site(self.severed, layer) for layer in range(after, self.model.n_layers)]
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    values: Tensor  # layer pos fact noise
    clean: Tensor  # fact
    corrupted: Tensor  # fact noise
    rows_run: int
    rows_skipped: int


def _group(
    setting: _Setting,
    facts: list[Fact],
    first: int,
    corrupted: list[tuple[int, ...]] | None,
    exact: Savings | Literal["naive"],
    budget: int,
    progress: Progress,
    checkpoint: Path | None,
) -> _Outcome:
    """Trace some facts: every noise of every fact is a prompt of the sweep."""
    from interp.models.prompts import from_token_lists

    model, noises = setting.model, setting.noises
    repeated = [fact for fact in facts for _ in range(noises)]
    base = as_prompts(model, repeated)
    if corrupted is not None:
        base = from_token_lists(model.tokenizer, corrupted, device=model.device)
    clean = as_prompts(model, facts if len(facts) == 1 else repeated)  # a run of one prompt serves every row
    edits = [] if corrupted is not None else _noise(setting, facts, first)
    sites = {site for layer in setting.layers for site in setting.restored(layer)}
    cut = {site for layer in setting.layers for site in setting.cut(layer)}
    known, source, held = _states(setting, base, clean, edits, sites, cut, exact)
    variants = [
        _cell(setting, layer, position, facts, source, held)
        for layer in setting.layers
        for position in range(max(fact.n_prompt for fact in facts))
    ]
    metric = answer_metric(repeated, setting.metric, model.device)
    swept = plan_sweep(model, base, variants, metric, edits=edits, exact=exact, budget=budget, base=known).run(
        progress=progress, checkpoint=checkpoint
    )
    firsts = as_prompts(model, facts)
    clean_values = plan_sweep(model, firsts, [], answer_metric(facts, setting.metric, model.device), exact=exact).run()
    name = setting.metric
    values = swept.values[name].view(len(setting.layers), -1, len(facts), noises)
    return _Outcome(
        values, clean_values.base[name], swept.base[name].view(len(facts), noises), swept.cost.rows, swept.cost.skipped
    )


def _noise(setting: _Setting, facts: list[Fact], offset: int) -> list[Edit]:
    """Noise on every subject's embeddings, another one for each draw and each fact, however they are grouped."""
    model, edits = setting.model, []
    for number, fact in enumerate(facts):
        first, last = fact.subject
        generator = torch.Generator().manual_seed(setting.seed * 1_000_003 + offset + number)
        shape = (setting.noises, last - first + 1, model.d_model)
        draws = setting.sigma * torch.randn(shape, generator=generator, dtype=torch.float32)
        rows = range(number * setting.noises, (number + 1) * setting.noises)
        value = draws.to(model.device, model.dtype)
        edits.append(Add(Site("embed"), value, positions=list(range(first, last + 1)), rows=list(rows)))
    return edits


def _states(setting: _Setting, base: Prompts, clean: Prompts, edits: list[Edit], sites: set, cut: set, exact: Any):
    """(base states or None, run that clean values come from, run that holds the corrupted ones)."""
    model = setting.model
    if exact == "naive" or model.not_replayable:
        held = run(model, base, edits, sorted(cut, key=str), logits=False) if cut else None
        return None, run(model, clean, (), sorted(sites, key=str), logits=False), held
    needed = needed_sites(sites | cut, model.n_layers)
    known, theirs = states_with_source(model, base, clean, needed, edits)
    return known, theirs.as_run(clean, sites), known.as_run(base, cut) if cut else None


def _cell(setting: _Setting, layer: int, position: int, facts: list[Fact], source: Run, held: Run | None) -> list[Edit]:
    rows: list[int] | None = None
    if any(position >= fact.n_prompt for fact in facts):
        inside = [i for i, fact in enumerate(facts) if position < fact.n_prompt]
        rows = [i * setting.noises + j for i in inside for j in range(setting.noises)]
    edits: list[Edit] = [Replace(site, source, positions=position, rows=rows) for site in setting.restored(layer)]
    if held is not None:
        edits += [Replace(site, held, positions=position, rows=rows) for site in setting.cut(layer)]
    return edits


def _one_fact(model: LanguageModel, setting: _Setting, fact: Fact, outcome: _Outcome):
    import xarray as xr

    values = outcome.values[:, : fact.n_prompt, 0].double().cpu().numpy()
    low, high = bootstrap_interval(values, seed=setting.seed)
    m, grid = setting.metric, ("layer", "pos")
    tokens = list(model.prompts(fact.prompt).tokens[0])
    inside = [fact.subject[0] <= i <= fact.subject[1] for i in range(fact.n_prompt)]
    attrs = {"unit": "probability" if m == "probability" else "nats"}
    return xr.Dataset(
        {
            m: ((*grid, "noise"), values, attrs),
            f"{m}_mean": (grid, values.mean(-1), attrs),
            f"{m}_low": (grid, low, attrs),
            f"{m}_high": (grid, high, attrs),
            f"{m}_clean": ((), float(outcome.clean[0]), attrs),
            f"{m}_corrupted": ("noise", outcome.corrupted[0].double().cpu().numpy(), attrs),
        },
        {
            "layer": list(setting.layers), "pos": list(range(fact.n_prompt)), "noise": list(range(setting.noises)),
            "token": ("pos", tokens), "in_subject": ("pos", inside),
        },
    )  # fmt: skip


def role_of(position: int, fact: Fact) -> str:
    """What a position is, in the alignment of an averaged trace."""
    first, last = fact.subject
    if position == fact.n_prompt - 1:
        return "last token"
    if position == last:
        return "last subject"
    if position == first:
        return "first subject"
    if first < position < last:
        return "middle subject"
    return "first after" if position == last + 1 else "further"


def _average(setting: _Setting, facts: list[Fact], outcomes: list[_Outcome]):
    import xarray as xr

    by_fact = []
    grids = [outcome.values[:, :, i].mean(-1) for outcome in outcomes for i in range(outcome.values.shape[2])]
    for fact, grid in zip(facts, grids, strict=True):
        roles = [role_of(position, fact) for position in range(fact.n_prompt)]
        columns = []
        for role in ROLES:
            chosen = [i for i, own in enumerate(roles) if own == role]
            columns.append(grid[:, chosen].mean(1) if chosen else grid.new_full((len(grid),), torch.nan))
        by_fact.append(torch.stack(columns, 1))
    values = torch.stack(by_fact, -1).double().cpu().numpy()
    low, high = bootstrap_interval(values, seed=setting.seed)
    m, axes = setting.metric, ("layer", "role")
    scored = ~np.isnan(values)
    mean = np.where(scored, values, 0).sum(-1) / np.where(scored.any(-1), scored.sum(-1), np.nan)
    attrs = {"unit": "probability" if m == "probability" else "nats"}
    clean = torch.cat([outcome.clean for outcome in outcomes]).double().cpu().numpy()
    corrupted = torch.cat([outcome.corrupted.mean(-1) for outcome in outcomes]).double().cpu().numpy()
    return xr.Dataset(
        {
            m: ((*axes, "example"), values, attrs),
            f"{m}_mean": (axes, mean, attrs),
            f"{m}_low": (axes, low, attrs),
            f"{m}_high": (axes, high, attrs),
            f"{m}_clean": ("example", clean, attrs),
            f"{m}_corrupted": ("example", corrupted, attrs),
            "scored": (axes, scored.sum(-1), {"unit": "facts"}),
        },
        {"layer": list(setting.layers), "role": list(ROLES), "example": list(range(len(facts)))},
    )
