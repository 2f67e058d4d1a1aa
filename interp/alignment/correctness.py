"""Will the answer to a prompt be right? Scores of single prompts, from an aligned variable and without one.

An alignment says where a network keeps a variable of a causal model. If it computes rightly *through* that variable,
then a prompt whose answer is wrong should show it there. Two scores ask so, of one prompt x:

- *counterfactual simulation*. The variable's block of x is put into other prompts b, bases that the network is known to
  answer rightly. If the variable had the value v in x, the network is to answer to each what the causal model says,
  y(b, v). The score of v is the probability of that,

      simulation(x, v) = mean over b of p( y(b, v) | b, with the block of x )

- *value probing*. A logistic regression on the block's coordinates, fitted to the variable's value on prompts that
  are answered rightly: probe(x, v) = p( v | φ(h_x) ).

Which v? That of the network's **own answer**: the values from which the causal model would conclude what the network
says of x. That needs no label; if the block does not carry what the answer seems to say, the answer came about some
other way. Or the value with the highest probability, whatever it is (**top value**, of the probe). Or the **right
value**, which takes the right answer to know. Who knows that needs no prediction, so those rows stand apart: they say
whether errors pass through the variable.

Of the rest the network's own confidence costs nothing: the probability of its answer, the entropy of its distribution,
the margin between its two best answers. A *correctness probe* is a logistic regression on the whole state, fitted to
prompts labelled right or wrong. Higher always means: more likely right.

When they mislead: an error that comes with a clear, wrong value of the variable looks like a right answer to all scores
that do not know better; an error that arises after the site, or beside the variable, leaves no trace in it.

Source: Huang, Tao, Icard, Yang & Potts 2025, "Internal Causal Mechanisms Robustly Predict Language Model
Out-of-Distribution Behaviors" (arXiv:2505.11770), with 16 bases. Theirs are `simulation, own answer` (their code takes
the network's own answers as labels) and `value probe, top value`. We differ: bases have every value of the variable
about equally often, and probes have standardised inputs and, for correctness, a penalty chosen by cross-validation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.alignment.continuation import Continuation
from interp.alignment.fit import Cells, interchanged
from interp.alignment.maps import AlignmentMap
from interp.errors import InterpError
from interp.tasks.causal_model import CausalModel, Setting, Value

ALIGNED = ("simulation, own answer", "value probe, own answer", "value probe, top value")
"""Of the aligned variable, without labels of the prompt in question."""
CONFIDENCE = ("top probability", "entropy", "margin")
"""Of the network's output: log p of its answer; minus the entropy, in nats; logit of its best answer less that of the
second, among the answers of the task."""
PROBE = "correctness probe"
INFORMED = ("simulation, right value", "value probe, right value")
"""Of the aligned variable, by who knows the right answer."""
SCORES = (*ALIGNED, *CONFIDENCE, PROBE, *INFORMED)

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn: a state is wider than prompts are many
_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Prompts that a network has run on.

    Attributes:
        states: at the aligned place.
        answer: what the network says; right_answer: what it should.
        confidence: one row for each of `CONFIDENCE`.
        settings: of the causal model.
    """

    states: Float[Tensor, "prompt width"]
    answer: Int[Tensor, "prompt"]
    right_answer: Int[Tensor, "prompt"]
    confidence: Float[Tensor, "confidence prompt"]
    settings: tuple[Setting, ...]

    def __len__(self) -> int:
        return len(self.settings)

    @property
    def right(self) -> Bool[np.ndarray, "prompt"]:
        """Where the answer is the right one."""
        return (self.answer == self.right_answer).cpu().numpy()

    def select(self, rows: Sequence[int]) -> Observed:
        """Some of the prompts."""
        at = torch.as_tensor(rows, dtype=torch.long, device=self.states.device)
        chosen = tuple(self.settings[int(row)] for row in rows)
        return Observed(self.states[at], self.answer[at], self.right_answer[at], self.confidence[:, at], chosen)


def observed(
    states: Float[Tensor, "prompt width"],
    logits: Float[Tensor, "prompt token"],
    right_answer: Int[Tensor, "prompt"],
    settings: Sequence[Setting],
    answers: Int[Tensor, "answer"],
    *,
    among_answers: bool = False,
) -> Observed:
    """What a network's logits say of its answers and its confidence.

    Args:
        answers: tokens that answer the task, of which the margin is between two; among_answers: whether the network
            is to choose among them, or in the whole vocabulary.
    """
    whole = logits.double()
    asked = whole[:, answers] if among_answers else whole
    log_p = asked.log_softmax(-1)
    best = asked.argmax(-1)
    first, second = whole[:, answers].topk(2, dim=-1).values.T
    entropy = torch.special.entr(log_p.exp()).sum(-1)
    confidence = torch.stack([log_p.max(-1).values, -entropy, first - second])
    return Observed(states, answers[best] if among_answers else best, right_answer, confidence, tuple(settings))


def joined(parts: Sequence[Observed]) -> Observed:
    """The prompts of all, in order."""
    named = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("states", "answer", "right_answer")}
    confidence = torch.cat([part.confidence for part in parts], 1)
    return Observed(**named, confidence=confidence, settings=tuple(s for part in parts for s in part.settings))


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """The values that some variables had together, and what the causal model answers when they have them.

    Attributes:
        model: the causal model.
        variables: those that are aligned.
        joint: values of all of them, in the order of their domains.
    """

    model: CausalModel
    variables: tuple[str, ...]
    joint: tuple[tuple[Value, ...], ...]

    @classmethod
    def occurring(cls, model: CausalModel, variables: Sequence[str], settings: Sequence[Setting]) -> Values:
        """Those that occur in these settings.

        Raises:
            InterpError: an unknown variable; fewer than two values.
        """
        names = tuple(model[name].name for name in variables)
        found = {_joint(model, names, setting) for setting in settings}
        if len(found) < 2:
            raise InterpError(
                f"On the {len(settings)} prompts that the network answers rightly, {' and '.join(names)} always has "
                f"the value {', '.join(map(str, found)) or 'nothing'}: nothing can be told apart. Take more or other "
                "prompts."
            )
        order = {name: {value: i for i, value in enumerate(model[name].values)} for name in names}
        key = lambda joint: [order[name][value] for name, value in zip(names, joint, strict=True)]  # noqa: E731
        return cls(model, names, tuple(sorted(found, key=key)))

    def of(self, settings: Sequence[Setting]) -> Int[np.ndarray, "prompt"]:
        """Of each setting which of the values it has.

        Raises:
            InterpError: one that is not among them.
        """
        number = {joint: i for i, joint in enumerate(self.joint)}
        found = [_joint(self.model, self.variables, setting) for setting in settings]
        for row, joint in enumerate(found):
            if joint not in number:
                shown = ", ".join(" and ".join(map(repr, each)) for each in self.joint[:8])
                raise InterpError(
                    f"Prompt {row}: {' and '.join(self.variables)} is {' and '.join(map(repr, joint))}, which never "
                    f"occurs among the training prompts that are answered rightly; there, {shown} "
                    "do. Hold out words and templates, not values of the variable."
                )
        return np.array([number[joint] for joint in found])

    def answers(self, setting: Setting) -> list[Value | None]:
        """Of each value the causal model's answer to this input when the variables have it; `None`: it has none."""
        return [self._answer(setting, joint) for joint in self.joint]

    def _answer(self, setting: Setting, joint: tuple[Value, ...]) -> Value | None:
        try:
            return self.model.run(setting, dict(zip(self.variables, joint, strict=True)))[self.model.output]
        except InterpError:  # a function without a value there, as a name that is none of the two introduced
            return None


def _joint(model: CausalModel, names: tuple[str, ...], setting: Setting) -> tuple[Value, ...]:
    values = model.run(setting)
    return tuple(values[name] for name in names)


@dataclass(frozen=True, slots=True, eq=False)
class Bases:
    """Prompts that the network answers rightly, into which others are put.

    Attributes:
        ready: their states at one place, and the network above it.
        labels: the token that the causal model answers to each when the variables have each value; −1 for none, which
            leaves the base out of that value's mean.
        among: tokens that the network chooses among, the labels being some of them; `None`: all.
    """

    ready: Continuation
    labels: Int[Tensor, "base value"]
    among: Int[Tensor, "answer"] | None = None


class EveryPair(Continuation):
    """Every prompt as the source of every base: pair i · bases + k is prompt i into base k.

    Args:
        bases: one place, several examples; states: of the prompts.
        variables: how many take their block from the prompt.
    """

    def __init__(self, bases: Continuation, states: Float[Tensor, "prompt width"], variables: int) -> None:
        self.bases, self.n = bases, bases.base.shape[1]
        self.base = bases.base[:1].repeat(1, len(states), 1)
        self.sources = (states.to(self.base).repeat_interleave(self.n, 0)[None],) * variables

    def outputs(self, values: Tensor, place: Tensor, example: Tensor) -> Tensor:
        """The base's, with other values."""
        return self.bases.outputs(values, place, example % self.n)

    def base_outputs(self, example: Tensor) -> Tensor:
        """The base's."""
        return self.bases.base_outputs(example % self.n)

    def parts(self, place: Tensor, example: Tensor) -> list[Tensor]:
        """As the bases."""
        return self.bases.parts(place, example % self.n)


@torch.no_grad()
def simulated(
    one: AlignmentMap, bases: Bases, states: Float[Tensor, "prompt width"]
) -> Float[np.ndarray, "prompt value"]:
    """Counterfactual simulation: mean probability, over bases, of the causal model's answers.

    Args:
        one: a map of one cell.
        bases: at the same place as the states.
        states: of the prompts in question.

    Raises:
        InterpError: a value that has a label in no base; states that the map makes not finite.
    """
    labels, among = bases.labels, bases.among
    if (labels < 0).all(0).any():
        raise InterpError(
            "To no base does the causal model have an answer when the variable has one of the values; take more bases."
        )
    pairs, zero = (
        EveryPair(bases.ready, states, one.n_variables),
        torch.zeros(1, dtype=torch.long, device=labels.device),
    )

    def read(outputs: Tensor, example: Tensor) -> Tensor:
        token, whole = labels[example % len(labels)], outputs.double()
        total = (whole if among is None else whole[:, among]).logsumexp(-1, keepdim=True)
        return (whole.gather(-1, token.clamp(min=0)) - total).exp().masked_fill(token < 0, -1)

    found = interchanged(Cells(one, zero, zero, ("prompts",)), pairs, read, numbers=labels.shape[1])[0]
    if found.isnan().any():
        raise InterpError("The map makes states, or the network outputs, that are not finite.")
    found = found.view(len(states), *labels.shape)
    return found.where(found >= 0, torch.nan).nanmean(1).cpu().numpy()


def value_probe(
    coordinates: Float[np.ndarray, "train coordinate"], values: Int[np.ndarray, "train"], n_values: int
) -> Callable[[np.ndarray], np.ndarray]:
    """From coordinates to log p of every value: a logistic regression on standardised coordinates, C = 1."""
    fitted = _regression(1.0).fit(coordinates, values)

    def log_p(other: np.ndarray) -> np.ndarray:
        # not predict_log_proba: near 1 that rounds before it takes the logarithm, and prompts would tie
        score = fitted.decision_function(other)
        score = np.stack([np.zeros_like(score), score], -1) if score.ndim == 1 else score
        whole = np.full((len(other), n_values), -np.inf)
        whole[:, fitted.classes_] = torch.from_numpy(score).log_softmax(-1).numpy()
        return whole

    return log_p


def correctness_probe(
    states: Float[np.ndarray, "train width"], right: Bool[np.ndarray, "train"], seed: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """From states to the log odds of a right answer; the penalty is the best of some by cross-validated AUC.

    Raises:
        InterpError: fewer than two right or two wrong prompts.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    fewest = int(min(right.sum(), (~right).sum()))
    if fewest < 2:
        raise InterpError(
            f"Of {len(right)} training prompts {int(right.sum())} are answered rightly: a correctness probe needs two "
            "right and two wrong ones, at least."
        )
    folds = StratifiedKFold(min(_FOLDS, fewest), shuffle=True, random_state=seed)
    search = GridSearchCV(_regression(1.0), {"logisticregression__C": _PENALTIES}, scoring="roc_auc", cv=folds)
    with warnings.catch_warnings():  # the order of prompts has long settled when the weights' length has not
        warnings.simplefilter("ignore", ConvergenceWarning)
        return search.fit(states, right).best_estimator_.decision_function


def _regression(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))


def coordinates(one: AlignmentMap, states: Float[Tensor, "prompt width"]) -> Float[np.ndarray, "prompt coordinate"]:
    """All of a map's blocks, side by side."""
    with torch.no_grad():
        return torch.cat(one.coordinates(states), -1).double().cpu().numpy()


def of_value(table: Float[np.ndarray, "prompt value"], which: Bool[np.ndarray, "prompt value"]) -> np.ndarray:
    """The highest score of the values in question; 0 where there is none: no value gives such an answer."""
    return np.where(which, table, 0.0).max(1)


def log_odds(log_p: Float[np.ndarray, "prompt value"], which: Bool[np.ndarray, "prompt value"]) -> np.ndarray:
    """Log p(one of these values) − log p(another one); −∞ where there is none, and +∞ where there is no other."""
    inside, outside = (np.logaddexp.reduce(np.where(some, log_p, -np.inf), axis=1) for some in (which, ~which))
    return inside - outside


def aligned_scores(
    one: AlignmentMap,
    values: Values,
    bases: Bases,
    train: Observed,
    tests: Mapping[str, Observed],
    consistent: Mapping[str, Bool[np.ndarray, "prompt value"]],
) -> dict[str, dict[str, np.ndarray]]:
    """By score (`ALIGNED`, `INFORMED`) and split, the scores that a map gives prompts.

    Args:
        one: of one cell.
        train: prompts that are answered rightly, for the value probe.
        consistent: which values the network's own answer to each prompt follows from.

    Raises:
        InterpError: as `simulated` and `Values.of`.
    """
    probe = value_probe(coordinates(one, train.states), values.of(train.settings), len(values.joint))
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in (*ALIGNED, *INFORMED)}
    for split, prompts in tests.items():
        own, right = consistent[split], np.eye(len(values.joint), dtype=bool)[values.of(prompts.settings)]
        simulation = simulated(one, bases, prompts.states)
        log_p = probe(coordinates(one, prompts.states))
        top = np.eye(len(values.joint), dtype=bool)[log_p.argmax(1)]
        found["simulation, own answer"][split] = of_value(simulation, own)
        found["value probe, own answer"][split] = log_odds(log_p, own)
        found["value probe, top value"][split] = log_odds(log_p, top)
        found["simulation, right value"][split] = of_value(simulation, right)
        found["value probe, right value"][split] = log_odds(log_p, right)
    return found
