"""Effects of units: sweeps are plain runs, directions set what they say, all units of a site carry a colour."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models.denoisers import described

from interp.concepts import Directions, dissect, unit_effects
from interp.concepts.unit_effects import UnitEffectResult
from interp.errors import InterpError, PairError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Replace, When
from interp.models.guidance import Branch
from interp.models.load import load
from interp.models.site import Site
from interp.results import Result
from interp.shapes.scene import CELLS
from interp.tasks.image_metrics import JudgeLogProbability

SITE = Site("block_out", "up.1.0")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def found():
    model = load("shapes")
    dissected = dissect(model, SITE, n=60, steps=5, shuffles=1, when=When(steps=[2, 3], branch=Branch.COND))
    return model, dissected, unit_effects(model, dissected, "red", sizes=(2, 96), n=3, draws=1, seed=4)


def test_a_cell_is_a_plain_run(found):
    model, dissected, effects = found
    data = effects.data
    prompts = effects.provenance["prompts"]
    sampling = replace(model.sampling(prompts, seeds=0, steps=5), seeds=tuple(range(5_000_000, 5_000_003)))
    cells = [min((c for c in CELLS if c in prompt), key=prompt.index) for prompt in prompts]  # the first object's
    positions = []
    for cell in cells:
        y, x = divmod(CELLS.index(cell), 2)
        positions.append([(4 * y + i) * 8 + 4 * x + j for i in range(4) for j in range(4)])
    judge = JudgeLogProbability("colour", ["red"] * 3, cells)
    best = dissected.ranked("red")[:2]
    edits = [
        Replace(
            SITE,
            torch.tensor(dissected.data["mean"].sel(step=s).values[best]),
            positions=torch.tensor(positions),
            units=best,
            when=When(steps=[s]),
        )
        for s in (2, 3)
    ]
    for at, given in (("base", []), (dict(direction="ablated", set="best for red", size=2), edits)):
        expected = judge.values(denoise(model, sampling, given).images, torch.arange(3)).numpy()
        m = "colour_log_probability"
        value = data[f"{m}_base"].sel(direction="ablated") if at == "base" else data[m].sel(at)
        np.testing.assert_allclose(value, expected, atol=1e-4)


def test_every_order_of_all_units_does_the_same(found):
    data = found[2].data["colour_log_probability"].sel(size=96)
    for name in data["set"].values[1:]:
        np.testing.assert_allclose(data.sel(set=name), data.isel(set=0), atol=1e-4)


def test_a_result_is_saved_loaded_and_drawn(found, tmp_path):
    effects = found[2]
    effects.save(tmp_path / "effects.nc")
    again = Result.load(tmp_path / "effects.nc")
    assert isinstance(again, UnitEffectResult) and again.data.identical(effects.data)
    assert effects.plot().data and "random units" in effects.summary()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(concept="crimson"), PairError, "no 'crimson'"),
        (dict(concept="object"), PairError, "no 'object'"),
        (dict(other="square"), PairError, "no other colour"),
        (dict(other="red"), PairError, "no other colour"),
        (dict(sizes=(0,)), InterpError, "sizes from 1 to 96"),
        (dict(sizes=(97,)), InterpError, "sizes from 1 to 96"),
        (dict(n=1), InterpError, "n from 2"),
        (dict(draws=0), InterpError, "draws from 1"),
    ],
)
def test_what_is_refused(found, changes, error, message):
    model, dissected, _ = found
    with pytest.raises(error, match=message):
        unit_effects(model, dissected, **(dict(concept="red", n=2, sizes=(1,)) | changes))


def test_directions_that_are_not_orthogonal_get_exactly_their_values():
    model = described("sd")
    site = Site("block_out", "up.2.1")
    axes = torch.nn.functional.normalize(
        torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    units, values, when = Directions(axes), torch.tensor([0.7, -1.2, 3.0], dtype=torch.float64), When(steps=[1])
    edits = units.setting(site, [4, 0, 2], values, [3, 5], when)
    sampling = model.sampling("a red circle", steps=2, guidance=1.0, height=16, width=16)
    before, after = (denoise(model, sampling, edit, [site])[site][1, 0, 0] for edit in ((), edits))
    set_here = units.activations(after[[3, 5]])[:, [4, 0, 2]]
    torch.testing.assert_close(set_here, values.expand(2, 3), rtol=0, atol=1e-10)
    away = after - before
    assert (away[[0, 1, 2, 4]] == 0).all()  # other cells
    outside = torch.linalg.svd(axes[[4, 0, 2]]).Vh[3:]
    assert (away @ outside.T).abs().max() < 1e-10  # and what the units do not speak of
