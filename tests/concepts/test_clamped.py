"""Clamping on a denoiser: what is read after a change is what a plain run with that change has there."""

import numpy as np
import pytest
import torch
from models.denoisers import described

from interp.concepts.clamped import Clamping, _places, _read
from interp.concepts.concept_graph import concept_graph
from interp.concepts.levels import ConceptLevel, check_order, observe
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.topk import TopK
from interp.errors import InterpError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Add, When
from interp.models.guidance import Branch
from interp.models.site import Site

SITE = Site("block_out", "up.2.1")
LATENTS = (0, 1, 2, 3, 5)


@pytest.fixture(scope="module")
def world():
    model = described("sd")
    sampling = model.sampling(
        ["a red circle", "a blue square"], seeds=[0, 1], steps=2, guidance=1.0, height=16, width=16
    )
    states = denoise(model, sampling, capture=[SITE])[SITE]
    read = Standardisation.from_moments(Moments.of(states.reshape(-1, 8)), (str(SITE),), dtype=torch.float64)
    made = TopK(read, 6, 3).double()
    levels = [ConceptLevel("early", made, LATENTS, 0), ConceptLevel("late", made, LATENTS, 1)]
    return model, sampling, levels, observe(model, sampling, levels, Branch.COND, 0)


def test_no_change_reads_what_is_there_and_a_change_what_a_plain_run_has(world):
    model, sampling, (early, late), seen = world
    example, places = _places(
        seen, seen.codes[0][:, 0], Clamping(examples=3, cells=2), torch.Generator().manual_seed(0)
    )
    assert (seen.example[places] == example[:, None]).all() and (seen.codes[0][places[0, 0], 0] > 0)
    positions = seen.position[places]
    change = torch.randn(3, 1, 2, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    changes = torch.cat([torch.zeros_like(change), change], 1)
    codes = _read(model, seen, (early, late), example, positions, changes, Branch.COND)
    torch.testing.assert_close(codes[:, 0], seen.codes[1][places], rtol=0, atol=1e-8)
    for row in range(3):
        edit = Add(SITE, change[row], positions=positions[row], when=When(steps=[0]))
        ran = denoise(model, sampling.select([int(example[row])]), [edit], [SITE], when=When(steps=[1]))
        by_hand = late.codes(ran[SITE][0, 0, 0, positions[row]])
        torch.testing.assert_close(codes[row, 1], by_hand, rtol=0, atol=1e-8)


def test_a_patch_is_a_place_and_its_neighbours(world):
    _, _, _, seen = world  # 2 pictures of 16 × 16 cells
    assert seen.columns == 16
    _, places = _places(seen, seen.codes[0][:, 0], Clamping(examples=6, cells=5), torch.Generator().manual_seed(0))
    for patch in seen.position[places].tolist():
        row, column = divmod(patch[0], 16)
        steps = sorted((abs(p // 16 - row), abs(p % 16 - column)) for p in patch)
        if 0 < row < 15 and 0 < column < 15:
            assert steps == [(0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]
    assert len({tuple(patch) for patch in places.tolist()}) == 6


def test_a_graph_over_steps(world):
    model, sampling, levels, seen = world
    graph = concept_graph(
        model, sampling, levels, quantile=0.9, shuffles=4, clamping=Clamping(examples=2, draws=4, cells=2)
    )
    assert graph.data.sizes == {"node": 10, "other": 10, "pair": 25}
    np.testing.assert_allclose(graph.data["frequency"][:5], (seen.codes[0] > 0).double().mean(0))
    measured = ~np.isnan(graph.table()["effect"].values)
    on = [(codes > 0).any(0).numpy() for codes in seen.codes]
    np.testing.assert_array_equal(measured, on[0][:, None] & on[1][None])
    graph.check(levels)


def test_levels_of_a_denoiser_have_a_step_and_come_in_order(world):
    model, _, (early, late), _ = world
    with pytest.raises(InterpError, match="at step 0\\) is not computed after 'late'"):
        check_order(model, [late, early])
    with pytest.raises(InterpError, match="a denoiser's levels have one"):
        check_order(model, [ConceptLevel("a", early.dictionary, [0]), late])
