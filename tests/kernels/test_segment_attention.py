"""Packed attention against the plain thing: every row alone, with all its keys and a mask."""

from __future__ import annotations

import math

import pytest
import torch

from interp.kernels import segment_attention as module
from interp.kernels.segment_attention import Segment, segment_attention

POSITIONS, EXAMPLES, HEADS, D_HEAD = 9, 2, 4, 2


def _segment(first, example, starts, end):
    """Rows of one example, live from `starts` to `end`, packed from token `first` on."""
    start, length = min(starts), end - min(starts)
    live = [(row, position) for row, begin in enumerate(starts) for position in range(begin, end)]
    tokens = slice(first, first + len(live))
    if len(set(starts)) == 1:
        return Segment(tokens, len(starts), start, length, example)
    place = torch.tensor([row * length + position - start for row, position in live])
    source = torch.arange(length).repeat(len(starts)) + len(live)
    source[place] = torch.arange(len(live))
    return Segment(tokens, len(starts), start, length, example, place, source.view(len(starts), length))


LAYOUTS = {
    # name: [(example, starts of the rows, end)]
    "from the first position": [(0, [0, 0], 6)],
    "behind a prefix": [(1, [4, 4, 4], 9)],
    "one token": [(0, [5, 5], 6)],
    "one token at position 0": [(1, [0], 1)],
    "ragged": [(0, [2, 3, 5], 8)],
    "ragged from 0": [(1, [0, 4], 7)],
    "several": [(0, [0, 0], 4), (0, [3, 6, 7], 9), (1, [8, 8], 9), (1, [1], 3)],
}


def _case(layout, kv_heads, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    segments, rows, first = [], [], 0
    for example, starts, end in LAYOUTS[layout]:
        segments.append(_segment(first, example, starts, end))
        for begin in starts:
            rows.append((example, begin, end, first))
            first += end - begin
    tensors = [normal(first, HEADS, D_HEAD), normal(first, kv_heads, D_HEAD), normal(first, kv_heads, D_HEAD)]
    tensors += [normal(EXAMPLES, POSITIONS, kv_heads, D_HEAD) for _ in range(2)]
    return tensors, segments, rows


def _naive(tensors, rows, *, scaling, softcap=None, window=None, bias=None, factor=None):
    """One row, one head, one query at a time."""
    query, key, value, prefix_key, prefix_value = tensors
    out = torch.zeros_like(query)
    group = query.shape[1] // key.shape[1]
    for example, begin, end, first in rows:
        own = slice(first, first + end - begin)
        k = torch.cat([prefix_key[example, :begin], key[own]])
        v = torch.cat([prefix_value[example, :begin], value[own]])
        for token, position in zip(range(own.start, own.stop), range(begin, end), strict=True):
            low = 0 if window is None else max(0, position - window + 1)
            for head in range(query.shape[1]):
                scores = k[low : position + 1, head // group] @ query[token, head] * scaling
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if bias is not None:
                    scores = scores + bias[token, head, low : position + 1]
                weights = scores.softmax(0)
                if factor is not None:
                    weights = weights * factor[token, head, low : position + 1]
                out[token, head] = weights @ v[low : position + 1, head // group]
    return out


def _on_grid(table):
    """The edit of a segment's [row head query key] that a table [token head key] means."""

    def spread(segment, x, neutral):
        grid = x.new_full(x.transpose(1, 2).shape, neutral)  # row query head key
        rows = table[segment.tokens][..., : x.shape[-1]]
        grid.flatten(0, 1)[torch.arange(len(rows)) if segment.place is None else segment.place] = rows
        return grid.transpose(1, 2)

    return spread


@pytest.fixture
def calls(monkeypatch):
    """Names of the ways that are taken, beside explicit scores."""
    taken: list[str] = []

    def counted(name, way):
        return lambda *args: (taken.append(name), way(*args))[1]

    for name in ("_fused", "_in_two_parts"):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return taken


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_way_equals_every_row_alone(layout, kv_heads, window, calls, monkeypatch):
    tensors, segments, rows = _case(layout, kv_heads)
    expected = _naive(tensors, rows, scaling=0.7, window=window)
    with_prefix = sum(s.start > 0 for s in segments)
    for few_keys, grad, taken in (
        (POSITIONS, False, {}),
        (0, True, {"_fused": len(segments)}),
        (0, False, {"_fused": len(segments)} if window else
            {"_fused": len(segments) - with_prefix, "_in_two_parts": with_prefix}),
    ):  # fmt: skip
        monkeypatch.setattr(module, "FEW_KEYS", few_keys)
        with torch.set_grad_enabled(grad):
            found = segment_attention(*tensors, segments, scaling=0.7, window=window)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
        assert {name: calls.count(name) for name in set(calls)} == {name: n for name, n in taken.items() if n}
        calls.clear()
    same = segment_attention(*tensors, segments, scaling=0.7, window=window, softmax_dtype=torch.float64)
    torch.testing.assert_close(same, expected, rtol=0, atol=1e-13)
    assert not calls


def test_few_keys_are_scored_and_many_go_to_a_kernel(calls):
    generator = torch.Generator().manual_seed(0)
    for keys, taken in ((module.FEW_KEYS, []), (module.FEW_KEYS + 1, ["_in_two_parts"])):
        base = [torch.randn(1, keys, 2, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
        own = [torch.randn(6, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]
        rows = [(0, keys - 3, keys, 0), (0, keys - 3, keys, 3)]
        with torch.no_grad():
            found = segment_attention(*own, *base, [Segment(slice(0, 6), 2, keys - 3, 3, 0)], scaling=0.5)
        expected = _naive([*own, *base], rows, scaling=0.5)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
        assert calls == taken


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_softcap_and_edits_of_scores_and_pattern(layout, kv_heads, window, calls, monkeypatch):
    monkeypatch.setattr(module, "FEW_KEYS", 0)
    tensors, segments, rows = _case(layout, kv_heads)
    generator = torch.Generator().manual_seed(5)
    shape = (len(tensors[0]), HEADS, POSITIONS)
    bias, factor = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    add, scale = _on_grid(bias), _on_grid(factor)
    common = {"scaling": 0.7, "softcap": 1.5, "window": window}
    for own, wanted in (
        ({}, {}),
        ({"edit_scores": lambda s, x: x + add(s, x, 0.0)}, {"bias": bias}),
        ({"edit_pattern": lambda s, x: x * scale(s, x, 1.0)}, {"factor": factor}),
        (
            {"edit_scores": lambda s, x: x + add(s, x, 0.0), "edit_pattern": lambda s, x: x * scale(s, x, 1.0)},
            {"bias": bias, "factor": factor},
        ),
    ):
        found = segment_attention(*tensors, segments, **common, **own)
        torch.testing.assert_close(found, _naive(tensors, rows, **common, **wanted), rtol=0, atol=1e-13)
    assert not calls


def test_an_edit_reveals_no_later_key():
    tensors, segments, rows = _case("from the first position", 2)
    shown = segment_attention(*tensors, segments, scaling=1.0, edit_scores=lambda _, x: torch.zeros_like(x))
    flat = [torch.zeros_like(tensors[0]), *tensors[1:]]
    torch.testing.assert_close(shown, _naive(flat, rows, scaling=1.0), rtol=0, atol=1e-13)
    ones = segment_attention(*tensors, segments, scaling=1.0, edit_pattern=lambda _, x: torch.ones_like(x))
    value, group = tensors[2], 2
    for _, begin, end, first in rows:
        for offset in range(end - begin):
            total = value[first : first + offset + 1].sum(0).repeat_interleave(group, 0)
            torch.testing.assert_close(ones[first + offset], total, rtol=0, atol=1e-13)


def test_edits_see_segments_scores_and_weights():
    tensors, segments, _ = _case("several", 2)
    seen = {}

    def keep(name):
        return lambda segment, x: seen.setdefault((name, id(segment)), x.clone()) * 1

    segment_attention(*tensors, segments, scaling=1.0, edit_scores=keep("scores"), edit_pattern=keep("pattern"))
    for segment in segments:
        scores, pattern = seen["scores", id(segment)], seen["pattern", id(segment)]
        assert scores.shape == (segment.rows, HEADS, segment.length, segment.start + segment.length)
        torch.testing.assert_close(scores.softmax(-1), pattern, rtol=0, atol=1e-14)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(segment.start + 1)
        assert torch.equal(scores.isinf(), later.expand_as(scores))


def test_softmax_dtype_is_the_type_of_the_weights():
    tensors, segments, rows = _case("behind a prefix", 2)
    exact = _naive(tensors, rows, scaling=0.7)
    coarse = segment_attention(*tensors, segments, scaling=0.7, softmax_dtype=torch.float32)
    error = (coarse - exact).abs().max()
    assert coarse.dtype == torch.float64 and 1e-12 < error < 1e-6


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("layout", ["ragged", "several", "from the first position"])
def test_gradients_flow_through_scores_and_kernel(layout, explicit, calls, monkeypatch):
    monkeypatch.setattr(module, "FEW_KEYS", 0)
    tensors, segments, rows = _case(layout, 2)
    options = {"softmax_dtype": torch.float64} if explicit else {}
    mine = [t.clone().requires_grad_() for t in tensors]
    theirs = [t.clone().requires_grad_() for t in tensors]
    weights = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (segment_attention(*mine, segments, scaling=0.7, **options) * weights).sum().backward()
    (_loopless(theirs, rows, 0.7) * weights).sum().backward()
    assert set(calls) == (set() if explicit else {"_fused"})
    for a, b in zip(mine, theirs, strict=True):
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in (a, b)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-13)
    assert all(t.grad.any() for t in mine[:3])


def _loopless(tensors, rows, scaling):
    """As `_naive`, without writing into a tensor."""
    query, key, value, prefix_key, prefix_value = tensors
    out, group = [], query.shape[1] // key.shape[1]
    for example, begin, end, first in rows:
        own = slice(first, first + end - begin)
        k = torch.cat([prefix_key[example, :begin], key[own]]).repeat_interleave(group, 1)
        v = torch.cat([prefix_value[example, :begin], value[own]]).repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", query[own], k) * scaling
        later = torch.ones(end - begin, end, dtype=torch.bool).triu(begin + 1)
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -math.inf).softmax(-1), v))
    return torch.cat(out)
