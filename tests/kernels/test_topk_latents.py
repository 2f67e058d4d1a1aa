"""The two-stage search against torch's."""

from __future__ import annotations

import pytest
import torch

from interp.kernels import topk_latents as module
from interp.kernels.topk_latents import topk_latents


@pytest.mark.parametrize(("rows", "width", "k"), [(7, 4608, 32), (3, 640, 10), (1, 16 * 4096, 1000), (4, 64, 1)])
def test_grouped_search_finds_what_torch_finds(rows, width, k, monkeypatch):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(k))
    expected = x.topk(k, dim=1)
    # that the groups were searched, and not the row: a row is longer than what is left of it
    searched = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, *a, **b: (searched.append(x.shape[1]), topk(x, *a, **b))[1])
    values, places = topk_latents(x, k)
    monkeypatch.undo()
    assert searched == [width // 16, 16 * k]
    assert torch.equal(values.sort(dim=1, descending=True).values, expected.values)
    assert torch.equal(x.gather(1, places), values)
    assert torch.equal(places.sort(dim=1).values, expected.indices.sort(dim=1).values)


@pytest.mark.parametrize(("width", "k"), [(4607, 32), (48, 5), (10, 10), (20, 0)])
def test_rows_without_enough_groups_are_searched_whole(width, k):
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    values, places = topk_latents(x, k)
    assert torch.equal(values.sort(dim=1, descending=True).values, x.topk(k, dim=1).values)
    assert torch.equal(x.gather(1, places), values)


def test_equal_entries_are_taken_once_each():
    x = torch.zeros(2, 16 * module._GROUPS_PER_ENTRY * 3)
    x[0, ::7] = 1.0
    values, places = topk_latents(x, 3)
    assert all(len(set(row)) == 3 for row in places.tolist())
    assert values.tolist() == [[1.0] * 3, [0.0] * 3]
