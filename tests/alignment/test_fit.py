"""Fitting on networks made by hand: what is planted is found, what is not is not, and training can be interrupted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from interp.alignment.continuation import FunctionContinuation
from interp.alignment.fit import Cells, Training, answers, fit
from interp.alignment.maps import LowRank, Subspace
from interp.alignment.masks import Boundless
from interp.errors import InterpError, LoadError, ShapeError

WIDTH = 12


def directions() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.linalg.qr(torch.randn(WIDTH, 3, generator=generator)).Q.T


def planted(n: int, seed: int) -> tuple[FunctionContinuation, torch.Tensor, torch.Tensor]:
    """(a network, the labels of an interchange, the base's answers).

    The state holds two bits along two directions, and noise that matters to nothing; the answer, one of four, is both
    bits. The variable is the first bit; the source's second bit is its own.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second, _ = directions()

    def drawn() -> tuple[torch.Tensor, torch.Tensor]:
        bits = torch.randint(0, 2, (n, 2), generator=generator)
        noise = torch.randn(n, WIDTH, generator=generator)
        noise -= noise @ torch.stack([first, second]).T @ torch.stack([first, second])
        signs = 2.0 * bits - 1
        return bits, signs[:, :1] * first + signs[:, 1:] * second + noise

    def network(x: torch.Tensor) -> torch.Tensor:
        one, two = 3 * x @ first, 3 * x @ second
        return torch.stack([-one - two, -one + two, one - two, one + two], 1)

    (base_bits, base), (source_bits, source) = drawn(), drawn()
    continuation = FunctionContinuation(base, (source,), network)
    return continuation, 2 * source_bits[:, 0] + base_bits[:, 1], 2 * base_bits[:, 0] + base_bits[:, 1]


def cells(n: int, rank: int = 1, seed: int = 0, sets: int = 1) -> Cells:
    return Cells(LowRank(WIDTH, rank, cells=n, seed=seed), torch.zeros(n, dtype=torch.long), torch.arange(n) % sets,
                 tuple(f"cell {i}" for i in range(n)))  # fmt: skip


PLAN = Training(steps=300, batch=32, learning_rate=3e-2)


def test_the_planted_subspace_is_found_and_nothing_is_found_in_shuffled_labels() -> None:
    train, label, answer = planted(256, 0)
    test, test_label, test_answer = planted(400, 1)
    coin, test_coin = (
        torch.rand(len(x), generator=torch.Generator().manual_seed(7)) < 0.5 for x in (label, test_label)
    )
    targets = torch.stack([label, torch.where(coin, label, answer)])
    group = cells(2, sets=2)
    (fitted,) = fit([group], train, targets, PLAN)
    found, _ = group.map.basis.detach()[..., 0]
    assert float((found @ directions()[0]).abs().clamp(max=1).arccos().rad2deg()) < 5
    judged = torch.stack([test_label, torch.where(test_coin, test_label, test_answer)])
    iia = answers(group, test).agree(judged).double().mean(1)
    assert iia[0] >= 0.99
    differs = (test_label != test_answer).double().mean()  # elsewhere both faces of the coin are the label
    assert iia[1] < 1 - differs / 2 + 1.96 * 0.5 / 20
    assert fitted.stopped == (None, None) and fitted.loss.shape == (2, 300)
    assert fitted.loss[0, -20:].mean() < 0.1 < fitted.loss[1, -20:].mean()


def test_rank_0_is_no_interchange_and_full_rank_a_whole_one() -> None:
    train, _, answer = planted(64, 2)
    nothing, whole = (Cells(LowRank(WIDTH, rank), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long),
                            ("x",)) for rank in (0, WIDTH))  # fmt: skip
    assert answers(nothing, train).agree(answer[None]).all()
    source = train.function(train.sources[0][0]).argmax(-1)
    assert answers(whole, train).agree(source[None]).all() and (source != answer).any()


def test_cells_do_not_see_each_other() -> None:
    train, label, _ = planted(64, 3)
    plan = Training(steps=20, batch=16)
    together, alone = cells(3), cells(3)
    (three,) = fit([together], train, label[None], plan)
    for i in range(3):
        one = Cells(alone.map.select([i]), alone.place[i : i + 1], alone.target[i : i + 1], ("alone",))
        (own,) = fit([one], train, label[None], plan)
        np.testing.assert_allclose(own.loss[0], three.loss[i], atol=1e-5, rtol=0)


def test_a_step_equals_the_interchange_written_out() -> None:
    train, label, _ = planted(8, 4)
    group = cells(1, rank=2)
    columns = group.map.columns.detach()[0].clone().requires_grad_()
    q, r = torch.linalg.qr(columns)
    q = q * r.diagonal().sign()
    edited = train.base[0] + ((train.sources[0][0] - train.base[0]) @ q) @ q.T
    loss = F.cross_entropy(train.function(edited), label)
    (gradient,) = torch.autograd.grad(loss, columns)
    plan = Training(steps=1, batch=8, learning_rate=1e-3, warm_up=0.0)
    before = group.map.columns.detach()[0].clone()
    (fitted,) = fit([group], train, label[None], plan)
    assert fitted.loss[0, 0] == pytest.approx(loss.item(), abs=1e-5)
    moved = group.map.columns.detach()[0] - before  # Adam's first step is the rate times the gradient's sign
    clear = gradient.abs() > 1e-4
    torch.testing.assert_close(moved[clear], -1e-3 * gradient.sign()[clear], atol=1e-6, rtol=0)


def test_rows_that_do_not_differ_are_answered_by_the_base_run() -> None:
    whole, label, answer = planted(32, 5)
    source = whole.sources[0][0].clone()
    source[::2] = whole.base[0, ::2]
    rows: list[int] = []

    class Counted(FunctionContinuation):
        def outputs(self, values, place, example):
            rows.extend(example.tolist())
            return super().outputs(values, place, example)

    some = Counted(whole.base[0], (source,), whole.function)
    plan = Training(steps=4, batch=8)
    group, plain = cells(1), cells(1)
    (fitted,) = fit([group], some, label[None], plan)
    assert len(rows) == sum(int((plan.examples(step, 32) % 2).sum()) for step in range(4)) > 0
    assert set(rows) <= set(range(1, 32, 2))
    some.__dict__["differs"] = torch.ones(1, 32, dtype=torch.bool)  # as if all rows had to run
    (full,) = fit([plain], some, label[None], plan)
    np.testing.assert_allclose(fitted.loss, full.loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(group.map.columns, plain.map.columns, atol=1e-6, rtol=0)

    still = FunctionContinuation(whole.base[0], (whole.base[0],), whole.function)
    group = cells(1)
    start = group.map.columns.detach().clone()
    (nothing,) = fit([group], still, label[None], plan)
    assert np.isnan(nothing.loss).all() and torch.equal(group.map.columns, start)
    assert torch.equal(answers(group, still).token[0], answer)


def test_the_same_seed_gives_the_same_curve_and_another_another() -> None:
    train, label, _ = planted(64, 6)
    curves = [fit([cells(2)], train, label[None], Training(steps=15, seed=seed))[0].loss for seed in (0, 0, 1)]
    assert (curves[0] == curves[1]).all() and (curves[0] != curves[2]).any()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("patience", [None, 2])
def test_a_resumed_training_has_the_same_curve(tmp_path, patience: int | None) -> None:
    train, label, _ = planted(64, 7)
    plan = Training(steps=40, batch=16, learning_rate=2e-2, patience=patience)
    whole = [cells(2), cells(1, rank=3, seed=1)]
    expected = fit(whole, train, label[None], plan)

    def cut(items, _):
        for item in items:
            if item == 25:
                raise Interrupted
            yield item

    path = tmp_path / "fit.safetensors"
    with pytest.raises(Interrupted):
        fit([cells(2), cells(1, rank=3, seed=1)], train, label[None], plan, progress=cut, checkpoint=path, every=10)
    seen: list[int] = []
    again = [cells(2), cells(1, rank=3, seed=1)]
    found = fit(again, train, label[None], plan, checkpoint=path, every=10,
                progress=lambda items, _: (seen.append(item) or item for item in items))  # fmt: skip
    assert seen[0] == 20
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.loss, other.loss)
        assert one.stopped == other.stopped
    for one, other in zip(again, whole, strict=True):
        assert torch.equal(one.map.columns, other.map.columns)


def test_what_a_map_follows_is_kept_step_by_step_and_over_an_interruption(tmp_path) -> None:
    train, label, _ = planted(64, 7)
    plan = Training(steps=20, batch=16, learning_rate=1e-3)

    def made() -> Cells:
        zero = torch.zeros(2, dtype=torch.long)
        return Cells(Boundless(train.base.shape[-1], cells=2), zero, zero, ("one", "two"))

    whole = made()
    width = whole.map.width
    (expected,) = fit([whole], train, label[None], plan)
    boundary, temperature = expected.history["boundary"], expected.history["temperature"]
    assert boundary.shape == (2, 20, 1) and (boundary[:, 0, 0] == width / 2).all()
    np.testing.assert_allclose(temperature, np.tile(np.linspace(50, 0.1, 20), (2, 1)), rtol=1e-6)
    assert (np.diff(boundary[0, :, 0]) != 0).all()
    one_more = whole.map.boundaries.detach().numpy()  # what the last step made of the last that was followed
    assert (np.abs(one_more - boundary[:, -1]) < 1).all()

    def cut(items, _):
        yield from (item for item in items if item < 13)
        raise Interrupted

    path = tmp_path / "fit.safetensors"
    with pytest.raises(Interrupted):
        fit([made()], train, label[None], plan, progress=cut, checkpoint=path, every=5)
    (found,) = fit([made()], train, label[None], plan, checkpoint=path, every=5)
    for name, values in expected.history.items():
        np.testing.assert_array_equal(found.history[name], values)
    (plain,) = fit([cells(1)], train, label[None], plan)
    assert plain.history == {}


def test_patience_ends_a_cell() -> None:
    train, label, _ = planted(64, 7)
    plan = Training(steps=40, batch=16, learning_rate=1e-7, patience=2)
    (fitted,) = fit([cells(1)], train, label[None], plan)
    assert fitted.stopped[0] is not None and "cell 0, step 11: no lower loss in 2 passes" in fitted.stopped[0]
    assert np.isfinite(fitted.loss[0, :12]).all() and np.isnan(fitted.loss[0, 12:]).all()


def test_a_loss_that_is_not_finite_stops_its_cell_alone() -> None:
    train, label, _ = planted(64, 8)
    plan = Training(steps=12, batch=64)
    good, calls = [], []

    class Breaking(FunctionContinuation):
        def outputs(self, values, place, example):
            out = super().outputs(values, place, example)
            good.append([p.detach().clone() for p in group.map.parameters()])
            calls.append(len(values))
            if len(calls) == 6:  # the first cell's rows come first
                out = torch.where(torch.arange(len(out))[:, None] < 64, torch.nan, out)
            return out

    breaking = Breaking(train.base[0], (train.sources[0][0],), train.function)
    group, alone = cells(2), cells(2)
    (fitted,) = fit([group], breaking, label[None], plan)
    why, other = fitted.stopped
    assert other is None and why is not None and "cell 0, step 5" in why and "finite" in why
    assert np.isfinite(fitted.loss[0, :5]).all() and np.isnan(fitted.loss[0, 5:]).all()
    assert torch.equal(group.map.columns[0], good[4][0][0])  # where the loss last was finite
    fit([alone], train, label[None], plan)
    torch.testing.assert_close(group.map.columns[1], alone.map.columns[1], atol=1e-5, rtol=0)
    assert calls[6] < calls[5]  # it no longer runs


def test_answers_among_some_tokens_and_where_there_are_none() -> None:
    train, _, answer = planted(16, 9)
    nothing = Cells(Subspace(torch.empty(WIDTH, 0)), torch.tensor([0]), torch.tensor([0]), ("nothing",))
    assert torch.equal(
        answers(nothing, train, among=torch.tensor([1, 2])).token[0] % 3 != 0, torch.ones(16, dtype=bool)
    )
    broken = FunctionContinuation(train.base[0], (train.sources[0][0],), lambda x: train.function(x) * torch.nan)
    assert not answers(nothing, broken).agree(answer[None]).any()


def test_refusals(tmp_path) -> None:
    train, label, _ = planted(16, 10)
    with pytest.raises(InterpError, match="no cell"):
        fit([], train, label[None], PLAN)
    with pytest.raises(InterpError, match="3 targets for 16"):
        fit([cells(1)], train, label[None, :3], PLAN)
    with pytest.raises(InterpError, match="2 cells for 1 places"):
        Cells(LowRank(WIDTH, 1, cells=2), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), ("x",))
    for wrong in ({"steps": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"warm_up": 1.5}, {"patience": 0}):
        with pytest.raises(InterpError, match="greater than 0|at least one pass"):
            replace(PLAN, **wrong)
    with pytest.raises(ShapeError, match="base's shape"):
        FunctionContinuation(train.base[0], (train.base[0, :3],), train.function)
    bad = train.base[0].clone()
    bad[3, 2] = torch.nan
    broken = FunctionContinuation(bad, (bad,), train.function)
    with pytest.raises(InterpError, match="somewhere of example 3 is not finite"):
        broken.check(["somewhere"])
    path = tmp_path / "fit.safetensors"
    fit([cells(1)], train, label[None], Training(steps=2), checkpoint=path)
    with pytest.raises(InterpError, match="another training"):
        fit([cells(1)], train, label[None], Training(steps=3), checkpoint=path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(LoadError, match="delete it"):
        fit([cells(1)], train, label[None], Training(steps=2), checkpoint=path)
