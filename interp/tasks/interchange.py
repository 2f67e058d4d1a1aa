"""Interchange tasks: what a causal model says of texts, as data to align a network with it.

An example is a base, a source for each exchanged variable, and a label: the causal model's answer to the base when
these variables have the values that they have in the sources. Texts carry *regions*, named stretches such as the
subject. They are the map between positions of base and source, which may be of different length: a region's place is
its last token, in each text its own, and `last` is the last token of a text.

Like a `Task`, an `InterchangeTask` knows no tokenizer; `encode` turns it into tokens of one model, and refuses what
would give a number without a meaning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from string import Formatter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import LoadError, PairError, nearest
from interp.models.prompts import Prompts, token_strings, tokenize
from interp.tasks.causal_model import CausalModel, Draw, Setting, Value
from interp.tasks.pairs import Encoder, check_count, continuation, side_by_side, text_of

LAST = "last"
"""The region that every text has."""

Write = Callable[[Setting, Random], "Instance"]
"""Puts inputs of a causal model into words; base and sources of an example get equal random states."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A text with its place in a causal model.

    Attributes:
        text: the prompt.
        answer: its right answer, one token, with its leading space.
        regions: name, first character, and the character after the last one, of each named stretch.
        setting: the value of every variable of the causal model.

    Raises:
        PairError: an empty text; a region outside the text, empty, named twice, or named `last`.
    """

    text: str
    answer: str
    regions: tuple[tuple[str, int, int], ...]
    setting: Setting

    def __post_init__(self) -> None:
        if not self.text:
            raise PairError("An instance has an empty text.")
        names = [name for name, _, _ in self.regions]
        for i, (name, start, end) in enumerate(self.regions):
            if not 0 <= start < end <= len(self.text):
                raise PairError(
                    f"Region {name!r} is characters {start} to {end} of {self.text!r}, which has {len(self.text)}; "
                    "a region must be a stretch of its text that is not empty."
                )
            if name == LAST or name in names[:i]:
                raise PairError(f"Region {name!r} is named twice in {self.text!r}: {', '.join((*names, LAST))}.")

    def words(self, region: str) -> str:
        """The words of a region."""
        start, end = next((start, end) for name, start, end in self.regions if name == region)
        return self.text[start:end]


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A base, a source per exchanged variable, and the causal model's answer under the interchange."""

    base: Instance
    sources: tuple[Instance, ...]
    label: str


@dataclass(frozen=True)
class InterchangeTask:
    """A named set of counterfactuals.

    Attributes:
        name: how figures and files call it.
        variables: those that are exchanged, in the order of the sources.
        examples: in order.
        source: the paper or origin, in one line.
        seed: the seed they were drawn with; `None` if they were written by hand.

    Raises:
        PairError: no variable; an example whose sources are not one per variable.
    """

    name: str
    variables: tuple[str, ...]
    examples: tuple[Counterfactual, ...]
    source: str
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.variables:
            raise PairError(f"Task {self.name!r} exchanges no variable; name at least one.")
        for row, example in enumerate(self.examples):
            if len(example.sources) != len(self.variables):
                raise PairError(
                    f"Example {row} of task {self.name!r} has {len(example.sources)} sources for the variables "
                    f"{', '.join(self.variables)}; give one for each."
                )

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Counterfactual]:
        return iter(self.examples)

    def __getitem__(self, rows: object) -> InterchangeTask:
        """The task of a slice of the examples (a single one is `task.examples[i]`)."""
        if not isinstance(rows, slice):
            raise TypeError(f"A task is sliced, task[2:5]; for one example write task.examples[{rows!r}].")
        return self.select(range(*rows.indices(len(self))))

    def select(self, rows: Iterable[int]) -> InterchangeTask:
        """The task of these examples, in this order."""
        chosen = tuple(self.examples[int(row)] for row in rows)
        return InterchangeTask(self.name, self.variables, chosen, self.source, self.seed)

    def __repr__(self) -> str:
        first = ""
        if self.examples:
            example = self.examples[0]
            told = ", ".join(
                f"{variable} of {source.text!r}"
                for variable, source in zip(self.variables, example.sources, strict=True)
            )
            first = f"; {example.base.text!r} →{example.base.answer!r}, with {told} →{example.label!r}"
        return f"InterchangeTask({self.name!r}, {len(self)} examples, seed={self.seed}{first})"

    def check(self, model: CausalModel) -> None:
        """Hold a causal model against the task: answers of bases and sources, and labels.

        Raises:
            InterpError: the model disagrees; the first such example is shown. Or it has not these variables.
        """
        texts = (text for example in self.examples for text in (example.base, *example.sources))
        model.check((text.setting, text.answer) for text in texts)
        for row, example in enumerate(self.examples):
            sources = {v: source.setting for v, source in zip(self.variables, example.sources, strict=True)}
            values = model.interchange(example.base.setting, sources)
            if values[model.output] != example.label:
                raise PairError(
                    f"Causal model {model.name!r} disagrees with example {row} of task {self.name!r}: exchanging "
                    f"{', '.join(self.variables)} between {example.base.text!r} and "
                    f"{', '.join(repr(source.text) for source in example.sources)} gives {values[model.output]!r}; "
                    f"the label is {example.label!r}."
                )

    def encode(self, model: Encoder) -> EncodedInterchange:
        """The task as tokens of this model, on its device.

        Args:
            model: anything with a `tokenizer` and a `device`; the tokenizer must know its tokens' places in the text
                (those of the `tokenizers` library do), unless there are no regions.

        Raises:
            PairError: no example; an answer or label that does not continue its prompt by exactly one token; regions
                of a base that its sources or other examples lack; without regions, texts of unequal length in tokens
                (no position means the same in both); a region that ends inside a token; a data set in which the
                interchange never changes the base's answer.
        """
        if not self.examples:
            raise PairError(f"Task {self.name!r} has no examples; an alignment needs at least one.")
        _check_changes(self)
        columns = [[e.base for e in self.examples], *zip(*(e.sources for e in self.examples), strict=True)]
        sides = ("base", *(f"source of {variable}" for variable in self.variables))
        names = tuple(name for name, _, _ in self.examples[0].base.regions)
        prompts, answers, places = [], [], []
        for side, texts in zip(sides, columns, strict=True):
            where = [f"Task {self.name!r}, {side} of example {row}" for row in range(len(texts))]
            prompts.append(tokenize(model.tokenizer, [text.text for text in texts], device=model.device))
            answers.append([continuation(f"{at}: answer", model.tokenizer, text.text, text.answer)
                            for at, text in zip(where, texts, strict=True)])  # fmt: skip
            places.append([_ends(at, model.tokenizer, text, names) for at, text in zip(where, texts, strict=True)])
        labels = [continuation(f"Task {self.name!r}, example {row}: label", model.tokenizer, e.base.text, e.label)
                  for row, e in enumerate(self.examples)]  # fmt: skip
        if not names:
            _check_lengths(self, prompts)
        ids = torch.tensor([*answers, labels], device=model.device)
        ends = torch.tensor(places, dtype=torch.long, device=model.device).reshape(len(sides), len(self), len(names))
        return EncodedInterchange(self, prompts[0], tuple(prompts[1:]), ids[0], ids[1:-1], ids[-1], names, ends)

    def to_jsonl(self, path: str | Path) -> None:
        """Write the task: a first line with name, variables, source and seed, then one line per example.

        Values of settings must be what JSON knows, or tuples of it.
        """
        head = {"task": self.name, "variables": self.variables, "source": self.source, "seed": self.seed}
        rows = [json.dumps(row, ensure_ascii=False) for row in (head, *(asdict(e) for e in self.examples))]
        Path(path).write_text("\n".join(rows) + "\n", encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: str | Path) -> InterchangeTask:
        """Read a task that `to_jsonl` wrote, or a file of the same form.

        Raises:
            LoadError: no such file, or not UTF-8; a line that is not JSON, or not of this form; no head line, or no
                example.
        """
        path = Path(path)
        head, examples = None, []
        for number, line in enumerate(text_of(path).split("\n"), start=1):
            if not line.strip():
                continue
            where = f"Line {number} of {path}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise LoadError(f"{where} is not JSON: {error}.") from error
            if head is None:
                head = _fields(where, row, {"task": str, "variables": list, "source": str, "seed": int | None})
            else:
                examples.append(_read_example(where, row))
        if head is None or not examples:
            raise LoadError(f"{path} holds no examples.")
        try:
            return cls(head["task"], tuple(head["variables"]), tuple(examples), head["source"], head["seed"])
        except PairError as error:
            raise LoadError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class EncodedInterchange:
    """An interchange task as tokens of one model; row `b` of everything is example `b`.

    Attributes:
        task: what was encoded.
        base: the base prompts.
        sources: the source prompts of each variable.
        answer: the base's answers.
        source_answers: the sources' answers.
        label: the causal model's answers under the interchange.
        names: of the regions, without `last`.
        ends: the last token of each region, in the base (first) and in the sources.
    """

    task: InterchangeTask
    base: Prompts
    sources: tuple[Prompts, ...]
    answer: Int[Tensor, "batch"]
    source_answers: Int[Tensor, "variable batch"]
    label: Int[Tensor, "batch"]
    names: tuple[str, ...]
    ends: Int[Tensor, "side batch region"]

    def __len__(self) -> int:
        return len(self.task)

    @property
    def regions(self) -> tuple[str, ...]:
        """What `position` knows, in the order of the first base's text."""
        return (*self.names, LAST)

    @property
    def answers(self) -> Int[Tensor, "answer"]:
        """Every token that answers some base, source or interchange of the task, in ascending order."""
        return torch.cat([self.answer, self.source_answers.flatten(), self.label]).unique()

    @property
    def aligned(self) -> bool:
        """Whether a position means the same in base and sources: equal lengths, and regions at equal places."""
        lengths = all(bool((source.lengths == self.base.lengths).all()) for source in self.sources)
        return lengths and bool((self.ends == self.ends[:1]).all())

    def position(self, region: str) -> tuple[Int[Tensor, "batch"], tuple[Int[Tensor, "batch"], ...]]:
        """The last token of a region: its position in each base, and in each source of each variable.

        Raises:
            PairError: the texts have no such region.
        """
        if region == LAST:
            return self.base.lengths - 1, tuple(source.lengths - 1 for source in self.sources)
        if region not in self.names:
            raise PairError(f"Task {self.task.name!r} has no region {region!r}." + nearest(region, self.regions))
        base, *sources = self.ends[:, :, self.names.index(region)]
        return base, tuple(sources)

    def select(self, rows: Sequence[int]) -> EncodedInterchange:
        """The task of these examples, in this order; one may come more than once."""
        at = torch.as_tensor(rows, device=self.label.device)
        prompts = self.base.select(at), tuple(source.select(at) for source in self.sources)
        ids = self.answer[at], self.source_answers[:, at], self.label[at]
        return EncodedInterchange(self.task.select(rows), *prompts, *ids, self.names, self.ends[:, at])

    def __repr__(self) -> str:
        shortest, longest = int(self.base.lengths.min()), int(self.base.lengths.max())
        span = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        return (
            f"EncodedInterchange({self.task.name!r}, {len(self)} examples of {span} tokens, "
            f"regions {', '.join(self.regions)})"
        )


def draw_task(
    name: str, model: CausalModel, variables: Sequence[str], n: int, seed: int, *, draw: Draw, write: Write
) -> InterchangeTask:
    """A task of `n` counterfactuals of a causal model, put into words.

    The law is that of `CausalModel.counterfactuals`: odd and even examples take turns in changing the base's answer and
    keeping it against the sources'.

    Raises:
        PairError: `n` below 1.
        InterpError: as `counterfactuals`.
    """
    check_count(n)
    examples = []
    for row, (base, sources, label) in zip(range(n), model.counterfactuals(variables, seed, draw), strict=False):
        texts = [write(model.run(inputs), Random(f"{seed} {row}")) for inputs in (base, *sources)]
        examples.append(Counterfactual(texts[0], tuple(texts[1:]), str(label)))
    return InterchangeTask(name, tuple(variables), tuple(examples), model.source, seed)


def merged(tasks: Sequence[InterchangeTask]) -> InterchangeTask:
    """The examples of tasks that exchange different variables, as one task that exchanges all of them.

    In an example a variable that its task does not exchange has the base itself as its source: in one state that is no
    exchange. With it a map is fitted to every set of variables that tasks were given for. The tasks take turns.

    Only for variables of which none depends on another: that of the base would hold such a one fast.

    Raises:
        PairError: no task, or tasks of unequal size.
    """
    if len({len(task) for task in tasks}) != 1:
        sizes = ", ".join(f"{task.name} has {len(task)}" for task in tasks) or "none was given"
        raise PairError(f"Tasks are merged that have the same number of examples; {sizes}.")
    variables = tuple(dict.fromkeys(variable for task in tasks for variable in task.variables))
    examples = []
    for row in zip(*tasks, strict=True):
        for task, example in zip(tasks, row, strict=True):
            known = dict(zip(task.variables, example.sources, strict=True))
            sources = tuple(known.get(variable, example.base) for variable in variables)
            examples.append(Counterfactual(example.base, sources, example.label))
    name = " + ".join(dict.fromkeys(task.name for task in tasks))
    return InterchangeTask(name, variables, tuple(examples), tasks[0].source, tasks[0].seed)


def compose(
    template: str, regions: Iterable[str], words: Mapping[str, object]
) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """A template with its fields filled in, and where the fields that are regions have come to stand.

    Args:
        template: `"The {subject} near the {attractor}"`.
        regions: names of fields.
        words: what to put for each field.
    """
    text, found, wanted = "", [], set(regions)
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name is not None:
            start, text = len(text), text + str(words[name])
            if name in wanted:
                found.append((name, start, len(text)))
                wanted.discard(name)  # the first mention counts
    return text, tuple(found)


def _check_changes(task: InterchangeTask) -> None:
    if all(example.label == example.base.answer for example in task.examples):
        raise PairError(
            f"In none of the {len(task)} examples of task {task.name!r} does exchanging "
            f"{' and '.join(task.variables)} change the base's answer: there is nothing to learn from them. "
            "Take examples whose label differs from the base's answer (half of them, best)."
        )


def _ends(where: str, tokenizer: Any, text: Instance, names: Sequence[str]) -> list[int]:
    """The last token of each region."""
    given = {name: (start, end) for name, start, end in text.regions}
    if given.keys() != set(names):
        raise PairError(
            f"{where} has the regions {', '.join(given) or 'none'}; the first base has {', '.join(names) or 'none'}. "
            f"Every text of a task needs the same: {text.text!r}."
        )
    if not names:
        return []
    if not getattr(tokenizer, "is_fast", False):
        raise PairError(f"{where}: {type(tokenizer).__name__} does not tell where its tokens stand; regions need that.")
    encoding = tokenizer(text.text, return_offsets_mapping=True)
    spans = encoding["offset_mapping"]
    ends = []
    for name in names:
        start, end = given[name]
        inside = [place for place, (first, stop) in enumerate(spans) if first < end and stop > start]
        if not inside or spans[inside[-1]][1] > end:
            raise PairError(
                f"{where}: region {name!r}, {text.text[start:end]!r}, does not end where a token ends; the tokens are "
                f"{token_strings(tokenizer, encoding['input_ids'])}."
            )
        ends.append(inside[-1])
    return ends


def _check_lengths(task: InterchangeTask, prompts: Sequence[Prompts]) -> None:
    base, *sources = prompts
    for variable, source in zip(task.variables, sources, strict=True):
        for row, (one, other) in enumerate(zip(base.tokens, source.tokens, strict=True)):
            if len(one) != len(other):
                raise PairError(
                    f"Task {task.name!r}, example {row}: the base has {len(one)} tokens and the source of {variable} "
                    f"has {len(other)}, so that a position does not mean the same in both, and no regions say which "
                    "positions correspond. Name regions in every text, or make them equally long. Side by side (≠ "
                    f"marks a difference):\n{side_by_side('base', one, 'source', other)}"
                )


def _fields(where: str, row: object, types: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with exactly these fields, of these types."""
    if not isinstance(row, dict) or row.keys() != types.keys():
        found = list(row) if isinstance(row, dict) else type(row).__name__
        raise LoadError(f"{where} must be an object of {list(types)}; got {found}.")
    for name, wanted in types.items():
        if not isinstance(row[name], wanted):
            raise LoadError(f"{where}: {name} must be of type {wanted}; got {row[name]!r}.")
    return row


def _read_example(where: str, row: object) -> Counterfactual:
    row = _fields(where, row, {"base": dict, "sources": list, "label": str})
    base, *sources = (_read_instance(where, text) for text in (row["base"], *row["sources"]))
    return Counterfactual(base, tuple(sources), row["label"])


def _read_instance(where: str, row: object) -> Instance:
    row = _fields(where, row, {"text": str, "answer": str, "regions": list, "setting": dict})
    for region in row["regions"]:
        if not (isinstance(region, list) and [type(part) for part in region] == [str, int, int]):
            raise LoadError(f"{where}: a region is [name, first character, end]; got {region!r}.")
    setting = {name: _hashable(value) for name, value in row["setting"].items()}
    try:
        return Instance(row["text"], row["answer"], tuple((n, i, j) for n, i, j in row["regions"]), setting)
    except PairError as error:
        raise LoadError(f"{where}: {error}") from error


def _hashable(value: Any) -> Value:
    return tuple(_hashable(part) for part in value) if isinstance(value, list) else value
