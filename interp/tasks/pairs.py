"""Prompt pairs: the data that every causal experiment starts from.

A pair is two prompts that differ in what decides the answer and in nothing else, token for token: what a
model does differently on them can then only come from that difference. A `Task` is a named set of pairs; it
knows no tokenizer. `Task.encode(model)` is the gate through which every experiment goes: it turns a task
into tokens for one model and refuses whatever would give a number without a meaning.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import LoadError, PairError, nearest
from interp.models.prompts import Prompts, token_strings, tokenize

Item = TypeVar("Item")


@runtime_checkable
class Encoder(Protocol):
    """What `Task.encode` needs of a model."""

    @property
    def tokenizer(self) -> Any:
        """A tokenizer of transformers."""
        ...

    @property
    def device(self) -> torch.device | str:
        """Where its inputs belong."""
        ...


@dataclass(frozen=True, slots=True)
class PromptPair:
    """Two prompts that call for two different answers.

    Attributes:
        clean: the prompt for which `answer` is right.
        corrupted: the same prompt after a symmetric replacement of tokens.
        answer: the next token after `clean`, with its leading space: `" Paris"`.
        wrong_answer: the next token that `corrupted` calls for.
        subject: the words of `clean` that the prompt is about.
        corrupted_subject: the same of `corrupted`.
        label: the group of pairs that this one belongs to (a relation, a template).

    Raises:
        PairError: a subject that does not occur in its prompt.
    """

    clean: str
    corrupted: str
    answer: str
    wrong_answer: str
    subject: str | None = None
    corrupted_subject: str | None = None
    label: str = ""

    def __post_init__(self) -> None:
        for name, subject, prompt in (
            ("subject", self.subject, self.clean),
            ("corrupted_subject", self.corrupted_subject, self.corrupted),
        ):
            if subject is not None and (not subject or subject not in prompt):
                raise PairError(f"The {name} {subject!r} does not occur in its prompt {prompt!r}.")


_COLUMNS = tuple(field.name for field in fields(PromptPair))
_REQUIRED = _COLUMNS[:4]
_SUBJECTS = ("subject", "corrupted_subject")


@dataclass(frozen=True, slots=True)
class Task:
    """A named set of prompt pairs.

    Attributes:
        name: how figures and files call it.
        pairs: the pairs, in order.
        source: the paper or origin, in one line.
        seed: the seed they were drawn with; `None` if they were written by hand.
    """

    name: str
    pairs: tuple[PromptPair, ...]
    source: str
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PromptPair]:
        return iter(self.pairs)

    def __getitem__(self, rows: object) -> Task:
        """The task of a slice of the pairs (a single pair is `task.pairs[i]`)."""
        if not isinstance(rows, slice):
            raise TypeError(f"A task is sliced, task[2:5]; for one pair write task.pairs[{rows!r}].")
        return self.select(range(*rows.indices(len(self))))

    def select(self, rows: Iterable[int]) -> Task:
        """The task of these pairs, in this order."""
        return Task(self.name, tuple(self.pairs[int(row)] for row in rows), self.source, self.seed)

    def __repr__(self) -> str:
        first = ""
        if self.pairs:
            pair = self.pairs[0]
            first = f"; {pair.clean!r} →{pair.answer!r}, {pair.corrupted!r} →{pair.wrong_answer!r}"
        return f"Task({self.name!r}, {len(self)} pairs, seed={self.seed}{first})"

    def encode(self, model: Encoder) -> EncodedTask:
        """The task as tokens of this model, on its device.

        Args:
            model: anything with a `tokenizer` and a `device`.

        Raises:
            PairError: no pair; an empty prompt; clean and corrupted of unequal length in tokens; an answer
                that does not continue its prompt by exactly one token; two answers that are the same token.
        """
        if not self.pairs:
            raise PairError(f"Task {self.name!r} has no pairs; an experiment needs at least one.")
        for row, pair in enumerate(self.pairs):
            for name in ("clean", "corrupted"):
                if not getattr(pair, name):
                    raise PairError(f"Pair {row} of task {self.name!r} has an empty {name} prompt.")
        clean, corrupted = (
            tokenize(model.tokenizer, texts, device=model.device)
            for texts in ([p.clean for p in self.pairs], [p.corrupted for p in self.pairs])
        )
        answers = []
        for row, pair in enumerate(self.pairs):
            where = f"Pair {row} of task {self.name!r}"
            _check_lengths(where, clean.tokens[row], corrupted.tokens[row])
            answers.append(_answer_ids(where, model.tokenizer, pair))
        answer, wrong_answer = torch.tensor(answers, device=model.device).unbind(1)
        return EncodedTask(self, clean, corrupted, answer, wrong_answer)

    def to_jsonl(self, path: str | Path) -> None:
        """Write the task: a first line with name, source and seed, then one line per pair."""
        head = {"task": self.name, "source": self.source, "seed": self.seed}
        rows = [json.dumps(row, ensure_ascii=False) for row in (head, *(asdict(pair) for pair in self.pairs))]
        Path(path).write_text("\n".join(rows) + "\n", encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Task:
        """Read a task; without a head line, its name and source are those of the file.

        Raises:
            LoadError: no such file, or not UTF-8; a line that is not a JSON object, or whose fields are not those of a
                pair; no pairs.
        """
        path = Path(path)
        head, pairs = {"task": path.stem, "source": path.name, "seed": None}, []
        for number, line in enumerate(text_of(path).split("\n"), start=1):
            where = f"Line {number} of {path}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise LoadError(f"{where} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise LoadError(f"{where} is not a JSON object; got {line[:60]!r}.")
            if number == 1 and row.keys() == head.keys():
                head = row
            else:
                pairs.append(_read_pair(where, row))
        if not pairs:
            raise LoadError(f"{path} holds no pairs.")
        return cls(head["task"], tuple(pairs), head["source"], head["seed"])

    def to_csv(self, path: str | Path) -> None:
        """Write the pairs as a table (a CSV file has no place for name, source and seed)."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(asdict(pair) for pair in self.pairs)

    @classmethod
    def from_csv(
        cls, path: str | Path, *, name: str | None = None, source: str | None = None, seed: int | None = None
    ) -> Task:
        """Read pairs from a table with a header; an empty subject means none.

        Args:
            path: the file.
            name: of the task; the file's stem if `None`.
            source: of the task; the file's name if `None`.
            seed: of the task.

        Raises:
            LoadError: no such file, or not UTF-8; a header that lacks a required column or has an unknown one; a row
                with too few or too many cells; no pairs.
        """
        path = Path(path)
        reader = csv.reader(io.StringIO(text_of(path), newline=""), strict=True)
        pairs, line = [], 1
        try:
            header = next(reader, [])
            _check_header(f"Line 1 of {path}", header)
            line = reader.line_num + 1  # a cell may hold line breaks
            for cells in reader:
                where, line = f"Line {line} of {path}", reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise LoadError(f"{where} has {len(cells)} cells; the header has {len(header)}: {header}.")
                row: dict[str, Any] = dict(zip(header, cells, strict=True))
                pairs.append(_read_pair(where, row | {name: row.get(name) or None for name in _SUBJECTS}))
        except csv.Error as error:
            raise LoadError(f"Line {line} of {path} is not CSV: {error}.") from error
        if not pairs:
            raise LoadError(f"{path} holds no pairs, only a header.")
        return cls(name or path.stem, tuple(pairs), source or path.name, seed)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTask:
    """A task as tokens of one model; row `b` of everything is pair `b`.

    Attributes:
        task: what was encoded.
        clean: the clean prompts.
        corrupted: the corrupted prompts, each as long as its clean one.
        answer: token ids.
        wrong_answer: token ids.
    """

    task: Task
    clean: Prompts
    corrupted: Prompts
    answer: Int[Tensor, "batch"]
    wrong_answer: Int[Tensor, "batch"]

    def __len__(self) -> int:
        return len(self.task)

    def select(self, rows: Sequence[int]) -> EncodedTask:
        """The task of these pairs, in this order; a pair may come more than once."""
        at = torch.as_tensor(rows, device=self.answer.device)
        prompts = self.clean.select(at), self.corrupted.select(at)
        return EncodedTask(self.task.select(rows), *prompts, self.answer[at], self.wrong_answer[at])

    def __repr__(self) -> str:
        shortest, longest = int(self.clean.lengths.min()), int(self.clean.lengths.max())
        span = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        return f"EncodedTask({self.task.name!r}, {len(self)} pairs of {span} tokens)"


def single_token(tokenizer: Any, text: str) -> int:
    """The id of the one token that `text` is, taken by itself.

    Raises:
        PairError: `text` is no token, or several.
    """
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) == 1:
        return int(ids[0])
    raise PairError(
        f"{text!r} must be exactly one token; it is {len(ids)}: {token_strings(tokenizer, ids)}."
        + _space_hint(text, len(tokenizer(" " + text, add_special_tokens=False).input_ids))
    )


SPLITS = ("all", "train", "held out")


def part_of(items: Sequence[Item], split: str) -> tuple[Item, ...]:
    """What a generator draws from: `"all"` items; every third, `"held out"`; or the others, `"train"`.

    Raises:
        PairError: an unknown split.
    """
    check_choice("split", split, SPLITS)
    return tuple(item for i, item in enumerate(items) if split == "all" or (split == "held out") == (i % 3 == 2))


def split_name(name: str, split: str) -> str:
    """A task's name with its split, if it is one."""
    return name if split == "all" else f"{name}-{split.replace(' ', '-')}"


def check_choice(what: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse an option that does not exist.

    Raises:
        PairError: `value` is not allowed.
    """
    if value not in allowed:
        raise PairError(f"There is no {what} {value!r}." + nearest(str(value), allowed))


def check_count(n: object) -> None:
    """Refuse a number of pairs that makes no task.

    Raises:
        PairError: `n` is not a positive whole number.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise PairError(f"The number of pairs must be a whole number of at least 1; got n={n!r}.")


def _space_hint(text: str, length_with_space: int) -> str:
    if text.startswith(" ") or length_with_space != 1:
        return ""
    return f" With a leading space it is one token: write {' ' + text!r}."


def text_of(path: Path) -> str:
    """The text of a file, line breaks as they are.

    Raises:
        LoadError: no such file, or not UTF-8.
    """
    if not path.is_file():
        raise LoadError(f"There is no file {path} to read pairs from.")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise LoadError(f"Line {line} of {path} is not UTF-8 ({error.reason}); save the file as UTF-8.") from error


def _check_header(where: str, header: list[str]) -> None:
    _check_columns(where, header)
    if twice := [name for number, name in enumerate(header) if name in header[:number]]:
        raise LoadError(f"{where} names the column {twice[0]!r} twice.")


def _check_columns(where: str, columns: Iterable[str]) -> None:
    columns = list(columns)
    if missing := [column for column in _REQUIRED if column not in columns]:
        parted = [
            name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if len(columns) == 1 and sign in columns[0]
        ]
        hint = f" Its cells are parted by {parted[0]}: use commas." if parted else ""
        raise LoadError(f"{where} lacks {missing}; a pair needs {list(_REQUIRED)}, got {columns}.{hint}")
    if unknown := [column for column in columns if column not in _COLUMNS]:
        raise LoadError(f"{where} has unknown fields {unknown}." + nearest(unknown[0], _COLUMNS))


def _read_pair(where: str, row: dict) -> PromptPair:
    _check_columns(where, row)
    for column, value in row.items():
        if not (isinstance(value, str) or (value is None and column in _SUBJECTS)):
            raise LoadError(f"{where}: {column} must be a text; got {value!r}.")
    try:
        return PromptPair(**row)
    except PairError as error:
        raise LoadError(f"{where}: {error}") from error


def _answer_ids(where: str, tokenizer: Any, pair: PromptPair) -> tuple[int, int]:
    """The ids of answer and wrong answer, each checked as a continuation of both prompts."""
    ids = []
    for name in ("answer", "wrong_answer"):
        text = getattr(pair, name)
        after_clean = continuation(f"{where}: {name}", tokenizer, pair.clean, text)
        after_corrupted = continuation(f"{where}: {name}", tokenizer, pair.corrupted, text)
        if after_clean != after_corrupted:
            raise PairError(
                f"{where}: {name} {text!r} is token {after_clean} after the clean prompt but "
                f"{after_corrupted} after the corrupted one; both prompts must end alike."
            )
        ids.append(after_clean)
    if ids[0] == ids[1]:
        same = repr(pair.answer)
        raise PairError(f"{where}: answer and wrong_answer are the same token {same}; they must differ.")
    return ids[0], ids[1]


def continuation(what: str, tokenizer: Any, prompt: str, answer: str) -> int:
    """The one token that `answer` adds to `prompt`, tokenised together as the model would meet them.

    Raises:
        PairError: it adds none, or several, or changes the prompt's own tokens; `what` opens the message.
    """
    before = tokenizer(prompt).input_ids
    after = tokenizer(prompt + answer).input_ids
    if len(after) == len(before) + 1 and after[:-1] == before:
        return int(after[-1])
    if after[: len(before)] == before:
        added = after[len(before) :]
        found = f"it adds {len(added)}: {token_strings(tokenizer, added)}."
    else:
        found = f"the prompt's own tokens change with it: {token_strings(tokenizer, after)}."
    with_space = tokenizer(prompt + " " + answer).input_ids
    hint = _space_hint(answer, len(with_space) - len(before) if with_space[: len(before)] == before else 0)
    if prompt != prompt.rstrip():
        hint += " The prompt ends with a space: move it to the front of the answer."
    raise PairError(f"{what} {answer!r} must continue {prompt!r} by exactly one token; {found}{hint}")


def _check_lengths(where: str, clean: Sequence[str], corrupted: Sequence[str]) -> None:
    if len(clean) == len(corrupted):
        return
    raise PairError(
        f"{where}: clean has {len(clean)} tokens and corrupted has {len(corrupted)}, so that a position does "
        "not mean the same in both. Replace words by words of as many tokens. Side by side (≠ marks a "
        f"difference):\n{side_by_side('clean', clean, 'corrupted', corrupted)}"
    )


def side_by_side(left_name: str, left: Sequence[str], right_name: str, right: Sequence[str]) -> str:
    """Two token lists in two aligned columns under their names, with a mark where they differ."""
    rows = []
    for kind, i, i_end, j, j_end in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        mark = "" if kind == "equal" else "≠"
        rows += [
            ("" if one is None else repr(one), mark, "" if other is None else repr(other))
            for one, other in zip_longest(left[i:i_end], right[j:j_end])
        ]
    width = max(len(left_name), *(len(one) for one, _, _ in rows))
    table = [(left_name, "", right_name), *rows]
    return "\n".join(f"  {one:<{width}} {mark or ' '} {other}".rstrip() for one, mark, other in table)
