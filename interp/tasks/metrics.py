"""Metrics: logits in, one number per row out; higher always means more like the clean answer.

A metric says what it reads: at which positions (a prompt's last token, unless it names others) and
which columns of the vocabulary. The engine computes nothing else: a logit difference needs two columns
of the unembedding at one position. Metrics never average; statistics do. Whatever type the logits
come in, a readout hands them over in float32 at least: a probability rounded to eight bits would say little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InterpError, ShapeError, nearest


@runtime_checkable
class Metric(Protocol):
    """What every metric offers.

    Attributes:
        name: how results call it; unit: of its values.
        columns: [batch, column] token ids that it reads, `None` for the whole vocabulary.
        positions: [batch, read] positions that it reads, `None` for each prompt's last token.
    """

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def columns(self) -> Int[Tensor, "batch column"] | None: ...
    @property
    def positions(self) -> Int[Tensor, "batch read"] | None: ...
    def __call__(self, logits: Float[Tensor, "row read column"], example: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Values of rows whose prompt is `example`; `logits` holds `columns`, or the vocabulary."""
        ...


def log_probabilities(logits: Float[Tensor, "... d_vocab"]) -> Float[Tensor, "... d_vocab"]:
    """Of every token, in nats; in float32 at least, whatever type the logits come in."""
    return _wide(logits).log_softmax(-1)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True, slots=True, eq=False)
class LogitDifference:
    """logit(answer) − logit(wrong answer), in logits. Linear in the last residual stream."""

    answer: Int[Tensor, "batch"]
    wrong_answer: Int[Tensor, "batch"]
    name: str = "logit_difference"
    unit: str = "logits"
    positions: Int[Tensor, "batch read"] | None = None

    @property
    def columns(self) -> Int[Tensor, "batch column"]:
        return torch.stack([self.answer, self.wrong_answer], 1)

    def __call__(self, logits: Tensor, example: Tensor) -> Tensor:
        return logits[:, -1, 0] - logits[:, -1, 1]


@dataclass(frozen=True, slots=True, eq=False)
class LogProbability:
    """log p(answer), in nats.

    `answer` is [batch] for one token; [batch, token] with as many `positions` for an answer of several
    (teacher-forced: position j predicts token j); [batch, 1, alternative] for an answer out of a set, whose
    probabilities add up. Entries of −1 are padding.
    """

    answer: Int[Tensor, "batch ..."]
    name: str = "log_probability"
    unit: str = "nats"
    positions: Int[Tensor, "batch read"] | None = None

    @property
    def columns(self) -> None:
        return None

    def __call__(self, logits: Tensor, example: Tensor) -> Tensor:
        wanted = self.answer.view(*self.answer.shape, *(1,) * (3 - self.answer.ndim))[example]
        steps = logits[:, -wanted.shape[1] :].log_softmax(-1)
        picked = steps.gather(-1, wanted.clamp(min=0)).masked_fill(wanted < 0, -torch.inf)
        padded = (wanted < 0).all(-1)
        return picked.logsumexp(-1).masked_fill(padded, 0).sum(1)


@dataclass(frozen=True, slots=True, eq=False)
class Probability(LogProbability):
    """p(answer), dimensionless. It saturates: a component that lowers a small probability is not seen."""

    name: str = "probability"
    unit: str = "probability"

    def __call__(self, logits: Tensor, example: Tensor) -> Tensor:
        return LogProbability.__call__(self, logits, example).exp()


@dataclass(frozen=True, slots=True, eq=False)
class NegativeKL:
    """−KL(reference ‖ edited) of the next-token distribution, in nats; 0 when they are equal.

    Args:
        reference: log-probabilities [batch, d_vocab] of the run to be like (the clean one).
    """

    reference: Float[Tensor, "batch d_vocab"]
    name: str = "negative_kl"
    unit: str = "nats"
    positions: Int[Tensor, "batch read"] | None = None

    @property
    def columns(self) -> None:
        return None

    def __call__(self, logits: Tensor, example: Tensor) -> Tensor:
        reference = self.reference[example]
        return (reference.exp() * (logits[:, -1].log_softmax(-1) - reference)).sum(-1)


@dataclass(frozen=True, slots=True, eq=False)
class NegativeRank:
    """−(number of tokens with a higher logit than the answer); 0 when the answer comes first."""

    answer: Int[Tensor, "batch"]
    name: str = "negative_rank"
    unit: str = "tokens"
    positions: Int[Tensor, "batch read"] | None = None

    @property
    def columns(self) -> None:
        return None

    def __call__(self, logits: Tensor, example: Tensor) -> Tensor:
        last = logits[:, -1]
        own = last.gather(1, self.answer[example][:, None])
        return -(last > own).sum(-1).to(last.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Accuracy:
    """1 if the answer has the highest logit of the vocabulary, else 0."""

    answer: Int[Tensor, "batch"]
    name: str = "accuracy"
    unit: str = "share"
    positions: Int[Tensor, "batch read"] | None = None

    @property
    def columns(self) -> None:
        return None

    def __call__(self, logits: Tensor, example: Tensor) -> Tensor:
        return (logits[:, -1].argmax(-1) == self.answer[example]).to(logits.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class FunctionMetric:
    """A metric of your own: `function(logits [row, d_vocab] at the last token, example [row]) → [row]`."""

    function: Callable[[Tensor, Tensor], Tensor]
    name: str = "metric"
    unit: str = ""
    positions: Int[Tensor, "batch read"] | None = None

    @property
    def columns(self) -> None:
        return None

    def __call__(self, logits: Tensor, example: Tensor) -> Tensor:
        values = self.function(logits[:, -1], example)
        if values.shape != example.shape:
            raise ShapeError(
                f"Metric {self.name!r} returned shape {list(values.shape)} for {len(example)} rows; it must return one "
                "number per row and never average."
            )
        return values


METRICS = ("logit_difference", "probability", "log_probability", "negative_kl", "negative_rank", "accuracy")
"""Metrics known by name."""
DIFFERENTIABLE = METRICS[:4]
"""Those with a gradient."""


def named_metric(
    name: str, answer: Int[Tensor, "batch"], wrong_answer: Int[Tensor, "batch"], reference: Callable[[], Tensor]
) -> Metric:
    """A metric by its name, for prompts with these answers.

    Args:
        reference: gives the log-probabilities [batch, d_vocab] of the clean run; called for `negative_kl` alone.

    Raises:
        InterpError: an unknown name.
    """
    match name:
        case "logit_difference":
            return LogitDifference(answer, wrong_answer)
        case "probability":
            return Probability(answer)
        case "log_probability":
            return LogProbability(answer)
        case "negative_kl":
            return NegativeKL(reference())
        case "negative_rank":
            return NegativeRank(answer)
        case "accuracy":
            return Accuracy(answer)
    raise InterpError(f"There is no metric {name!r}." + nearest(str(name), METRICS))


@dataclass(frozen=True, slots=True, eq=False)
class Readout:
    """What a set of metrics reads of the logits, so that one computation serves them all."""

    metrics: tuple[Metric, ...]
    positions: Int[Tensor, "batch read"]
    columns: Int[Tensor, "batch column"] | None

    @classmethod
    def of(cls, metrics: Metric | Sequence[Metric], lengths: Int[Tensor, "batch"]) -> Readout:
        """The reading of one metric or several over prompts of these lengths.

        Raises:
            InterpError: two metrics of one name, or that read different positions; a metric made for
                another number of prompts.
        """
        metrics = tuple(metrics) if isinstance(metrics, Sequence) else (metrics,)
        if not metrics or len({m.name for m in metrics}) < len(metrics):
            raise InterpError(f"Metrics need distinct names; got {[m.name for m in metrics]}.")
        positions = [lengths[:, None] - 1 if m.positions is None else m.positions for m in metrics]
        if any(not torch.equal(p, positions[0]) for p in positions):
            raise InterpError("These metrics read different positions; give each its own sweep.")
        for metric in metrics:
            sizes = {len(t) for t in (metric.columns, metric.positions) if t is not None}
            sizes |= {len(metric.answer)} if hasattr(metric, "answer") else set()  # pyright: ignore[reportAttributeAccessIssue]
            if sizes - {len(lengths)}:
                raise ShapeError(f"Metric {metric.name!r} was made for {sizes} prompts; there are {len(lengths)}.")
        columns = [m.columns for m in metrics]
        narrow = None if any(c is None for c in columns) else torch.cat([c for c in columns if c is not None], 1)
        return cls(metrics, positions[0], narrow)

    def values(
        self, logits: Float[Tensor, "row read column"], example: Int[Tensor, "row"]
    ) -> Float[Tensor, "metric row"]:
        """Every metric, in float32 at least, from logits of `columns` (or of the vocabulary)."""
        logits = _wide(logits)
        out, start = [], 0
        for metric in self.metrics:
            own = logits
            if metric.columns is not None and self.columns is None:
                own = logits.gather(-1, metric.columns[example][:, None].expand(-1, logits.shape[1], -1))
            elif metric.columns is not None:
                own = logits[..., start : start + metric.columns.shape[1]]
                start += metric.columns.shape[1]
            out.append(metric(own, example))
        return torch.stack(out)
