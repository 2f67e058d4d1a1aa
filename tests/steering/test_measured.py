"""States that are measured are those of plain runs, at the places that were asked for; distances tell them from others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.denoisers import described

from interp.errors import InterpError, ShapeError
from interp.interventions.denoise import denoise
from interp.interventions.run import run
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.steering import Measured, concept, language_states, manifold, picture_states

TEXTS = ["The cat sat down", "Rain", "A dog barks at the moon"]
SITE = Site("resid_post", 1)


def test_states_of_texts_leave_out_the_first_token(speaking):
    texts = [TEXTS[0], TEXTS[2]]
    (found,) = language_states(speaking, texts, [SITE])
    rows = [run(speaking, text, (), [SITE])[SITE][0] for text in texts]
    torch.testing.assert_close(found.states[0], torch.cat([row[1:] for row in rows]), rtol=0, atol=1e-12)
    assert found.example.tolist() == [i for i, row in enumerate(rows) for _ in range(len(row) - 1)]
    torch.testing.assert_close(found.pooled()[0], torch.stack([row[1:].mean(0) for row in rows]), rtol=0, atol=1e-12)
    (last,) = language_states(speaking, texts, [SITE], tokens="last")
    torch.testing.assert_close(last.states[0], torch.stack([row[-1] for row in rows]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("texts", "sites", "how", "message"),
    [
        ([], [SITE], {}, "No texts"),
        (TEXTS, [SITE], {}, "Text 1, 'Rain', has one token"),
        ("hello world", [SITE], {}, "letter by letter"),
        (TEXTS, [Site("z", 0)], {}, "has heads or keys"),
    ],
)
def test_refusals(speaking, texts, sites, how, message):
    with pytest.raises(InterpError, match=message):
        language_states(speaking, texts, sites, **how)


def test_states_of_pictures_are_those_of_the_run():
    model = described("sd")
    sampling = model.sampling(["a red circle", "two green stars"], steps=2, height=16, width=24, guidance=3.0)
    site = model.sites("cross_attn_out")[0]
    kept = denoise(model, sampling, (), [site])
    whole, some = (
        picture_states(model, sampling, [site], positions=at)[0]
        for at in (None, {site: torch.tensor([[0, 3], [2, 1]])})
    )
    x = kept[site][:, kept.branches.index(Branch.COND)]
    torch.testing.assert_close(whole.states, x.flatten(1, 2), rtol=0, atol=1e-9)
    torch.testing.assert_close(some.states[:, 0], x[:, 0, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(some.states[:, 2], x[:, 1, 2], rtol=0, atol=1e-9)
    assert some.example.tolist() == [0, 0, 1, 1] and some.n == 2
    assert whole.timesteps == kept.timesteps == some.of([1]).timesteps
    edits = concept("planted", some.of([0]), some.of([1])).add(0.1)
    assert not torch.equal(denoise(model, sampling, edits).images, denoise(model, sampling).images)
    finer = model.sampling(["a red circle", "two green stars"], steps=4, height=16, width=24, guidance=3.0)
    with pytest.raises(InterpError, match="in no pass"):
        denoise(model, finer, edits)


def gaussian(n=400, width=6, seed=0, scale=None):
    x = torch.randn(1, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Measured(SITE, x * (torch.linspace(0.5, 3, width) if scale is None else scale), torch.arange(n), n)


def test_typical_states_lie_at_distance_one_and_shifted_ones_beyond():
    fitted = manifold(gaussian())
    fresh = gaussian(seed=1)
    assert float(fitted.distance(fresh.states).median()) == pytest.approx(1, abs=0.1)
    thin, thick = (fresh.states.clone() for _ in range(2))
    thin[..., 0] += 5.0  # ten standard deviations
    thick[..., -1] += 1.0  # a third of one
    assert float(fitted.distance(thin).median()) > 3 > 1.2 > float(fitted.distance(thick).median())
    by_hand = (fresh.states[0, 0] - fitted.mean[0]) @ fitted.precision[0] @ (fresh.states[0, 0] - fitted.mean[0])
    assert float(fitted.distance(fresh.states)[0, 0]) == pytest.approx(float(by_hand.sqrt() / fitted.typical[0]))
    with pytest.raises(InterpError, match="at least 4"):
        manifold(gaussian(n=3))


def test_the_order_of_examples_is_no_matter_to_a_manifold():
    """Positive examples first, negative ones behind: as far from typical on either side."""
    shift = torch.zeros(6, dtype=torch.float64)
    shift[0] = 4.0
    positive, negative = gaussian(), gaussian(seed=1)
    both = replace(positive, states=positive.states + shift).joined(negative)
    fitted, fresh = manifold(both), gaussian(seed=2).states
    plus, minus = (float(fitted.distance(fresh + way * shift).median()) for way in (1, 0))
    assert plus == pytest.approx(minus, rel=0.05)
    with pytest.raises(ShapeError, match="of 1 steps and width 6"):
        fitted.distance(fresh[..., :5])


def test_examples_are_chosen_and_joined():
    one = gaussian(n=10)
    assert one.of([3, 1]).states.shape[1] == 2 and sorted(one.of([3, 1]).example.tolist()) == [0, 1]
    torch.testing.assert_close(one.of([3]).states[0, 0], one.states[0, 3])
    for examples, message in (
        ([], "No examples"),
        ([10], "there is no 10"),
        ([-1], "there is no -1"),
        ([2, 2], "twice"),
    ):
        with pytest.raises(InterpError, match=message):
            one.of(examples)
    assert one.joined(one).n == 20 and one.joined(one).example.max() == 19
    with pytest.raises(ShapeError, match="do not belong together"):
        one.joined(replace(one, site=Site("resid_post", 0)))
