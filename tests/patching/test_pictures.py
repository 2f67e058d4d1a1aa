"""Patching of pictures: cells are plain runs, directions mirror each other, planted paths are found, controls are empty."""

from inspect import unwrap

import numpy as np
import pytest
import torch
from models.denoisers import changed, words_enter_at

import interp
from interp.errors import InterpError, PairError, SiteError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Replace, UnderPrompt, When
from interp.interventions.exchange import ExchangeGrid, exchange
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.patching import PicturePatchResult, patch, patch_pictures, phases
from interp.results import Result
from interp.tasks.swaps import PicturePair, PictureTask


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return changed()


TASK = PictureTask(
    "two colours",
    (
        PicturePair("a red circle at left", "a blue circle at left", "colour", "red", "blue", None),
        PicturePair("a small green star", "a small pink star", "colour", "green", "pink", None),
    ),
    "by hand",
)
SETTINGS = dict(seeds=2, steps=4, guidance=3.0)


class Mean:
    """Of one colour channel: any number that every change of the picture moves."""

    name, unit = "mean", "of full range"

    def values(self, images, example):
        weights = torch.linspace(0.5, 1.5, images[0].numel(), dtype=images.dtype).view(images[0].shape)
        return (images * weights).mean((1, 2, 3)) + 0.1 * example


def patched(model, **changes):
    return patch(model, TASK, metrics=lambda pairs: [Mean()], **{**SETTINGS, **changes})


def by_hand(model, direction, matching, site, steps):
    """[pair, seed] of one cell, one run per row, from public parts."""
    out = []
    for row in range(4):
        pair = TASK.pairs[row // 2]
        prompts = (pair.corrupted, pair.clean) if direction == "denoising" else (pair.clean, pair.corrupted)
        base, source = (model.sampling(p, seeds=row, steps=4, guidance=3.0) for p in prompts)
        value = UnderPrompt(prompts[1]) if matching == "state" else denoise(model, source, (), [site.all_heads])
        when = When(steps=steps, branch=Branch.COND if matching == "state" else None)
        images = denoise(model, base, [Replace(site, value, when=when)]).images
        out.append(float(Mean().values(images, torch.tensor([row]))))
    return np.array(out).reshape(2, 2)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("matching", ["state", "trajectory"])
def test_cells_are_plain_runs(model, direction, matching):
    found = patched(model, direction=direction, matching=matching, window=2, stride=1)
    assert found.data["window"].values.tolist() == ["0–1", "1–2", "2–3"]
    for address, window in (("up.1.1", 1), ("down.1.0", 2)):
        cell = found.data["mean"].sel(block=address).isel(window=window).values
        expected = by_hand(model, direction, matching, Site("cross_attn_out", address), [window, window + 1])
        np.testing.assert_allclose(cell, expected, rtol=0, atol=1e-9)
    naive = patched(model, direction=direction, matching=matching, window=2, stride=1, exact="naive")
    np.testing.assert_allclose(found.data["mean"].values, naive.data["mean"].values, rtol=0, atol=1e-9)
    base = "corrupted" if direction == "denoising" else "clean"
    effect = (found.data["mean"] - found.data[f"mean_{base}"]).mean(["pair", "seed"])
    np.testing.assert_allclose(found.data["mean_effect"].values, effect.transpose("block", "window").values, atol=1e-12)


def test_heads_of_a_part(model):
    found = patched(model, part="cross_z", over=["block", "head"], blocks=["up.1.1"])
    assert found.data["mean_effect"].dims == ("block", "head")
    expected = by_hand(model, "denoising", "state", Site("cross_z", "up.1.1", 1), range(4))
    np.testing.assert_allclose(found.data["mean"].isel(block=0, head=1).values, expected, rtol=0, atol=1e-9)


def test_groups_of_channels_are_a_partition(model):
    """All groups together are the whole part: what is linear in the patched channels adds up, at the last step."""
    when = dict(part="prediction", window=[range(3, 4)])
    whole = patched(model, **when).data["mean_effect"].values[0]
    groups = patched(model, over=["group"], groups=2, part="prediction").data["mean_effect"]
    assert groups.sizes == {"group": 2}
    assert np.abs(groups.values).min() > 0 and abs(whole) > 0


def test_the_prompt_swapped_throughout_gives_the_other_picture(model):
    found = patched(model, part="prediction", window=4)
    clean = found.data["mean_clean"].values
    np.testing.assert_allclose(found.data["mean"].values[0], clean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.recovered()["recovered"].values, 1, atol=1e-6)


def test_a_text_encoder_by_token(model):
    found = patched(model, part="embed")
    assert found.data["mean_effect"].dims == ("block", "pos")
    # Causal, and one word differs: at the embeddings only that word's token does anything, and it does everything.
    effect = np.abs(found.data["mean"].values - found.data["mean_corrupted"].values)[0]
    differing = [(row, token) for row, pair in enumerate(TASK.pairs) for token in (2 if row == 0 else 3,) if pair]
    for row, token in differing:
        assert effect[token, row].min() > 1e-9
        np.testing.assert_allclose(np.delete(effect[:, row], token, axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(
            found.data["mean"].values[0, token, row], found.data["mean_clean"].values[row], atol=1e-9
        )
    tokens = [str(token) for token in found.data["token"].values]
    assert tokens[1] == "a" and "·" in tokens
    assert found.provenance["rows_skipped"] > 0  # tokens before the word are what they were


def test_a_planted_path_and_a_model_without_any():
    found = patched(changed(words_enter_at("up.1.1")), window=4)
    effect = np.abs(found.data["mean_effect"].values[:, 0])
    blocks = [str(b) for b in found.data["block"].values]
    assert blocks[int(effect.argmax())] == "up.1.1"
    assert np.delete(effect, blocks.index("up.1.1")).max() < 1e-9 < effect.max()
    empty = patched(changed(words_enter_at(None)), window=4)
    assert np.abs(empty.data["mean_effect"].values).max() < 1e-9
    with pytest.raises(PairError, match="differs by"):
        empty.recovered()


def test_pairs_are_the_examples(model):
    from interp.statistics import bootstrap_interval

    found = patched(model, window=4)
    effect = found.data["mean"].values - found.data["mean_corrupted"].values
    low, high = bootstrap_interval(effect.mean(-1), seed=0)
    np.testing.assert_array_equal(found.data["mean_low"].values, low)
    np.testing.assert_array_equal(found.data["mean_high"].values, high)
    alone = patch(model, TASK.pairs[0], metrics=lambda pairs: [Mean()], window=4, **SETTINGS)
    low, _ = bootstrap_interval((alone.data["mean"] - alone.data["mean_corrupted"]).values[..., 0, :], seed=0)
    np.testing.assert_array_equal(alone.data["mean_low"].values, low)


def test_a_result_is_saved_loaded_and_drawn(model, tmp_path):
    found = patched(model, window=2)
    found.save(tmp_path / "patch.nc")
    again = Result.load(tmp_path / "patch.nc")
    assert isinstance(again, PicturePatchResult) and again.data.identical(found.data)
    assert again.plot().data and "state-matched" in again.title and "strongest" in again.summary()
    grid = again.plot_pictures()
    assert len(grid.layout.images) == 2 * (2 + 3 + 1)  # rows × (clean, corrupted, three cells, difference)
    strongest = found.data["patched"].isel(shown=0, drawn=0).values
    cell = str(found.data["shown"].values[0])
    address, steps = cell.split(", steps ")
    steps = range(int(steps[0]), int(steps[-1]) + 1)
    base = model.sampling(TASK.pairs[0].corrupted, seeds=0, steps=4, guidance=3.0)
    edit = Replace(
        Site("cross_attn_out", address), UnderPrompt(TASK.pairs[0].clean), when=When(steps=steps, branch=Branch.COND)
    )
    images = denoise(model, base, [edit]).images
    expected = (images[0].permute(1, 2, 0) * 255).round().numpy()
    assert np.abs(strongest - expected).max() <= 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(part="cross_attn_ou"), SiteError, "cross_attn_out"),
        (dict(over=["block", "head"]), SiteError, "no axis 'head'"),
        (dict(over=["block", "block"]), SiteError, "name each one once"),
        (dict(part="embed", over=["window"]), SiteError, "no axis 'window'"),
        (dict(part="embed", blocks=["text.7"]), SiteError, "text.7"),
        (dict(window=5), InterpError, "window of 5"),
        (dict(window=[range(3, 6)]), InterpError, "within 0 to 3"),
        (dict(stride=0), InterpError, "stride of 0"),
        (dict(over=["block", "group"], groups=1000), InterpError, "1000 groups"),
        (dict(seeds=0), InterpError, "0 seeds"),
        (dict(layers=[1]), InterpError, "layers: only patching of texts"),
        (dict(metric="accuracy"), InterpError, "metric: only patching of texts"),
    ],
)
def test_what_is_refused(model, changes, error, message):
    with pytest.raises(error, match=message):
        patched(model, **changes)


def test_words_that_are_none(model):
    """As a caller without type checks meets them."""
    with pytest.raises(InterpError, match="sideways"):
        unwrap(patch_pictures)(model, TASK, direction="sideways")
    base = model.sampling("a red circle", steps=4)
    with pytest.raises(InterpError, match="'state' or 'trajectory'"):
        unwrap(exchange)(ExchangeGrid.of(model, base, "cross_attn_out"), base, base, "both", lambda *_: [Mean()])


def test_tasks_that_do_not_fit(model, speaking):
    with pytest.raises(PairError, match="interp.tasks.swaps"):
        patch(model, PictureTask("none", (), "nowhere"))
    with pytest.raises(PairError, match="several|swap"):
        patch(
            model, PictureTask("mixed", (TASK.pairs[0], PicturePair("a circle", "a star", "shape", "a", "b", None)), "")
        )
    longer = PicturePair("a red circle", "a dark blue circle", "colour", "red", "blue", None)
    with pytest.raises(PairError, match="as many tokens"):
        patch(model, longer, "embed", metrics=lambda pairs: [Mean()], **SETTINGS)
    with pytest.raises(PairError, match="answers with pictures"):
        patch(model, interp.tasks.ioi(2))
    with pytest.raises(PairError, match="answers in words"):
        patch(speaking, TASK)
    with pytest.raises(InterpError, match="only pictures have windows of steps"):
        patch(speaking, interp.tasks.ioi(2), window=[range(2)])
    with pytest.raises(InterpError, match="matching: only patching of pictures"):
        patch(speaking, interp.tasks.ioi(2), matching="state")


# -- the shapes model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes():
    return interp.load("shapes")


@pytest.fixture(scope="module")
def untrained():
    from interp.shapes.pipeline import new_pipeline, new_text_encoder, new_unet

    torch.manual_seed(0)
    pipe = new_pipeline(new_text_encoder().eval(), new_unet().eval())
    pipe.set_progress_bar_config(disable=True)
    return interp.load(pipe, name="untrained")


def test_the_colour_of_the_trained_model_and_not_of_an_untrained_one(shapes, untrained):
    """What a run of the model says, and its control."""
    task = interp.tasks.swaps(2, "colour", seed=1)
    settings = dict(over=["window"], part="prediction", window=8, steps=8)
    trained = patch(shapes, task, **settings)
    assert trained.data["colour_probability_effect"].values[0] > 0.9
    control = patch(untrained, task, **settings)
    assert abs(control.data["colour_probability_effect"].values[0]) < 0.05


def test_phases(shapes, untrained, tmp_path):
    found = phases(shapes, factors=["cell", "colour"], n=2, windows=2, steps=6, control=untrained)
    assert found.data["effect"].dims == ("network", "factor", "window")
    assert found.data["steps"].values.tolist() == ["0–2", "3–5"]
    whole = found.data["probability_throughout"].isel(network=0)
    assert (whole > 0.5).all()
    assert np.abs(found.data["effect"].isel(network=1)).max() < 1 < found.data["effect"].isel(network=0).max()
    # One cell, by public parts: the first colour pair, with the other prompt in the first three steps.
    pair = interp.tasks.swaps(2, "colour").pairs[0]
    base = shapes.sampling(pair.corrupted, seeds=0, steps=6)
    edit = Replace(Site("prediction"), UnderPrompt(pair.clean), when=When(steps=range(3), branch=Branch.COND))
    from interp.tasks.swaps import swap_metrics

    expected = swap_metrics([pair])[1].values(denoise(shapes, base, [edit]).images, torch.tensor([0]))
    cell = found.data["probability"].sel(factor="colour", window="early").isel(network=0, pair=0)
    np.testing.assert_allclose(float(cell), float(expected), atol=1e-4)
    found.save(tmp_path / "phases.nc")
    again = Result.load(tmp_path / "phases.nc")
    assert len(again.plot().data) >= 2 and "early" in again.summary()
    one, whole = (found.data[name].isel(network=0) for name in ("logit_difference", "logit_difference_throughout"))
    without = found.data["logit_difference_without"].isel(network=0)
    share = (one - without).mean("pair") / (whole - without).mean("pair")
    np.testing.assert_allclose(found.data["share"].isel(network=0), share.transpose("factor", "window"), atol=1e-9)
    with pytest.raises(InterpError, match="7 windows of 6"):
        phases(shapes, windows=7, steps=6)
