"""Networks on vectors as places for alignments, and IIA against the capacity of maps with its control."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from interp.alignment.capacity import Capacity, Trial, capacity
from interp.alignment.continuation import FunctionContinuation
from interp.alignment.fit import Cells, Training, answers, fit
from interp.alignment.maps import LowRank, Subspace
from interp.alignment.revnet import RevNet
from interp.alignment.toy import MlpContinuation, VectorMlp, trained_mlp
from interp.errors import InterpError, PairError, ShapeError
from interp.results import Result
from interp.tasks.causal_models.equality import VectorInterchange, vector_interchange


def test_states_and_outputs_are_those_of_the_layers_written_out() -> None:
    networks, x = VectorMlp(16, seeds=(3, 4)), torch.rand(5, 16) - 0.5
    for n in range(2):
        h, states = x, networks.states(x)[n]
        for i in range(3):
            h = torch.clamp(h @ networks.weights[i][n].mT + networks.biases[i][n], min=0)
            torch.testing.assert_close(states[i], h)
            torch.testing.assert_close(networks.outputs(n, i + 1, states[i]), networks(x)[n])
        torch.testing.assert_close(networks(x)[n], h @ networks.weights[3][n].mT + networks.biases[3][n])


def test_a_network_is_the_same_for_the_same_seed_also_beside_others() -> None:
    one, two = VectorMlp(16, seeds=(1,)), VectorMlp(16, seeds=(2, 1))
    x = torch.rand(5, 16)
    torch.testing.assert_close(one(x)[0], two(x)[1])
    assert not torch.allclose(two(x)[0], two(x)[1])
    trained = trained_mlp("equality", steps=20, batch=64, seeds=(2, 1))
    alone = trained_mlp("equality", steps=20, batch=64, seeds=(1,))
    torch.testing.assert_close(trained(x)[1], alone(x)[0])


def test_training_learns_the_task() -> None:
    held_out = vector_interchange("and-or", 4000, seed=1)
    network = trained_mlp("and-or", steps=300, batch=256, rate=1e-2)
    assert network.accuracy(held_out)[0] > 0.75 > 0.6 > VectorMlp(24).accuracy(held_out)[0]
    assert not any(p.requires_grad for p in network.parameters())


def test_a_continuation_is_the_network_with_a_state_put_in_its_place() -> None:
    examples = vector_interchange("equality", 50)
    networks = VectorMlp(16, seeds=(0, 1)).requires_grad_(False)
    continuation = MlpContinuation(networks, examples)
    place, example = torch.tensor([2, 0, 4, 1, 0, 2]), torch.tensor([4, 4, 4, 7, 0, 1])
    values = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    found = continuation.outputs(values, place, example)
    own = continuation.outputs(continuation.base[place, example], place, example)
    for row in range(6):
        network, layer = divmod(int(place[row]), 3)
        torch.testing.assert_close(found[row], networks.outputs(network, layer + 1, values[row : row + 1])[0])
        torch.testing.assert_close(own[row], networks(examples.base[example[row : row + 1]])[network, 0])


def test_what_is_not_exchanged_has_the_bases_state() -> None:
    examples = vector_interchange("equality", 200)
    networks = VectorMlp(16, seeds=(0, 1)).requires_grad_(False)
    continuation = MlpContinuation(networks, examples)
    for i, source in enumerate(continuation.sources):
        exchanged = examples.exchanged[i]
        assert torch.equal(source[:, ~exchanged], continuation.base[:, ~exchanged])
        assert torch.equal(source[:, exchanged], networks.states(examples.sources[i]).flatten(0, 1)[:, exchanged])


def planted() -> VectorMlp:
    """A network whose first layer is its input: half of it is `left`'s symbols, half `right`'s, along the units."""
    network = VectorMlp(16, n_layers=1).requires_grad_(False)
    network.weights[0].copy_(torch.eye(16)[None])
    network.biases[0].fill_(1.0)
    return network


class TwoPairs(MlpContinuation):
    """Answers by the rule itself, from the states of a `planted` network."""

    def outputs(self, values: torch.Tensor, place: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        a, b, c, d = values.split(4, -1)
        left, right = ((x - y).abs().sum(-1) < 1e-3 for x, y in ((a, b), (c, d)))
        return torch.stack([(left != right).float(), (left == right).float()], 1)


def test_a_network_that_computes_the_variables_in_given_units_has_iia_1_there_and_only_there() -> None:
    """The causal model, the sampler, the continuation and the swap against each other."""
    examples = vector_interchange("equality", 500)
    continuation = TwoPairs(planted(), examples)
    one = torch.zeros(1, dtype=torch.long)

    def iia(made: Subspace) -> float:
        found = answers(Cells(made, one, one, ("layer 1",)), continuation)
        return found.agree(examples.label.long()[None]).double().mean().item()

    assert iia(Subspace(torch.eye(16), (8, 8))) == 1.0
    assert iia(Subspace(torch.eye(16).roll(8, 0), (8, 8))) < 0.6
    assert iia(Subspace.random(16, (8, 8))) < 0.6


def trial(seeds: tuple[int, ...], n: int = 400) -> Trial:
    networks = VectorMlp(16, seeds=seeds).requires_grad_(False)
    train, held_out = (vector_interchange("equality", n, seed=seed) for seed in range(2))
    return Trial(
        MlpContinuation(networks, train), train.label.long(), MlpContinuation(networks, held_out), held_out.label.long()
    )


MAPS = {
    "rotation": lambda cells, seed: LowRank(16, (8, 8), cells=cells, seed=seed),
    "RevNet": lambda cells, seed: RevNet(16, (8, 8), blocks=2, hidden=8, cells=cells, seed=seed),
}
BRIEF = Training(steps=5, batch=50)


@pytest.fixture(scope="module")
def small() -> Capacity:
    return capacity([trial((0, 1))], [trial((2, 3))], MAPS, BRIEF, places=("1", "2", "3"), name="equality")


def test_capacity_holds_every_map_at_every_place(small: Capacity) -> None:
    assert dict(small.data.sizes) == {"network": 2, "map": 2, "place": 3, "run": 2}
    assert small.data["capacity"].values.tolist() == [256, RevNet(16, (8, 8), blocks=2, hidden=8).capacity]
    assert (small.data["iia_of_run"].mean("run") - small.data["iia"]).max() < 1e-12
    assert (small.data["low"] <= small.data["iia"]).all() and (small.data["iia"] <= small.data["high"]).all()
    assert (small.floor > 0.49).all() and (small.floor < 0.6).all()


def test_capacity_is_the_iia_of_maps_fitted_one_by_one(small: Capacity) -> None:
    one = trial((1,))
    start = MAPS["rotation"](6, 0).select([3, 4, 5])
    cells = Cells(start, torch.arange(3), torch.zeros(3, dtype=torch.long), ("1", "2", "3"))
    fit([cells], one.train, one.target[None], BRIEF)
    found = answers(cells, one.held_out).agree(one.label.expand(3, -1)).double().mean(1)
    assert small.data["iia_of_run"].sel(network="trained", map="rotation", run=1).values.tolist() == found.tolist()


def altered(small: Capacity, trained: float, untrained: float) -> Capacity:
    """With other numbers for the RevNet."""
    data = small.data.copy(deep=True)
    iia = data["iia"].copy(data=data["iia"].values.copy())
    iia.loc[{"map": "RevNet", "network": "trained"}] = trained
    iia.loc[{"map": "RevNet", "network": "untrained"}] = untrained
    return Capacity(data.assign(iia=iia, low=iia - 0.01, high=iia + 0.01), small.provenance)


def test_a_control_that_is_as_good_is_said_in_the_repr(small: Capacity) -> None:
    warned = repr(altered(small, 0.99, 0.97))
    assert "WARNING: RevNet at 1, 2, 3 aligns untrained networks as well" in warned
    assert "non-linear representation dilemma" in warned
    assert "WARNING: rotation" not in warned
    partly = altered(small, 0.99, 0.70)
    assert "WARNING" not in repr(partly)
    assert "of what RevNet gains, untrained networks show up to " in repr(partly)
    assert float(partly.explained.sel(map="RevNet").max()) == pytest.approx(0.16 / 0.45, abs=0.06)
    nothing = altered(small, 0.5, 0.5)
    assert "WARNING" not in repr(nothing) and "of what RevNet" not in repr(nothing)


def of_two_vectors(n: int, seed: int) -> VectorInterchange:
    """Examples whose symbols are always the same two vectors: sixteen inputs, which a flexible map can learn by heart."""
    examples = vector_interchange("equality", n, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.rand(2, 4, generator=torch.Generator().manual_seed(7)) - 0.5
    pairs = examples.symbols.unflatten(-1, (2, 2))
    first = torch.randint(2, (n, 3, 2), generator=generator)
    second = torch.where(pairs[..., 0] == pairs[..., 1], first, 1 - first)
    sides = pool[torch.stack([first, second], -1)].flatten(2)
    return replace(examples, base=sides[:, 0], sources=sides[:, 1:].transpose(0, 1))


@pytest.mark.slow
def test_a_wide_revnet_aligns_a_network_that_was_never_trained_and_the_result_says_so() -> None:
    """The non-linear representation dilemma itself, on few inputs; a rotation does not do it."""

    def first_layer(networks: VectorMlp) -> Trial:
        found = []
        for n, seed in ((4000, 1), (1000, 2)):
            examples = of_two_vectors(n, seed)
            ready = MlpContinuation(networks, examples)
            rest = partial(networks.outputs, 0, 1)
            alone = FunctionContinuation(ready.base[0], tuple(source[0] for source in ready.sources), rest)
            found += [alone, examples.label.long()]
        return Trial(*found)

    trained = trained_mlp("equality", steps=1500, batch=512, rate=1e-2)
    assert trained.accuracy(of_two_vectors(500, 3))[0] > 0.95
    maps = {
        "rotation": MAPS["rotation"],
        "RevNet": lambda cells, seed: RevNet(16, (8, 8), blocks=4, hidden=128, cells=cells, seed=seed),
    }
    networks = trained, VectorMlp(16).requires_grad_(False)
    found = capacity(
        *([first_layer(each)] for each in networks), maps, Training(steps=900, batch=128, learning_rate=5e-3),
        places=("layer 1",), name="equality of two vectors",
    )  # fmt: skip
    iia = found.data["iia"].sel(network="untrained", place="layer 1")
    assert float(iia.sel(map="RevNet")) > 0.9 and float(iia.sel(map="rotation")) < 0.6
    assert "WARNING: RevNet at layer 1 aligns untrained networks as well" in repr(found)
    assert "WARNING: rotation" not in repr(found)


def test_capacity_draws_saves_and_shows(small: Capacity, tmp_path) -> None:
    small.save(tmp_path / "capacity.nc")
    assert repr(Result.load(tmp_path / "capacity.nc")) == repr(small)
    figure = small.plot()
    names = {f"{network}, {place}" for network in ("trained", "untrained") for place in "123"}
    assert names <= {line.name for line in figure.data}
    assert "rotation" in repr(small) and "2 networks of each kind" in repr(small)


def test_refusals() -> None:
    with pytest.raises(InterpError, match="take at least one of one"):
        trained_mlp("equality", steps=0)
    with pytest.raises(PairError):
        trained_mlp("inequality")
    with pytest.raises(ShapeError, match="width 24 for a network of width 16"):
        MlpContinuation(VectorMlp(16), vector_interchange("and-or", 5))
    with pytest.raises(InterpError, match="a control for each"):
        capacity([trial((0,))], [], MAPS, BRIEF, places=("1", "2", "3"), name="equality")
    with pytest.raises(InterpError, match="no base run in common"):
        MlpContinuation(VectorMlp(16), vector_interchange("equality", 5)).base_outputs(torch.tensor([0]))
