"""A latent alone is the latent among the others."""

from __future__ import annotations

import pytest
import torch
from dictionaries.kinds import LATENTS, MAKERS

from interp.dictionaries import BatchTopK, JumpReLU, Standardisation
from interp.errors import InterpError, ShapeError
from interp.interventions.edits import Latents, Modulate
from interp.interventions.run import run
from interp.models.site import Site


def random_weights(dictionary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in dictionary.named_parameters():
            if name != "atoms":
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return dictionary


def rows(n=200, width=24, seed=3):
    return 2 + 3 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def standard(n_bins=1, width=24):
    generator = torch.Generator().manual_seed(5)
    mean, scale = torch.randn(n_bins, width, generator=generator), 1 + torch.rand(n_bins, 1, generator=generator)
    steps = None if n_bins == 1 else [[0], [1, 2]]
    return Standardisation(mean, scale, ["L1.resid_post"], [width], steps)


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka", "jumprelu"])
@pytest.mark.parametrize("conditioned", [False, True])
def test_its_code_and_what_it_adds_are_those_of_the_dictionary(kind, conditioned):
    read = standard(2 if conditioned else 1)
    dictionary = random_weights(MAKERS[kind](read, conditioned=conditioned))
    x, bins = rows(), torch.arange(200) % 2 if conditioned else None
    if kind != "jumprelu":
        dictionary.calibrate(read.apply_to(x, bins), bins)
    codes = dictionary.encode(x, bins).dense().detach()
    assert (codes > 0).any(0).sum() > LATENTS / 2
    for bin_ in range(2 if conditioned else 1):
        own = torch.ones(200, dtype=torch.bool) if bins is None else bins == bin_
        for latent in range(LATENTS):
            unit = dictionary.unit(latent, bin_)
            z = x @ unit.read + unit.bias
            near = (z - unit.threshold).abs() < 1e-4  # where rounding decides
            alone = torch.where(z > unit.threshold, z, 0)
            keep = own & ~near
            torch.testing.assert_close(alone[keep], codes[keep, latent], rtol=0, atol=2e-5)
            assert torch.equal(unit.write, dictionary.directions([latent], bin_)[0])


def test_an_edit_of_the_waist_silences_it(speaking):
    site, prompt = Site("resid_post", 1), "The cat sat on a mat"
    before = run(speaking, prompt, (), [site])[site]
    read = Standardisation(before.mean((0, 1))[None].float(), before.std().view(1, 1).float(), [str(site)], [24])
    dictionary = random_weights(JumpReLU(read, 40))
    codes = dictionary.encode(before.float()).dense().detach()
    latent = int((codes > 0).sum(0).argmax())
    unit = dictionary.unit(latent)
    alone = Latents(unit.read[None].double(), unit.write[None].double(), torch.tensor([unit.bias]).double(),
                    torch.tensor([unit.threshold]).double())  # fmt: skip
    after = run(speaking, prompt, [Modulate(site, alone, 0.0)], [site])[site]
    removed = (before - after)[0]
    assert (codes[:, latent] > 0).sum() > 1
    torch.testing.assert_close(removed.float(), codes[:, latent, None] * unit.write, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["topk", "gated", "matching_pursuit"])
def test_kinds_whose_latents_are_not_on_by_themselves(kind):
    with pytest.raises(InterpError, match=f"latent of {kind} is on does not follow"):
        MAKERS[kind](standard()).unit(3)


def test_refusals():
    dictionary = BatchTopK(standard(), 40, 4)
    with pytest.raises(InterpError, match="no threshold yet"):
        dictionary.unit(0)
    with pytest.raises(ShapeError, match="no latent 40"):
        JumpReLU(standard(), 40).unit(40)
    with pytest.raises(ShapeError, match="no step bin 1"):
        JumpReLU(standard(), 40).unit(0, bin_=1)
