"""The attention kernel, under Triton's interpreter, against one query at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.closeness import DTYPES, assert_close, counted

from interp.errors import InterpError, ShapeError
from interp.kernels.prefix_attention import EdgeBias, PackedRows, segmented
from interp.kernels.segment_attention import Segment

pytest.importorskip("triton")
from interp.kernels.fused import prefix_attention as module

fused = module.prefix_attention
LAYOUTS = {
    # name: [(example, starts of the rows, end)]
    "from the first position": [(0, [0, 0], 6)],
    "one token at position 0": [(1, [0], 1)],
    "behind a prefix of several blocks": [(1, [41, 41, 41], 45)],
    "ragged": [(0, [2, 3, 5], 8)],
    "several": [(0, [0, 0], 4), (0, [3, 6, 7], 9), (1, [8, 8], 9), (1, [1], 3)],
    "more rows than a tile": [(0, [5] * 19, 7)],
    "a row longer than a tile": [(1, [3], 45)],
}


def _segments(layout):
    segments, token = [], 0
    for example, starts, end in layout:
        start, length = min(starts), end - min(starts)
        live = [(row, position) for row, begin in enumerate(starts) for position in range(begin, end)]
        tokens = slice(token, token + len(live))
        token += len(live)
        if len(set(starts)) == 1:
            segments.append(Segment(tokens, len(starts), start, length, example))
            continue
        place = torch.tensor([row * length + position - start for row, position in live])
        source = torch.arange(length).repeat(len(starts)) + len(live)
        source[place] = torch.arange(len(live))
        segments.append(Segment(tokens, len(starts), start, length, example, place, source.view(len(starts), length)))
    return segments


def _case(layout, heads, kv_heads, d_head, dtype=torch.float32, seed=0):
    """(tensors, rows, edges): keys on either side of every row's start are cut for some of its queries."""
    generator = torch.Generator().manual_seed(seed)
    segments = _segments(layout)
    rows = PackedRows.of(segments, torch.device("cpu"))
    tokens = segments[-1].tokens.stop
    positions = max(end for _, _, end in layout)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = [normal(tokens, heads, d_head), normal(tokens, kv_heads, d_head), normal(tokens, kv_heads, d_head)]
    tensors += [normal(2, positions, kv_heads, d_head) for _ in range(2)]
    table = torch.where(torch.rand(3, max(1, positions - 1), generator=generator) < 0.4, -math.inf, 0.0)
    table[2] = torch.randn(table.shape[1], generator=generator)
    table[:, 0] = 0.5  # every query keeps a key
    row = torch.randint(-1, 3, (tokens, heads), generator=generator)
    return tensors, rows, EdgeBias(row.int(), table)


def _one_by_one(tensors, rows, scaling, softcap=None, window=None, edges=None):
    """One token, one head at a time, in float64."""
    query, key, value, prefix_key, prefix_value = (t.double() for t in tensors)
    out = torch.zeros_like(query)
    per = query.shape[1] // key.shape[1]
    example = torch.zeros(len(query), dtype=torch.long)
    for segment in rows.segments:
        example[segment.tokens] = segment.example
    for t, (begin, position) in enumerate(zip(rows.begin.tolist(), rows.position.tolist(), strict=True)):
        start = position - (t - begin)
        k = torch.cat([prefix_key[example[t], :start], key[begin : t + 1]])
        v = torch.cat([prefix_value[example[t], :start], value[begin : t + 1]])
        low = 0 if window is None else max(0, position - window + 1)
        for h in range(query.shape[1]):
            scores = k[:, h // per] @ query[t, h] * scaling
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            if edges is not None and edges.row[t, h] >= 0:
                n = min(len(scores), edges.table.shape[1])
                scores[:n] += edges.table[edges.row[t, h], :n]
            out[t, h] = scores[low:].softmax(0) @ v[low:, h // per]
    return out.float()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", [(4, 4, 8), (6, 2, 20), (5, 1, 64)])
def test_the_kernel_is_one_query_at_a_time(layout, heads, monkeypatch):
    launches = counted(monkeypatch, module, "attend_tile")
    tensors, rows, edges = _case(LAYOUTS[layout], *heads)
    for options in (
        {},
        {"window": 3, "softcap": 1.5},
        {"edges": edges},
        {"edges": edges, "window": 20, "softcap": 5.0},
    ):
        expected = _one_by_one(tensors, rows, 0.7, **options)
        assert_close(fused(*tensors, rows, scaling=0.7, **options), expected)
        assert_close(segmented(*tensors, rows, scaling=0.7, **options), expected)
    assert launches == {"attend_tile": 4}


def test_the_layouts_reach_what_they_are_named_for():
    sizes = module.tile(1, 8, torch.float32)
    assert len(_case(LAYOUTS["more rows than a tile"], 1, 1, 8)[1].tiles(sizes["TOKENS"])[0]) > 1
    assert max(end - min(starts) for _, starts, end in LAYOUTS["a row longer than a tile"]) > sizes["TOKENS"]
    assert LAYOUTS["behind a prefix of several blocks"][0][1][0] > 2 * sizes["KEYS"]


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("layout", ["several", "behind a prefix of several blocks"])
def test_half_precision_is_good_to_its_last_places(layout, dtype):
    tensors, rows, edges = _case(LAYOUTS[layout], 6, 2, 20, dtype)
    options = {"scaling": 0.3, "softcap": 5.0, "window": 30, "edges": edges}
    assert_close(fused(*tensors, rows, **options), _one_by_one(tensors, rows, **options))


@settings(max_examples=15, deadline=None)
@given(
    layout=st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(7, 9)),
        min_size=1, max_size=3,
    ),
    per=st.integers(1, 3), kv_heads=st.integers(1, 2), d_head=st.integers(1, 9),
    window=st.none() | st.integers(1, 6), softcap=st.none() | st.just(2.0), cut=st.booleans(),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 1000),
)  # fmt: skip
def test_fuzzed(layout, per, kv_heads, d_head, window, softcap, cut, dtype, seed):
    layout = [(example, sorted(starts), end) for example, starts, end in layout]
    tensors, rows, edges = _case(layout, per * kv_heads, kv_heads, d_head, dtype, seed)
    options = {"scaling": 0.5, "softcap": softcap, "window": window, "edges": edges if cut else None}
    expected = _one_by_one(tensors, rows, **options)
    assert_close(fused(*tensors, rows, **options), expected)


def test_a_query_without_a_key_is_not_a_number():
    tensors, rows, _ = _case(LAYOUTS["ragged"], 2, 1, 4)
    edges = EdgeBias(torch.full((len(tensors[0]), 2), -1, dtype=torch.int32), torch.full((1, 8), -math.inf))
    edges.row[3, 1] = 0
    found = fused(*tensors, rows, scaling=1.0, edges=edges)
    assert found[3, 1].isnan().all() and found.isnan().sum() == 4
    assert torch.equal(segmented(*tensors, rows, scaling=1.0, edges=edges).isnan(), found.isnan())


def test_what_one_row_runs_into_does_not_reach_the_others():
    tensors, rows, _ = _case(LAYOUTS["ragged"], 4, 2, 8)
    expected = fused(*tensors, rows, scaling=1.0)
    tensors[1][7], tensors[2][7] = math.nan, math.inf  # in the second row: tokens 6 to 10
    found = fused(*tensors, rows, scaling=1.0)
    seen = torch.zeros(len(found), dtype=torch.bool)
    seen[7:11] = True
    assert module.tile(2, 8, torch.float32)["TOKENS"] > len(found)  # all rows are in one tile
    assert found[seen].isnan().all() and torch.equal(found[~seen], expected[~seen])


def test_strides_that_are_not_those_of_a_fresh_tensor():
    tensors, rows, edges = _case(LAYOUTS["several"], 6, 2, 5)
    strided = [t.transpose(0, -2).contiguous().transpose(0, -2) for t in tensors]
    assert not any(t.is_contiguous() for t in strided)
    wide = torch.full((6, len(tensors[0])), -1, dtype=torch.int32).T.copy_(edges.row).contiguous()
    for options in ({}, {"edges": EdgeBias(wide, edges.table)}):
        assert torch.equal(fused(*strided, rows, scaling=1.0, **options), fused(*tensors, rows, scaling=1.0, **options))


def test_no_token():
    rows = PackedRows.of([], torch.device("cpu"))
    empty, prefix = torch.zeros(0, 2, 4), torch.zeros(1, 3, 2, 4)
    assert fused(empty, empty, empty, prefix, prefix, rows, scaling=1.0).shape == (0, 2, 4)


def _replaced(tensors, number, new):
    return [new if i == number else t for i, t in enumerate(tensors)]


REFUSED = [
    (lambda t: [x.double() for x in t], InterpError, "query is float64; the kernel takes"),
    (lambda t: _replaced(t, 1, t[1].half()), ShapeError, "give one"),
    (lambda t: _replaced(t, 0, t[0].mT.contiguous().mT), ShapeError, "query has.*must be contiguous"),
    (lambda t: [x.repeat(*[1] * (x.ndim - 1), 60) for x in t], ShapeError, "of 300 numbers.*up to 256"),
    (lambda t: _replaced(t, 0, t[0][:, :5]), ShapeError, "5 query heads, 2 key heads"),
    (lambda t: _replaced(t, 3, t[3][:, :7]), ShapeError, "behind 8 positions of example 0.*prefixes \\[2, 7\\]"),
    (lambda t: _replaced(t, 3, t[3][:1]), ShapeError, "of example 1"),
    (lambda t: [x[:-1] for x in t[:3]] + t[3:], ShapeError, "there are 22 tokens"),
    (lambda t: _replaced(t, 1, t[1][:-1]), ShapeError, "key has shape .22, 2, 5., not .23, 2, 5."),
    (lambda t: _replaced(t, 4, t[4][:1]), ShapeError, "prefix_value has shape"),
    (lambda t: [torch.cat([x, x[:1]]) for x in t[:3]] + t[3:], ShapeError, "do not hold each of the 24 tokens"),
]  # fmt: skip


def test_a_bias_that_does_not_fit_is_refused():
    tensors, rows, edges = _case(LAYOUTS["several"], 6, 2, 5)
    for row, table in (
        (edges.row.long(), edges.table),
        (edges.row[:, :5], edges.table),
        (edges.row.T.contiguous().T, edges.table),
        (edges.row, edges.table.double()),
    ):
        with pytest.raises(ShapeError, match="rows of the bias.*must be contiguous, .23, 6. in int32"):
            fused(*tensors, rows, scaling=1.0, edges=EdgeBias(row, table))


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refused_before_the_launch(case, monkeypatch, unchecked):
    launches = counted(monkeypatch, module, "attend_tile")
    tensors, rows, _ = _case(LAYOUTS["several"], 6, 2, 5)
    change, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        fused(*change(tensors), rows, scaling=1.0)
    assert launches == {"attend_tile": 0}
