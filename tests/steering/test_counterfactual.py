"""What another prompt would change, in the same state: measured as donors are, and fitted where it is affine."""

from __future__ import annotations

import pytest
import torch
from models.denoisers import described

from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Replace, UnderPrompt, When
from interp.interventions.run import run
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.steering import Measured, counterfactual_map, paired_states

SITE, WIDTH = Site("cross_attn_out", "up.1.0"), 8


def test_pairs_are_what_a_donor_has_in_the_same_state():
    model = described("sd")
    prompts, others = ["a red circle", "two green stars"], ["a blue circle", "two grey stars"]
    sampling = model.sampling(prompts, steps=2, height=16, width=24, guidance=3.0)
    site = model.sites("cross_attn_out")[0]
    base, (changed, same) = paired_states(model, sampling, [others, prompts], [site])
    for step in range(2):
        donor = Replace(site, UnderPrompt(tuple(others)), when=When(steps=[step], branch=Branch.COND))
        kept = denoise(model, sampling, [donor], [site], when=When(steps=[step], branch=Branch.COND))
        torch.testing.assert_close(changed[site].states[step], kept[site][0, 0].flatten(0, 1), rtol=0, atol=1e-9)
    torch.testing.assert_close(same[site].states, base[site].states, rtol=0, atol=1e-9)
    assert (changed[site].states - base[site].states).abs().max() > 1e-3
    with pytest.raises(PairError, match="1 other prompts for 2 rows"):
        paired_states(model, sampling, [["a cat"]], [site])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(states):
    return Measured(SITE, states, torch.arange(states.shape[1]), states.shape[1])


def test_a_planted_map_is_found_and_noise_is_none():
    x = 2 + drawn(2, 4000, WIDTH)
    read, write, shift = drawn(2, WIDTH, seed=1), drawn(2, WIDTH, seed=2), drawn(WIDTH, seed=3)
    wanted = x + (x @ read.T) @ write + shift
    found = counterfactual_map(measured(x), measured(wanted), rank=2, ridge=1e-9)
    one = found.latents[1]
    torch.testing.assert_close(x[1] + (x[1] @ one.read.T + one.bias) @ one.write, wanted[1], rtol=0, atol=1e-6)
    assert (found.explained > 1 - 1e-9).all()
    less = counterfactual_map(measured(x), measured(wanted), rank=1, ridge=1e-9)
    assert (less.explained < 0.99).all() and (less.explained > 0.5).all()
    noise = counterfactual_map(measured(x), measured(x + drawn(2, 4000, WIDTH, seed=9)), rank=2)
    assert (noise.explained < 0.05).all()


def test_the_control_of_a_map_reads_the_same_and_writes_as_much():
    x = 2 + drawn(2, 400, WIDTH)
    wanted = x + (x @ drawn(WIDTH, 2, seed=1)) @ drawn(2, WIDTH, seed=2) + 1
    found = counterfactual_map(measured(x), measured(wanted), rank=2)
    control = found.at_random(3)
    for states, ours, theirs in zip(x, found.latents, control.latents, strict=True):
        change, other = (states @ one.read.T @ one.write + one.bias @ one.write for one in (ours, theirs))
        torch.testing.assert_close(other.norm(dim=-1), change.norm(dim=-1))
        assert (torch.nn.functional.cosine_similarity(other, change).mean()).abs() < 0.9
    # Steps that agree with one another still do.
    gram = [one.latents[0].write @ one.latents[1].write.T for one in (found, control)]
    torch.testing.assert_close(*gram)


def test_pairs_of_equal_prompts_are_equal_where_there_is_no_second_branch():
    model = described("flux")
    sampling = model.sampling("a red circle", steps=2, height=16, width=24)
    site = model.sites("block_out")[0]
    base, (same,) = paired_states(model, sampling, [list(sampling.prompts)], [site])
    torch.testing.assert_close(same[site].states, base[site].states, rtol=0, atol=1e-9)
    assert same[site].timesteps == base[site].timesteps is not None


def test_rank_zero_is_the_mean_difference():
    x, wanted = drawn(1, 50, WIDTH), drawn(1, 50, WIDTH, seed=1)
    found = counterfactual_map(measured(x), measured(wanted), rank=0)
    (one,) = found.latents
    assert len(one) == 1 and (one.read == 0).all() and one.bias.tolist() == [1.0]
    torch.testing.assert_close(one.write[0], (wanted - x)[0].mean(0))


def test_the_edits_apply_the_map_by_the_dose():
    model = described("sd")
    site = model.sites("cross_attn_out")[0]
    width = model.width_of(site)
    sampling = model.sampling("a red circle", steps=2, height=16, width=24, guidance=3.0)
    kept = run(model, sampling, (), [site])[site][:, 1, 0]  # [step, pos, width], conditional
    x = torch.cat([kept, drawn(2, 60, width)], 1)
    wanted = x + (x @ drawn(width, 3, seed=4)) @ drawn(3, width, seed=5) + 1
    found = counterfactual_map(
        Measured(site, x, torch.arange(x.shape[1]), x.shape[1]),
        Measured(site, wanted, torch.arange(x.shape[1]), x.shape[1]),
        rank=width,
        ridge=1e-10,
    )
    for strength in (0.0, 0.5, 1.0):
        edits = found.apply(strength, when=When(steps=[0], branch=Branch.COND))
        assert len(edits) == 1
        new = run(model, sampling, edits, [site], when=When(steps=[0], branch=Branch.COND))[site][0, 0, 0]
        expected = (1 - strength) * x[0, : len(new)] + strength * wanted[0, : len(new)]
        torch.testing.assert_close(new, expected, rtol=0, atol=1e-5)


def test_refusals():
    x = measured(drawn(1, 20, WIDTH))
    with pytest.raises(ShapeError, match=r"\[1, 20, 8\]"):
        counterfactual_map(x, measured(drawn(1, 19, WIDTH)))
    with pytest.raises(InterpError, match="a rank of 0 to 8"):
        counterfactual_map(x, x, rank=9)
    with pytest.raises(InterpError, match="a ridge above 0"):
        counterfactual_map(x, x, ridge=0.0)
