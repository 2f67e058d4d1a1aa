"""Pairs and tasks: what encodes, what is refused, what survives a file."""

from __future__ import annotations

import csv
import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from interp.errors import LoadError, PairError
from interp.tasks import EncodedTask, PromptPair, Task, single_token
from interp.tasks.pairs import check_choice, check_count

KEYS = PromptPair("The keys to the cabinet", "The key to the cabinet", " are", " is", "keys", "key", "plural")
TOWER = PromptPair("The tower is in the city of", "The palace is in the city of", " Paris", " London")
TASK = Task("hand-made", (KEYS, TOWER, KEYS), "this test", None)


def one(clean="The keys to the cabinet", corrupted="The key to the cabinet", answer=" are", wrong_answer=" is"):
    return Task("one", (PromptPair(clean, corrupted, answer, wrong_answer),), "this test")


# --- what encodes -----------------------------------------------------------------------------------------


def test_encode_gives_the_tokens_of_every_pair_in_order(model):
    encoded = TASK.encode(model)
    assert isinstance(encoded, EncodedTask)
    assert len(encoded) == 3
    assert encoded.task is TASK
    for row, pair in enumerate(TASK.pairs):
        assert "".join(encoded.clean.tokens[row]) == pair.clean
        assert "".join(encoded.corrupted.tokens[row]) == pair.corrupted
        assert model.tokenizer.decode(encoded.answer[row]) == pair.answer
        assert model.tokenizer.decode(encoded.wrong_answer[row]) == pair.wrong_answer
    assert encoded.answer.dtype == torch.long
    assert encoded.answer.shape == (3,)
    assert torch.equal(encoded.clean.lengths, encoded.corrupted.lengths)


def test_encode_lets_lengths_differ_between_pairs(model):
    lengths = TASK.encode(model).clean.lengths
    assert lengths[0] == lengths[2] != lengths[1]


def test_answers_are_read_as_continuations_of_the_prompt(model):
    """An answer without a space is one token after an opening quote, and that is what counts."""
    encoded = one('He said "', 'She said "', "Yes", "No").encode(model)
    assert model.tokenizer.decode(encoded.answer[0]) == "Yes"


def test_single_token_is_the_id_of_the_text(tokenizer):
    assert tokenizer.decode([single_token(tokenizer, " Paris")]) == " Paris"


# --- tasks are values -------------------------------------------------------------------------------------


def test_slices_and_selections_are_tasks_with_the_same_origin():
    assert TASK[1:].pairs == (TOWER, KEYS)
    assert TASK[::-1].pairs == TASK.select([2, 1, 0]).pairs
    assert TASK.select([1]) == Task("hand-made", (TOWER,), "this test", None)
    assert list(TASK) == list(TASK.pairs)
    assert len(TASK) == 3
    with pytest.raises(TypeError, match=r"task\.pairs\[1\]"):
        TASK[1]


def test_repr_is_short_and_shows_the_first_pair():
    text = repr(TASK)
    assert "hand-made" in text
    assert "3 pairs" in text
    assert "' are'" in text
    assert len(text) < 200
    assert repr(Task("none", (), "this test")) == "Task('none', 0 pairs, seed=None)"


def test_encoded_repr_tells_the_lengths(model):
    assert repr(TASK.encode(model)) == "EncodedTask('hand-made', 3 pairs of 5 to 7 tokens)"


def test_nothing_can_be_changed(model):
    for thing, field in ((KEYS, "clean"), (TASK, "name"), (TASK.encode(model), "answer")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, field, None)


# --- files ------------------------------------------------------------------------------------------------

ODD = PromptPair('He said, "Oui,\nnon"; 日本 is', 'She said, "Oui,\nnon"; 日本 is', " a,b", ' "c"', "He", "She")


def test_jsonl_round_trip(tmp_path):
    task = Task("näme", (KEYS, ODD, TOWER), "a source", 7)
    task.to_jsonl(tmp_path / "task.jsonl")
    assert Task.from_jsonl(tmp_path / "task.jsonl") == task
    assert len((tmp_path / "task.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_jsonl_without_a_head_is_named_after_the_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"clean": "a", "corrupted": "b", "answer": " c", "wrong_answer": " d"}
    path.write_text(json.dumps(row) + "\n\n")
    assert Task.from_jsonl(path) == Task("mine", (PromptPair("a", "b", " c", " d"),), "mine.jsonl", None)


def test_csv_round_trip(tmp_path):
    task = Task("table", (KEYS, ODD, TOWER), "a source", 7)
    task.to_csv(tmp_path / "task.csv")
    assert Task.from_csv(tmp_path / "task.csv", name="table", source="a source", seed=7) == task
    assert Task.from_csv(tmp_path / "task.csv").name == "task"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{oops\n", "Line 1 .* is not JSON"),
        ("[1, 2]\n", "Line 1 .* not a JSON object"),
        ('{"clean": "a", "corrupted": "b", "answer": " c"}\n', r"lacks \['wrong_answer'\]"),
        (
            '{"clean": "a", "corrupted": "b", "answer": " c", "wrong_answer": " d", "lable": "x"}\n',
            "unknown fields .*Did you mean 'label'",
        ),
        (
            '{"clean": "a", "corrupted": "b", "answer": " c", "wrong_answer": " d", "subject": "x"}\n',
            "Line 1 .* subject 'x' does not occur",
        ),
        ('{"task": "t", "source": "s", "seed": 1}\n', "holds no pairs"),
        (
            '{"clean": "a", "corrupted": "b", "answer": 3, "wrong_answer": " d"}\n',
            "answer must be a text; got 3",
        ),
    ],
    ids=["syntax", "list", "missing", "unknown", "subject", "none", "number"],
)
def test_malformed_jsonl_is_refused(tmp_path, text, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(LoadError, match=words):
        Task.from_jsonl(path)


def test_malformed_csv_is_refused(tmp_path):
    path = tmp_path / "bad.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["clean", "corrupted", "answer", "wrong_answer"], ["a", "b", " c"]])
    with pytest.raises(LoadError, match=r"Line 2 of .*bad.csv has 3 cells; the header has 4"):
        Task.from_csv(path)


HEADER = "clean,corrupted,answer,wrong_answer"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clean,answer\na, b\n", r"Line 1 .* lacks \['corrupted', 'wrong_answer'\]"),
        (HEADER.replace(",", ";") + "\na;b;c;d\n", "parted by semicolons: use commas"),
        (HEADER.replace(",", "\t") + "\n", "parted by tabs: use commas"),
        (HEADER + ",lable\na,b, c, d,x\n", "Line 1 .* unknown fields .*Did you mean 'label'"),
        (HEADER + ",clean\n", "Line 1 .* names the column 'clean' twice"),
        (HEADER + '\n"a\nb",b, c, d\n\na,b, c\n', "Line 5 .* has 3 cells"),
        (HEADER + ',subject\n"a\nb",b, c, d,\nx,y, c, d,keys\n', "Line 4 .* subject 'keys' does not occur"),
        (HEADER + '\na,b, c, d\n"a,b, c, d\n', "Line 3 .* is not CSV"),
        (HEADER + "\n", "holds no pairs"),
        ("", r"Line 1 .* lacks .*got \[\]"),
    ],
)
def test_csv_mistakes_are_told_with_their_line(tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text, newline="")
    with pytest.raises(LoadError, match=words):
        Task.from_csv(path)


def test_a_csv_of_a_spreadsheet_is_read(tmp_path):
    """A byte order mark, line ends of Windows, a line break inside a cell, an empty last line."""
    path = tmp_path / "sheet.csv"
    path.write_bytes(f'{HEADER},label\r\n"é\r\nb",x, c, d,l\r\n\r\n'.encode("utf-8-sig"))
    assert Task.from_csv(path).pairs == (PromptPair("é\r\nb", "x", " c", " d", label="l"),)


@pytest.mark.parametrize("read", [Task.from_csv, Task.from_jsonl])
def test_files_that_are_not_there_or_not_utf8(tmp_path, read):
    with pytest.raises(LoadError, match=r"no file .*none"):
        read(tmp_path / "none")
    path = tmp_path / "latin"
    path.write_bytes(f"{HEADER}\n\u00e9,b, c, d\n".encode("latin-1"))
    with pytest.raises(LoadError, match=r"Line 2 of .*latin is not UTF-8 .*save the file as UTF-8"):
        read(path)


# --- refusals ---------------------------------------------------------------------------------------------


def test_an_empty_task_is_refused(model):
    with pytest.raises(PairError, match="'nothing' has no pairs"):
        Task("nothing", (), "this test").encode(model)


@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_an_empty_prompt_is_refused(model, side):
    with pytest.raises(PairError, match=f"Pair 0 .* empty {side} prompt"):
        one(**{side: ""}).encode(model)


def test_unequal_lengths_are_refused_and_shown_side_by_side(model):
    task = Task("t", (TOWER, PromptPair("The old keys to it", "The key to it", " are", " is")), "this test")
    with pytest.raises(PairError, match=r"Pair 1 .* clean has 5 tokens and corrupted has 4") as caught:
        task.encode(model)
    table = str(caught.value).splitlines()[1:]
    assert table == [
        "  clean     corrupted",
        "  'The'     'The'",
        "  ' old'  ≠ ' key'",
        "  ' keys' ≠",
        "  ' to'     ' to'",
        "  ' it'     ' it'",
    ]


@pytest.mark.parametrize("which", ["answer", "wrong_answer"])
def test_an_answer_of_several_tokens_is_refused_and_shown(model, which):
    with pytest.raises(PairError, match=rf"{which} ' Reykjavik' .* exactly one token; it adds \d: \[' Rey"):
        one(**{which: " Reykjavik"}).encode(model)


def test_an_empty_answer_is_refused(model):
    with pytest.raises(PairError, match="exactly one token; it adds 0"):
        one(answer="").encode(model)


def test_an_answer_that_melts_into_the_prompt_is_refused(model):
    """The text " cabinet" + "s" is the one token " cabinets", so the prompt's last token would be another."""
    with pytest.raises(PairError, match=r"the prompt's own tokens change with it: .*' cabinets'"):
        one(answer="s").encode(model)


def test_a_space_at_the_end_of_the_prompt_is_explained(model):
    with pytest.raises(PairError, match="ends with a space: move it to the front"):
        one("The keys are ", "The key are ", "red", "blue").encode(model)


def test_a_missing_leading_space_is_suggested(model):
    with pytest.raises(PairError, match="With a leading space it is one token: write ' Copenhagen'"):
        one("The city of", "The town of", "Copenhagen", " London").encode(model)


def test_equal_answers_are_refused(model):
    with pytest.raises(PairError, match="same token ' are'; they must differ"):
        one(wrong_answer=" are").encode(model)


def test_single_token_refuses_none_and_several(tokenizer):
    with pytest.raises(PairError, match="it is 0"):
        single_token(tokenizer, "")
    with pytest.raises(PairError, match=r"' Reykjavik' must be exactly one token"):
        single_token(tokenizer, " Reykjavik")


def test_single_token_suggests_the_leading_space_only_where_it_helps(tokenizer):
    with pytest.raises(PairError, match="With a leading space it is one token: write ' Copenhagen'"):
        single_token(tokenizer, "Copenhagen")
    with pytest.raises(PairError) as caught:
        single_token(tokenizer, "Reykjavik")
    assert "leading space" not in str(caught.value)


@pytest.mark.parametrize("which", ["subject", "corrupted_subject"])
def test_a_subject_that_is_not_in_its_prompt_is_refused(which):
    with pytest.raises(PairError, match=f"{which} 'door' does not occur"):
        PromptPair("The keys", "The key", " are", " is", **{which: "door"})


def test_options_and_counts_are_refused():
    with pytest.raises(PairError, match=r"no colour 'rde'. Did you mean 'red'.*Allowed: red, blue"):
        check_choice("colour", "rde", ("red", "blue"))
    for n in (0, -1, 2.5, True):
        with pytest.raises(PairError, match="at least 1"):
            check_count(n)
