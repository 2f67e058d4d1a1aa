"""Training: that it can be killed at any moment; the optimiser and the reading lesson do what they say."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from interp.errors import LoadError
from interp.shapes.evaluate import Share, agreement, evaluation_set, markdown, shares, sheet
from interp.shapes.optimizer import Muon, orthogonalised
from interp.shapes.packing import pack, unpacked
from interp.shapes.pipeline import load_pipeline, new_text_encoder
from interp.shapes.reading import Reading, ideal
from interp.shapes.render import render
from interp.shapes.scene import VARIANTS
from interp.shapes.text import pretrain
from interp.shapes.train import CHECKPOINT, LOG, Recipe, Training

TINY = Recipe(steps=6, batch=4, warmup=2, cooldown=2, easy=3, text_steps=2, bfloat16=False)


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(tmp_path):
    straight = Training(TINY)
    straight.start()
    losses = [straight.advance() for _ in range(4)]

    first = Training(TINY)
    first.start()
    assert [first.advance() for _ in range(2)] == losses[:2]
    first.save(tmp_path / CHECKPOINT)
    first.advance()  # lost when the process is killed
    second = Training(TINY)
    torch.manual_seed(99)  # what a new process draws must not matter
    second.load(tmp_path / CHECKPOINT)
    assert second.step == 2
    assert [second.advance() for _ in range(2)] == losses[2:]
    expected, found = straight.tensors(), second.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_packed_training_continues_a_rounding_away(tmp_path):
    training = Training(TINY)
    training.start()
    for _ in range(2):
        training.advance()
    pack(tmp_path, training.tensors(), training.state())
    resumed = Training(TINY)
    resumed.restore(*unpacked(tmp_path))
    assert resumed.step == 2
    for name, tensor in training.tensors().items():
        torch.testing.assert_close(resumed.tensors()[name], tensor, rtol=2**-8, atol=1e-7, msg=name)
    assert resumed.advance() == pytest.approx(training.advance(), rel=0.01)
    pipeline = load_pipeline(tmp_path)
    assert torch.equal(pipeline.unet.conv_in.weight, resumed_weight(tmp_path))


def resumed_weight(folder):
    return unpacked(folder)[0]["average.unet.conv_in.weight"].float()


def test_a_checkpoint_of_another_variant_is_refused(tmp_path):
    training = Training(TINY)
    training.save(tmp_path / CHECKPOINT)
    with pytest.raises(LoadError, match="variant='A', and 'C' is wanted"):
        Training(Recipe(variant="C")).load(tmp_path / CHECKPOINT)


def test_the_command_writes_checkpoint_and_log_and_continues(tmp_path):
    import typer

    from interp.shapes.train import train

    app = typer.Typer()
    app.command()(train)
    options = ["--out", str(tmp_path), "--batch", "2", "--cooldown", "1", "--no-bfloat16", "--text-steps", "2"]
    for steps in ("1", "2", "2"):
        done = CliRunner().invoke(app, [*options, "--steps", steps])
        assert done.exit_code == 0, done.output
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == [0]
    resumed = Training(TINY)
    resumed.load(tmp_path / CHECKPOINT)
    assert resumed.step == 2


@pytest.mark.parametrize("shape", [(3, 6, 40), (2, 40, 6), (1, 8, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape) * 1e-3))
    assert ((values > 0.3) & (values < 1.3)).all()


def test_the_optimizer_lowers_a_loss_of_matrices_vectors_and_convolutions():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
    x, y = torch.randn(32, 3, 8, 8), torch.randn(32, 4)
    optimizer = Muon(dict(net.named_parameters()), plain=())
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step(5e-3)
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.slow
def test_a_short_lesson_teaches_the_encoder_to_read():
    torch.manual_seed(0)
    before = pretrain(new_text_encoder(), VARIANTS["A"], seed=0, steps=2, batch=64)
    after = pretrain(new_text_encoder(), VARIANTS["A"], seed=0, steps=160, batch=64)
    assert before < 0.6 and after > 0.8


def test_perfect_pictures_score_one_and_shuffled_ones_do_not():
    scenes, prompts = evaluation_set(40, seed=1)
    assert len(prompts) == 40 and [len(scene.objects) for scene in scenes] == [1, 2] * 20
    wanted = [ideal(scene) for scene in scenes]
    table = shares(wanted, wanted)
    assert all(share.right == share.of for of in table.values() for share in of.values())
    assert table["two"]["binding"].of == 20 and table["two"]["colour"].of == 40 and "binding" not in table["single"]
    shuffled = shares(wanted[2:] + wanted[:2], wanted)
    assert shuffled["single"]["scene"].right == 0 and shuffled["two"]["binding"].right < 3
    agreed = agreement(wanted, [Reading("white", reading.cells) for reading in wanted])
    assert agreed["shape"].right == agreed["shape"].of and agreed["background"].right < agreed["background"].of
    assert "| scene | 100.0% (83.9%–100.0%) |" in markdown({"checker": table}, agreed)
    assert sheet(render(scenes), columns=8, zoom=2).size == (8 * 34 * 2, 5 * 34 * 2)


def test_wilsons_interval():
    low, high = Share(90, 100).interval()
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)
    assert Share(100, 100).interval()[1] == pytest.approx(1.0) and Share(0, 10).interval()[0] == pytest.approx(0.0)
