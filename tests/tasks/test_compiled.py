"""Compiled programs compute their functions on every prompt of their domains; damaged files are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tasks import edge_oracle

from interp.errors import LoadError, PairError
from interp.tasks import compiled
from interp.tasks.programs import PROGRAMS, every_prompt, program_pairs

FOLDER = Path(str(files("interp.tasks") / "data" / "compiled"))


@pytest.mark.parametrize("name", PROGRAMS)
@torch.no_grad()
def test_every_prompt_of_the_domain_is_answered(name) -> None:
    model = compiled(name, 1).model
    by_length: dict[int, list] = {}
    for words, answer in every_prompt(PROGRAMS[name]):
        by_length.setdefault(len(words), []).append((words, answer))
    assert by_length
    ids = model.tokenizer.get_vocab()
    for cases in by_length.values():
        prompts = torch.tensor([[0, *(ids[word] for word in words)] for words, _ in cases])
        answers = torch.tensor([ids[answer] for _, answer in cases])
        for rows in torch.arange(len(cases)).split(4096):
            logits = model.network(input_ids=prompts[rows]).logits[:, -1]
            top = logits.topk(2).values
            assert torch.equal(logits.argmax(-1), answers[rows])
            assert (top[:, 0] - top[:, 1]).min() > 0.1  # no answer by a rounding error


@pytest.mark.parametrize("name", PROGRAMS)
def test_pairs_differ_in_one_word_or_an_exchange_and_in_their_answers(name) -> None:
    program = PROGRAMS[name]
    for pair in program_pairs(name, 20):
        clean, corrupted = (tuple(text.split()) for text in (pair.clean, pair.corrupted))
        changed = sum(a != b for a, b in zip(clean, corrupted, strict=True))
        assert changed == 1 or (changed == 2 and sorted(clean) == sorted(corrupted))
        assert pair.answer == f" {program.answer(clean)}" != f" {program.answer(corrupted)}" == pair.wrong_answer


@pytest.mark.parametrize("name", PROGRAMS)
@torch.no_grad()
def test_under_zero_ablation_the_circuit_and_nothing_less_answers_the_whole_domain(name) -> None:
    truth, domain = compiled(name, 1), list(every_prompt(PROGRAMS[name]))
    network, number = truth.model.network, truth.model.tokenizer.get_vocab()
    rows, last = torch.arange(len(domain)), torch.tensor([len(words) for words, _ in domain])
    ids = torch.zeros(len(domain), int(last.max()) + 1, dtype=torch.long)
    for row, (words, _) in zip(ids, domain, strict=True):
        row[1 : len(words) + 1] = torch.tensor([number[word] for word in words])

    def without(cut):
        logits = edge_oracle.forward(network, ids, lambda edge, x: torch.zeros_like(x) if edge in cut else x)[0]
        return logits[rows, last]

    everything = without(set())
    assert (without(set(truth.all_edges) - truth.edges("zero")) - everything).abs().max() <= 1e-3
    for edge in truth.edges("zero"):
        assert (without({edge}) - everything).abs().max() > 1


def test_known_circuits_of_the_literature() -> None:
    """ACDC's two programs, under resample ablation, as they are known elsewhere; here `reverse` needs fewer layers."""
    assert compiled("reverse", 1).edges() == {"input->a1.h0<v>", "a1.h0->logits"}
    assert compiled("x_proportion", 1).edges() == {"input->m0", "m0->a1.h0<v>", "a1.h0->logits"}


def test_edges_say_what_they_carry() -> None:
    truth = compiled("induction", 1)
    assert truth.edges() < truth.edges("zero") < truth.carried.keys()
    assert truth.carried["a1.h0->a2.h0<k>"] == ("previous",)
    assert "tokens" in truth.carried["input->a2.h0<q>"]


def test_the_files_are_small_and_all_of_them_are_known() -> None:
    sizes = [path.stat().st_size for path in FOLDER.glob("*.safetensors")]
    assert len(sizes) == len(PROGRAMS) and max(sizes) < 40_000
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(PROGRAMS)


@pytest.fixture
def folder(tmp_path):
    for path in (FOLDER / "previous.safetensors", FOLDER / "previous.json", FOLDER / "sha256.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


def record(folder, file) -> None:
    digests = json.loads((folder / "sha256.json").read_text())
    digests[file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "sha256.json").write_text(json.dumps(digests))


def test_a_folder_of_ones_own(folder) -> None:
    assert compiled("previous", 1, folder=folder).edges() == compiled("previous", 1).edges()


@pytest.mark.parametrize("file", ["previous.safetensors", "previous.json"])
def test_a_changed_byte_is_refused(folder, file) -> None:
    content = bytearray((folder / file).read_bytes())
    content[-20] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(LoadError, match=f"{file} is damaged"):
        compiled("previous", folder=folder)


@pytest.mark.parametrize("file", ["previous.safetensors", "previous.json", "sha256.json"])
def test_a_missing_file_is_refused(folder, file) -> None:
    (folder / file).unlink()
    with pytest.raises(LoadError, match=f"{file} cannot be read"):
        compiled("previous", folder=folder)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("previous.safetensors", b"short", "does not hold sparse weights"),
        ("previous.json", b"{", "is not JSON"),
        ("previous.json", b"[]", "must hold a JSON object; got list"),
        ("previous.json", b"{}", "does not describe a compiled program"),
    ],
)
def test_a_file_of_something_else_is_refused(folder, file, content, says) -> None:
    (folder / file).write_bytes(content)
    record(folder, file)
    with pytest.raises(LoadError, match=says):
        compiled("previous", folder=folder)


def test_weights_of_another_program_are_refused(folder) -> None:
    shutil.copy(FOLDER / "trigram.safetensors", folder / "previous.safetensors")
    record(folder, "previous.safetensors")
    with pytest.raises(LoadError, match="does not fit the network"):
        compiled("previous", folder=folder)


def test_a_description_of_another_program_is_refused(folder) -> None:
    shutil.copy(FOLDER / "trigram.json", folder / "previous.json")
    record(folder, "previous.json")
    with pytest.raises(LoadError, match="describes the program 'trigram', not 'previous'"):
        compiled("previous", folder=folder)


def test_an_unknown_program_is_refused() -> None:
    with pytest.raises(PairError, match="no compiled program 'reversed'.*reverse"):
        compiled("reversed")
