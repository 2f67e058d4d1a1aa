"""The loss with reconstructions at a site, against hooks written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.concepts.scores.splice import SpliceResult, splice_pictures, splice_texts
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.topk import TopK
from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.noised import noised
from interp.interventions.one_step import OneStep
from interp.interventions.run import run
from interp.models.load import load
from interp.shapes.caption import full_caption
from interp.shapes.render import render
from interp.shapes.scene import sample_scenes

TEXT = ["The cat sat on the mat and looked at the old dog in the house of the two men and a bird."]
SITE = "L1.resid_post"


def whole(read, rank=None):
    """A dictionary that reconstructs a subspace exactly: every channel's positive and negative part is a latent."""
    basis = torch.eye(read.width, dtype=torch.float64)[:rank]
    made = TopK(read, 2 * len(basis), 2 * len(basis)).double()
    with torch.no_grad():
        made.atoms.copy_(torch.cat([basis, -basis]))
        made.encoder.copy_(made.atoms)
    return made


@pytest.fixture(scope="module")
def read(speaking):
    ids = speaking.tokenizer(TEXT[0]).input_ids
    x = run(speaking, torch.tensor([ids]), capture=[SITE])[SITE][0]
    return Standardisation.from_moments(Moments.of(x), [SITE], dtype=torch.float64)


def test_a_perfect_dictionary_recovers_all_and_the_loss_is_that_of_a_hook(speaking, read):
    part = whole(read, rank=12)
    found = splice_texts(speaking, {"whole": whole(read), "part": part}, TEXT, context=8, first=2)
    data = found.data
    np.testing.assert_allclose(data["loss"].sel(fill="whole"), data["loss"].sel(fill="unedited"), atol=1e-9)
    np.testing.assert_allclose(data["recovered"].sel(fill="whole"), 1, atol=1e-7)
    ids = torch.tensor([speaking.tokenizer(TEXT[0]).input_ids[8:16]])
    block = speaking.network.model.layers[1]
    for fill, make in {
        "unedited": lambda x: x, "zero": torch.zeros_like, "mean": lambda x: read.mean[0].expand_as(x), "part": part,
    }.items():  # fmt: skip

        def hook(_, __, out, make=make):
            x = (out[0] if isinstance(out, tuple) else out).clone()
            x[:, 2:] = make(x[:, 2:])
            return (x, *out[1:]) if isinstance(out, tuple) else x

        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            logits = speaking.network(ids).logits
        handle.remove()
        wanted = torch.nn.functional.cross_entropy(logits[0, 2:-1], ids[0, 3:])
        assert abs(float(data["loss"].sel(fill=fill)[1]) - float(wanted)) < 1e-9, fill


def test_pictures_against_the_network_itself():
    model = load("shapes")
    scenes = sample_scenes(12, seed=3)
    prompts, pictures, site = [full_caption(scene) for scene in scenes], render(scenes), "up.1.1.block_out"
    given = noised(model, pictures, 500, seed=2)
    step = OneStep(model, model.sampling(prompts, seeds=0), given.states, site)
    read = Standardisation.from_moments(Moments.of(step.values.flatten(0, 1)), [site])
    found = splice_pictures(
        model, {"whole": whole(read).float(), "part": whole(read, 4).float()}, prompts, pictures, 500, seed=2
    )
    data = found.data
    wanted = (step.prediction - given.target).square().flatten(1).mean(1)
    np.testing.assert_allclose(data["loss"].sel(fill="unedited"), wanted, atol=1e-6)
    assert abs(float(data["recovered"].sel(fill="whole", ablation="mean")) - 1) < 1e-3
    zero = (step(torch.zeros_like(step.values), torch.arange(12)) - given.target).square().flatten(1).mean(1)
    np.testing.assert_allclose(data["loss"].sel(fill="zero"), zero.detach(), rtol=1e-4)
    random = next(str(fill) for fill in data["fill"].values if str(fill).startswith("part: random"))
    assert float(data["recovered"].sel(fill=random, ablation="mean")) < 0.7
    assert float(data["recovered"].sel(fill="part", ablation="mean")) < 0.7
    with pytest.raises(ShapeError, match="96 wide"):
        splice_pictures(model, whole(Standardisation.identity(5, site)).float(), prompts, pictures, 500)


def test_it_is_saved_and_drawn(speaking, read, tmp_path):
    found = splice_texts(speaking, whole(read), TEXT, context=8)
    found.save(tmp_path / "it.nc")
    assert SpliceResult.load(tmp_path / "it.nc").data.identical(found.data)
    assert len(found.plot().data) == 2 and "recovered" in str(found)


def test_refusals(speaking, read):
    good = whole(read)
    with pytest.raises(InterpError, match="No dictionary"):
        splice_texts(speaking, {}, TEXT)
    with pytest.raises(InterpError, match="'zero' is the name"):
        splice_texts(speaking, {"zero": good}, TEXT)
    with pytest.raises(InterpError, match="different sites"):
        splice_texts(speaking, {"a": good, "b": whole(Standardisation.identity(24, "L0.resid_post"))}, TEXT)
    with pytest.raises(ShapeError, match="24 wide"):
        splice_texts(speaking, whole(Standardisation.identity(5, SITE)), TEXT)
    with pytest.raises(InterpError, match="no position is left"):
        splice_texts(speaking, good, TEXT, context=8, first=7)
    with pytest.raises(PairError, match="64 tokens"):
        splice_texts(speaking, good, TEXT)
    transcoder = TopK(read, 8, 2, write=Standardisation.identity(24, "L2.resid_post"))
    with pytest.raises(InterpError, match="reads and writes one site"):
        splice_texts(speaking, transcoder, TEXT)
