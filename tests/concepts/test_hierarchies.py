"""Hierarchies of concepts: laws that are described are the ones sampled, and edges are where they are said to be."""

import pytest
import torch

from interp.concepts.hierarchies import Sizes, latent_hierarchy, selection_hierarchy
from interp.errors import ShapeError

BOTH = pytest.mark.parametrize("make", [latent_hierarchy, selection_hierarchy])
EITHER = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])


def explained(children, parents):
    """R² of each child by the parents, with products of two of them, least squares; of binary ones some are the same."""
    products = torch.stack([parents[:, i] * parents[:, j] for i in range(parents.shape[1]) for j in range(i + 1)], 1)
    design = torch.cat([parents, products, parents.abs(), torch.ones(len(parents), 1)], 1).double()
    left = (
        children.double() - design @ torch.linalg.lstsq(design, children.double(), rcond=1e-5, driver="gelsd").solution
    )
    return 1 - left.square().mean(0) / children.double().var(0)


@BOTH
@EITHER
def test_children_are_explained_by_their_parents_and_by_nobody_else(make, discrete):
    world = make(1500, discrete=discrete, sizes=Sizes(18, 6, 2))
    for children, parents, edges in (
        (world.observed, world.low, world.low_edges),
        (world.low, world.high, world.high_edges),
    ):
        for child, own in zip(children.T, edges, strict=True):
            alone = explained(child[:, None], parents[:, own])
            assert float(alone) > 0.7
            assert float(explained(child[:, None], parents) - alone) < 0.03
            for one in own.nonzero():  # and each of them counts
                others = own.clone()
                others[one] = False
                if others.any():
                    assert float(alone - explained(child[:, None], parents[:, others])) > 0.02


@BOTH
@EITHER
def test_every_concept_has_two_children_of_its_own(make, discrete):
    world = make(50, discrete=discrete)
    for edges in (world.low_edges, world.high_edges):
        assert (edges & (edges.sum(1, keepdim=True) == 1)).sum(0).min() >= 2
        assert edges.any(1).all()


@BOTH
def test_dense_is_dense_and_columns_are_standard(make):
    world = make(300, dense=True)
    assert world.low_edges.all()
    for x in (world.observed, world.low, world.high):
        torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(x.square().mean(0), torch.ones(x.shape[1]), rtol=0, atol=1e-4)


def test_selection_is_what_makes_parts_depend_on_each_other():
    """Parts are uniform and independent as proposed; kept are those that agree with their whole, the more the nearer."""
    seen = []
    for agreement in (0.5, 0.3):
        world = selection_hierarchy(4000, agreement=agreement, seed=3)
        together = world.high_edges.float() @ world.high_edges.float().T > 0
        together.fill_diagonal_(True)
        correlation = torch.corrcoef(world.low.T).abs()
        assert correlation[~together].max() < 0.08
        seen.append(float(correlation[together].min()))
    assert 0.6 < seen[0] < seen[1] < 0.99


def test_compositions_are_those_that_plain_rejection_keeps():
    """The same law, drawn one by one: pairs of parts, and how often they are admitted."""
    parts = 3**0.5 * (2 * torch.rand(40_000, 3, generator=torch.Generator().manual_seed(1)) - 1)
    kept = parts[((parts - parts.mean(1, keepdim=True)) ** 2).mean(1) < 0.5**2]
    world = selection_hierarchy(4000, sizes=Sizes(18, 6, 2), seed=0)
    own = world.low[:, world.high_edges[:, 0]]
    found = torch.corrcoef(own.T).abs()
    torch.testing.assert_close(found, torch.corrcoef(kept.T).abs(), rtol=0, atol=0.04)
    torch.testing.assert_close(
        own.abs().quantile(0.9, dim=0), (kept / kept.std(0)).abs().quantile(0.9, dim=0), rtol=0, atol=0.06
    )


def test_discrete_parts_are_mostly_of_one_mind():
    world = selection_hierarchy(4000, discrete=True)
    for own in world.high_edges.T:
        parts = world.low[:, own].sign()
        signed = parts * parts[:, :1]  # against the first part, so signs of parts show as columns of one sign
        agrees = (signed * signed.mean(0).sign() > 0).all(1).float().mean()
        assert 0.7 < float(agrees) < 1


def test_other_seeds_give_other_rows():
    assert torch.equal(latent_hierarchy(20, seed=1).observed, latent_hierarchy(20, seed=1).observed)
    assert not torch.equal(latent_hierarchy(20, seed=1).observed, latent_hierarchy(20, seed=2).observed)


@pytest.mark.parametrize(
    ("changes", "message"), [(dict(rows=1), "at least 2"), (dict(sizes=Sizes(20, 12, 3)), "20 children of 12 concepts")]
)
def test_what_is_refused(changes, message):
    with pytest.raises(ShapeError, match=message):
        latent_hierarchy(**(dict(rows=100) | changes))


def test_compositions_that_cannot_be_are_refused():
    with pytest.raises(ShapeError, match="above 0"):
        selection_hierarchy(100, agreement=0.0)
