"""Concepts: what was planted is found, strengths mean what they say, and every form is the edit that it claims to be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from interp.errors import InterpError, ShapeError
from interp.interventions.edits import Add, Gate, Modulate, Replace, Swap, When
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.steering import Measured, concept, concept_of_latent, family, one_against_rest, project_out, random_concept
from interp.steering.concepts import METHODS

WIDTH, SITE, OTHER = 12, Site("resid_post", 1), Site("resid_post", 0)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DIRECTION = torch.nn.functional.normalize(drawn(WIDTH, seed=99), dim=0)


def measured(n=40, places=3, shift=0.0, steps=1, seed=0, site=SITE):
    """Noise around a mean, moved along the planted direction, alike in all places of an example."""
    states = 2 + drawn(steps, n * places, WIDTH, seed=seed) + shift * DIRECTION
    return Measured(site, states, torch.arange(n).repeat_interleave(places), n)


def a_concept(steps=1, method="mean", **how):
    return concept("planted", measured(shift=6.0, steps=steps, **how), measured(seed=1, steps=steps, **how), method)


def changed(edit, x):
    """A state after an edit, said by hand."""
    if isinstance(edit, Add):
        return x + edit.scale * edit.value
    if isinstance(edit, Swap):
        source = edit.source if isinstance(edit.source, torch.Tensor) else torch.full_like(x, edit.source)
        return x + edit.basis @ (edit.basis.T @ (source - x))
    assert isinstance(edit, Modulate)
    out = x.clone()
    for i in range(len(edit.latents)):
        z = x @ edit.latents.read[i] + (0 if edit.latents.bias is None else edit.latents.bias[i])
        a = z if edit.latents.threshold is None or z > edit.latents.threshold[i] else z * 0
        gain, offset = (v if isinstance(v, float) else v[i] for v in (edit.gain, edit.offset))
        out = out + (gain * a + offset - a) * edit.latents.write[i]
    return out


@pytest.mark.parametrize("method", METHODS)
def test_the_planted_direction_is_found_and_a_shuffled_one_is_not(method):
    found = a_concept(method=method)
    assert float(found.directions[0] @ DIRECTION) > 0.9
    both = measured(shift=6.0).joined(measured(seed=1))
    order = torch.randperm(both.n, generator=torch.Generator().manual_seed(3)).tolist()
    mixed = concept("mixed", both.of(order[:40]), both.of(order[40:]), method)
    assert abs(float(mixed.high - mixed.low)) < 0.5 * float(found.high - found.low)


def test_strengths_are_in_the_units_that_they_name():
    found, x = a_concept(), drawn(WIDTH, seed=7)
    d = found.directions[0]
    states = torch.cat([measured(shift=6.0).states, measured(seed=1).states], 1)[0]
    (norm,), (std,), (gap,) = (found.add(0.5, unit) for unit in ("norm", "std", "gap"))
    assert float((changed(norm, x) - x).norm()) == pytest.approx(0.5 * float(states.norm(dim=-1).mean()))
    assert float((changed(std, x) - x).norm()) == pytest.approx(0.5 * float((states @ d).std()))
    high, low = (m.pooled()[0].mean(0) @ d for m in (measured(shift=6.0), measured(seed=1)))
    torch.testing.assert_close(changed(gap, x), x + 0.5 * (high - low) * d)


def test_clamping_sets_the_activation_whatever_it_was():
    found = a_concept()
    d = found.directions[0]
    for at, unit, level in (
        (1.0, "gap", found.high),
        (0.0, "gap", found.low),
        (2.0, "std", found.mean + 2 * found.std),
    ):
        (edit,) = found.clamp(at, unit)
        for seed in range(3):
            x = 5 * drawn(WIDTH, seed=seed)
            new = changed(edit, x)
            assert float(new @ d) == pytest.approx(float(level))
            torch.testing.assert_close(new - d * (new @ d), x - d * (x @ d))


def test_multiplying_above_a_threshold_leaves_what_lies_below():
    found = a_concept()
    (edit,) = found.multiply(3.0, above=0.5, unit="gap")
    d, middle = found.directions[0], float(found.low + 0.5 * (found.high - found.low))
    for activation in (middle - 0.1, middle + 0.1):
        x = activation * d
        expected = 3 * x if activation > middle else x
        torch.testing.assert_close(changed(edit, x), expected)


def test_swapping_writes_the_other_concept_as_strongly():
    one = a_concept()
    other = concept("other", measured(shift=-6.0, seed=5), measured(seed=6), "pca")
    (edit,) = one.swap(other)
    x = drawn(WIDTH, seed=8)
    a = float(x @ one.directions[0])
    torch.testing.assert_close(changed(edit, x), x - a * one.directions[0] + a * other.directions[0])
    with pytest.raises(InterpError, match="one place and the same steps"):
        one.swap(concept("there", measured(site=OTHER, shift=6.0), measured(site=OTHER, seed=1)))


def test_a_patch_is_replaced_where_the_concept_is():
    found = a_concept()
    (edit,) = found.replace_where(0.0, above=0.5)
    assert isinstance(edit, Replace) and isinstance(edit.gate, Gate)
    assert edit.gate.threshold == pytest.approx(float(found.low + 0.5 * (found.high - found.low)))
    torch.testing.assert_close(edit.gate.read, found.directions[0])
    with pytest.raises(InterpError, match="gates by the concept itself"):
        found.replace_where(0.0, above=0.5, gate=edit.gate)


def test_projecting_out_sets_every_coordinate_also_of_slanting_directions():
    one, two = a_concept(), one_against_rest(measured(seed=3), ["a"] * 15 + ["b"] * 25, "a")
    x = 3 * drawn(WIDTH, seed=4)
    (edit,) = project_out([one, two])
    new = changed(edit, x)
    for found in (one, two):
        assert float(new @ found.directions[0]) == pytest.approx(float(found.low))
    (zero,) = project_out([one, two], to="zero")
    assert max(abs(float(changed(zero, x) @ c.directions[0])) for c in (one, two)) < 1e-9
    for concepts, to, message in (
        ([one, one], "low", "depend linearly"),
        ([], "low", "No concept"),
        ([one], "hig", "low"),
    ):
        with pytest.raises(InterpError, match=message):
            project_out(concepts, to=to)


def test_steps_have_edits_of_their_own():
    found = a_concept(steps=4)
    assert len(found.latents) == 4
    edits = found.add(1.0, when=When(steps=[1, 3], branch=Branch.COND), positions=[2])
    assert [edit.when for edit in edits] == [When(steps=(k,), branch=Branch.COND) for k in (1, 3)]
    assert all(edit.positions == [2] for edit in edits)
    assert not torch.equal(edits[0].value, edits[1].value)
    with pytest.raises(InterpError, match="measured at steps 0 to 3, not at"):
        found.add(1.0, when=When(steps=[4]))
    with pytest.raises(InterpError, match="say `steps`"):
        found.add(1.0, when=When(timesteps=(0.0, 500.0)))
    with pytest.raises(InterpError, match="No steps"):
        found.add(1.0, when=When(steps=[]))
    with pytest.raises(InterpError, match="takes no 'position'.*positions"):
        found.add(1.0, position=3)
    with pytest.raises(InterpError, match="no unit 'norms'"):
        found.add(1.0, "norms")


@dataclass(frozen=True)
class Unit:
    read: torch.Tensor
    write: torch.Tensor
    bias: float = -1.0
    threshold: float = 0.5


def test_a_dictionary_unit_is_a_concept():
    unit = Unit(3 * DIRECTION, 2 * drawn(WIDTH, seed=2))
    states = measured(shift=6.0).joined(measured(seed=1))
    found = concept_of_latent("unit 7", unit, states, range(40), range(40, 80))
    z = states.states[0] @ unit.read - 1.0
    codes = torch.where(z > 0.5, z, 0)
    assert float(found.mean) == pytest.approx(float(codes.mean())) and float(found.std) == pytest.approx(
        float(codes.std())
    )
    assert float(found.high) == pytest.approx(float(codes[:120].mean())) and float(found.high) > float(found.low)
    x = drawn(WIDTH, seed=5) + 3 * DIRECTION
    a = float(x @ unit.read - 1.0)
    (clamped,), (tripled,), (added,) = found.clamp(1.0), found.multiply(3.0), found.add(0.1, "norm")
    torch.testing.assert_close(changed(clamped, x), x + (float(found.high) - a) * unit.write)
    torch.testing.assert_close(changed(tripled, x), x + 2 * a * unit.write)
    assert torch.equal(changed(tripled, -x), -x)  # silent there
    moved = changed(added, x) - x
    assert float(moved.norm()) == pytest.approx(0.1 * float(states.norm()))
    unlabelled = concept_of_latent("unit 7", unit, states)
    with pytest.raises(InterpError, match="has no gap"):
        unlabelled.add(1.0, "gap")
    with pytest.raises(ShapeError, match="has width 12"):
        concept_of_latent("narrow", Unit(torch.ones(3), torch.ones(3)), states)


def test_a_dictionary_unit_stays_silent_below_its_threshold_whatever_level_is_asked_for():
    states = measured(shift=6.0).joined(measured(seed=1))
    found = concept_of_latent("unit 7", Unit(DIRECTION, DIRECTION, 0.0, 9.0), states, range(40), range(40, 80))
    (low,), (high,) = found.multiply(3.0, above=0.0, unit="norm"), found.multiply(3.0, above=12.0, unit="norm")
    assert float(low.latents.threshold) == 9.0 < 12.0 < float(high.latents.threshold)
    shut, open_ = 8.9 * DIRECTION, 9.1 * DIRECTION
    assert torch.equal(changed(low, shut), shut)
    torch.testing.assert_close(changed(low, open_), 3 * open_)
    assert found.replace_where(0.0, above=0.0, unit="norm")[0].gate.threshold == 9.0
    with pytest.raises(InterpError, match="no coordinate|not the coordinate"):
        project_out([found])
    with pytest.raises(InterpError, match="there is no 80"):
        concept_of_latent("unit 7", Unit(DIRECTION, DIRECTION), states, [80], [0])


def test_what_was_measured_at_some_timesteps_says_so_in_its_edits():
    positive, negative = (
        replace(measured(shift=shift, steps=2, seed=seed), timesteps=(500.0, 0.0))
        for shift, seed in ((6.0, 0), (0.0, 1))
    )
    found = concept("planted", positive, negative)
    expected = [When(steps=(k,), timesteps=(t, t)) for k, t in enumerate((500.0, 0.0))]
    assert [edit.when for edit in found.add(1.0)] == expected
    assert [edit.when for edit in found.clamp(1.0, when=When(steps=[1]))] == expected[1:]
    assert [edit.when for edit in project_out([found])] == expected
    assert [edit.when for edit in family(positive, LABELS).set("blue")] == expected
    single = replace(measured(shift=6.0), timesteps=(500.0,))
    (edit,) = concept("one", single, replace(measured(seed=1), timesteps=(500.0,))).add(1.0)
    assert edit.when == When(steps=(0,), timesteps=(500.0, 500.0))
    elsewhere = concept("other", *(replace(m, timesteps=(750.0, 500.0)) for m in (positive, negative)))
    with pytest.raises(InterpError, match="same steps"):
        found.swap(elsewhere)
    with pytest.raises(InterpError, match="same steps"):
        project_out([found, elsewhere])
    with pytest.raises(ShapeError, match=r"500 to 0.*750 to 500"):
        positive.joined(replace(negative, timesteps=(750.0, 500.0)))


def test_a_random_direction_moves_states_as_far():
    found = a_concept(steps=2)
    control = random_concept(found, seed=4)
    for unit in ("norm", "std", "gap"):
        for ours, theirs in zip(found.add(0.7, unit), control.add(0.7, unit), strict=True):
            assert float(theirs.value.norm() * theirs.scale) == pytest.approx(float(ours.value.norm() * ours.scale))
    assert abs(float(control.directions[0] @ found.directions[0])) < 0.9
    # Steps that agree still do, so that pushes over a denoising add up alike.
    torch.testing.assert_close(control.directions @ control.directions.T, found.directions @ found.directions.T)
    for seed in range(3):
        x = 2 + drawn(WIDTH, seed=seed) + 3 * seed * DIRECTION
        for form in (lambda c: c.clamp(0.5), lambda c: c.clamp(1.0, "std"), lambda c: c.multiply(3.0, above=0.0)):
            ours, theirs = (float((changed(form(c)[0], x) - x).norm()) for c in (found, random_concept(found, seed)))
            assert theirs == pytest.approx(ours)
    for form in (lambda: control.replace_where(0.0, above=0.5), lambda: project_out([control])):
        with pytest.raises(InterpError, match="random direction 4"):
            form()
    assert not torch.equal(control.directions, random_concept(found, seed=5).directions)


# --- families -----------------------------------------------------------------------------------------------------

LABELS = ["red"] * 14 + ["blue"] * 13 + ["green"] * 13
POINTS = {"red": 4 * drawn(WIDTH, seed=20), "blue": 4 * drawn(WIDTH, seed=21), "green": 4 * drawn(WIDTH, seed=22)}


def colours(steps=1):
    base = measured(steps=steps, places=2)
    shift = torch.stack([POINTS[LABELS[i]] for i in base.example.tolist()])
    return replace(base, states=base.states + shift)


def test_a_value_is_set_and_the_rest_of_the_state_stays():
    found = family(colours(), LABELS)
    x = drawn(WIDTH, seed=9) + POINTS["red"]
    basis, mean = found.basis[0], found.means[0, found.values.index("blue")]
    assert basis.shape == (WIDTH, 2)
    (edit,) = found.set("blue")
    new = changed(edit, x)
    torch.testing.assert_close(new @ basis, mean @ basis)
    torch.testing.assert_close(new - basis @ (basis.T @ new), x - basis @ (basis.T @ x))
    (half,) = found.set("blue", 0.5)
    torch.testing.assert_close(changed(half, x), (x + new) / 2)
    (nothing,) = found.set("blue", 0.0)
    torch.testing.assert_close(changed(nothing, x), x, rtol=0, atol=1e-12)
    with pytest.raises(InterpError, match="no 'blu'.*'blue'"):
        found.set("blu")


def test_the_control_of_a_family_is_as_large_and_lies_elsewhere():
    found = family(colours(2), LABELS)
    control = found.at_random(1)
    for step in range(2):
        torch.testing.assert_close(
            torch.cdist(control.means[step], control.means[step]), torch.cdist(found.means[step], found.means[step])
        )
        shared = (found.basis[step].T @ control.basis[step]).norm() ** 2 / 2
        assert float(shared) < 0.8
        apart = control.means[step] - control.means[step].mean(0)
        torch.testing.assert_close(apart @ control.basis[step] @ control.basis[step].T, apart)


def test_a_basis_from_elsewhere_is_taken_or_refused():
    found = family(colours(2), LABELS)
    basis = torch.linalg.qr(drawn(WIDTH, 3)).Q
    assert found.within(basis).basis.shape == (2, WIDTH, 3)
    with pytest.raises(ShapeError, match="not orthonormal"):
        found.within(2 * basis)
    with pytest.raises(ShapeError, match=r"\[12, rank\], or 2 of these"):
        found.within(basis[:5])
    with pytest.raises(ShapeError, match="labels for 40 examples"):
        family(colours(), LABELS[1:])
    with pytest.raises(InterpError, match="both are needed"):
        one_against_rest(colours(), LABELS, "pink")
