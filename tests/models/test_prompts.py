"""Prompts are left-aligned whatever comes in."""

from __future__ import annotations

import inspect

import pytest
import torch

from interp.errors import PairError, ShapeError
from interp.models.prompts import from_tensor, from_token_lists, tokenize

ROWS = [[5, 6, 7], [8], [9, 10]]


def _same(prompts, rows):
    assert [row[:n] for row, n in zip(prompts.ids.tolist(), prompts.lengths.tolist(), strict=True)] == rows
    assert prompts.ids.shape == (len(rows), max(map(len, rows)))
    assert torch.equal(prompts.mask.sum(1), prompts.lengths)
    assert all(prompts.mask[b, p] == (p < len(row)) for b, row in enumerate(rows) for p in range(prompts.ids.shape[1]))
    assert [list(map(str, row)) for row in rows] == [list(tokens) for tokens in prompts.tokens]
    assert len(prompts) == len(rows)


def test_lists_and_padding_on_either_side_are_one_thing():
    _same(from_token_lists(None, ROWS), ROWS)
    width = 5
    for pad in (lambda r: [0] * (width - len(r)) + r, lambda r: r + [0] * (width - len(r))):
        ids, mask = (torch.tensor([pad(f(r)) for r in ROWS]) for f in (list, lambda r: [1] * len(r)))
        for kind in (torch.long, torch.bool):
            _same(from_tensor(None, ids, mask.to(kind)), ROWS)
    _same(from_tensor(None, torch.tensor([[1, 2], [3, 4]])), [[1, 2], [3, 4]])


def test_a_token_id_that_is_also_the_padding_stays():
    prompts = from_tensor(None, torch.tensor([[0, 0, 3]]), torch.tensor([[0, 1, 1]]))
    _same(prompts, [[0, 3]])


@pytest.mark.parametrize("mask", [[1, 0, 1], [0, 1, 0]])
def test_holes_are_refused(mask):
    with pytest.raises(ShapeError, match="padding inside the prompt"):
        from_tensor(None, torch.tensor([[1, 2, 3]]), torch.tensor([mask]))


def test_shapes_that_do_not_fit_are_refused():
    unchecked = inspect.unwrap(from_tensor)  # a user has no type checker that finds it first
    with pytest.raises(ShapeError, match=r"\(1, 3\) and \(1, 2\)"):
        unchecked(None, torch.tensor([[1, 2, 3]]), torch.tensor([[1, 1]]))
    with pytest.raises(ShapeError, match=r"\[batch, pos\]"):
        unchecked(None, torch.tensor([1, 2, 3]))


def test_empty_prompts_are_refused(tokenizer):
    for make in (
        lambda: from_token_lists(None, []),
        lambda: from_token_lists(None, [[1], []]),
        lambda: from_tensor(None, torch.tensor([[1, 2]]), torch.tensor([[0, 0]])),
        lambda: tokenize(tokenizer, ""),
        lambda: tokenize(tokenizer, []),
        lambda: tokenize(tokenizer, ["a", ""]),
    ):
        with pytest.raises(PairError, match="at least one token"):
            make()


def test_text_in_the_tokenizers_own_tokens(tokenizer):
    texts = ["The keys to the cabinet", " are", "Ünïcode"]
    prompts = tokenize(tokenizer, texts)
    for row, text in enumerate(texts):
        assert prompts.ids[row, : prompts.lengths[row]].tolist() == tokenizer(text).input_ids
    assert "".join(prompts.tokens[0]) == texts[0]
    assert prompts.tokens[1] == (" are",)
    one = tokenize(tokenizer, texts[0])
    assert torch.equal(one.ids[0], prompts.ids[0, : one.lengths[0]])


def test_the_padding_side_of_the_tokenizer_is_no_matter(tokenizer, speaking):
    import copy

    other = copy.deepcopy(tokenizer)
    other.pad_token = other.pad_token or other.eos_token
    texts = ["The keys", "The keys to the cabinet"]
    expected = speaking.prompts(texts)
    for side in ("left", "right"):
        other.padding_side = side
        batch = other(texts, padding=True, return_tensors="pt")
        found = speaking.prompts(batch.input_ids, batch.attention_mask)
        assert torch.equal(found.ids * found.mask, expected.ids * expected.mask)
        assert torch.equal(found.lengths, expected.lengths) and found.tokens == expected.tokens


def test_selecting_and_joining():
    prompts = from_token_lists(None, ROWS)
    _same(prompts.select([2, 1]), [ROWS[2], ROWS[1]])
    _same(prompts.select(torch.tensor([1, 1])), [ROWS[1], ROWS[1]])
    _same(prompts.select([1]).joined(prompts), [ROWS[1], *ROWS])
    _same(prompts.joined(prompts.select([1])), [*ROWS, ROWS[1]])
