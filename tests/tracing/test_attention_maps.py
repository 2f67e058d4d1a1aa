"""Maps of words: the means that they claim to be, a planted place that they find, and models that know of none."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from models.denoisers import described, options
from models.pipelines import pipeline

import interp
from interp.errors import InterpError, PairError, ShapeError, SiteError
from interp.interventions.denoise import denoise
from interp.interventions.edits import When
from interp.models.denoiser import describe_pipeline
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.results import Result
from interp.shapes.caption import full_caption
from interp.shapes.pipeline import new_pipeline, new_text_encoder, new_unet
from interp.shapes.render import masks
from interp.shapes.scene import CELLS, Object, Scene
from interp.tracing import AttentionMaps, attention_maps

PROMPT = "a red circle on a blue square"
SETTINGS = dict(seeds=[0, 1], steps=2, guidance=4.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def mapped() -> AttentionMaps:
    return attention_maps(described("sd"), PROMPT, **SETTINGS)


def test_a_map_is_the_mean_of_its_patterns():
    """One block, one head, one step: the captured pattern itself; several: their mean."""
    model = described("sd")
    run = denoise(model, model.sampling(PROMPT, **SETTINGS), [], ["up.1.1.cross_pattern", "up.1.2.cross_pattern"])
    parts = [run["up.1.1.cross_pattern"][:, 1], run["up.1.2.cross_pattern"][:, 1]]  # [uncond | cond]
    one = attention_maps(
        model, PROMPT, words=["red"], blocks=["up.1.1"], heads=[1], when=When(steps=[1]), **SETTINGS
    ).data["attention"]
    np.testing.assert_allclose(one.values.reshape(2, 1, -1), parts[0][1, :, 1, None, :, 2], atol=1e-12)
    both = attention_maps(model, PROMPT, words=["red", 6], blocks=["up.1.1", "up.1.2"], **SETTINGS)
    expected = torch.stack(parts).mean((0, 1, 3))[..., [2, 7]].transpose(1, 2)
    np.testing.assert_allclose(both.data["attention"].values.reshape(2, 2, -1), expected, atol=1e-12)
    assert both.data["text"].values.tolist() == ["red", "square"]


@pytest.mark.parametrize(("family", "tokens"), [("sd3", [2, 13]), ("flux", [1])])
def test_joint_attention_shares_with_cells(family, tokens):
    """The word's share of all that a cell looks at, cells of the picture included; every place that a word has."""
    model = described(family)
    settings = SETTINGS | options(family) | ({"guidance": 1.0} if family == "flux" else {})
    run = denoise(
        model, model.sampling(PROMPT, **settings), [], ["block.1.joint_pattern"], when=When(branch=Branch.COND)
    )
    found = attention_maps(model, PROMPT, words=["red"], blocks=["block.1"], **settings)
    cells = found.data.sizes["y"] * found.data.sizes["x"]
    columns = [cells + token for token in tokens]
    expected = run["joint_pattern", "block.1"][:, 0, :, :, :cells, columns].mean((0, 2)).sum(-1)
    np.testing.assert_allclose(found.data["attention"].values.reshape(2, cells), expected, atol=1e-12)


def test_blocks_of_other_grids_and_a_small_budget():
    found = mapped()
    assert found.data["attention"].dims == ("example", "word", "y", "x")
    assert found.data.sizes["block"] == 11 and found.provenance["runs"] == 1
    np.testing.assert_allclose(found.data["block_attention"].mean("block"), found.data["attention"], atol=1e-12)
    coarse = found.data["block_attention"].sel(block="mid.0")
    own = attention_maps(described("sd"), PROMPT, blocks=["mid.0"], **SETTINGS).data["attention"]
    assert own.sizes["y"] < coarse.sizes["y"]
    expected = torch.nn.functional.interpolate(
        torch.tensor(own.values), tuple(coarse.shape[-2:]), mode="bicubic", align_corners=False
    ).clamp(min=0)
    np.testing.assert_allclose(coarse.values, expected, atol=1e-12)
    largest = 2 * 2 * 2 * 64 * 12 * 8  # steps, rows, heads, cells, keys of 8 bytes
    again = attention_maps(described("sd"), PROMPT, budget=largest, **SETTINGS)
    assert again.provenance["runs"] > 3
    np.testing.assert_allclose(again.data["block_attention"], found.data["block_attention"], atol=1e-12)
    assert np.array_equal(again.data["picture"], found.data["picture"])
    with pytest.raises(InterpError, match="The patterns of down.0.0.cross_pattern take"):
        attention_maps(described("sd"), PROMPT, budget=largest - 1, **SETTINGS)


def test_agreement_by_hand():
    found = mapped()
    shape = (len(PROMPT.split()), found.data.sizes["row"], found.data.sizes["column"])
    generator = np.random.default_rng(0)
    regions = generator.random(shape) < 0.3
    scores = found.agreement(regions)
    assert scores.dims == ("example", "word")
    maps = torch.nn.functional.interpolate(
        torch.tensor(found.data["attention"].values), shape[1:], mode="bilinear", align_corners=False
    ).numpy()
    for word in (0, 3):
        inside, outside = maps[1, word][regions[word]], maps[1, word][~regions[word]]
        wins = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
        np.testing.assert_allclose(scores.values[1, word], wins, atol=1e-9)
    np.testing.assert_allclose(found.agreement(~regions), 1 - scores, atol=1e-9)
    brightest = maps[0] >= np.quantile(maps[0], 0.8, axis=(-2, -1), keepdims=True)
    assert found.agreement(brightest).values[0].min() > 0.999
    with pytest.raises(ShapeError, match="Masks have shape"):
        found.agreement(regions[:2])
    with pytest.raises(ShapeError, match="leave some out"):
        found.agreement(np.ones(shape, bool))


def two_objects() -> list[Scene]:
    """Every pair of cells, so that no place is more frequent than another."""
    pairs = [(a, b) for a in CELLS for b in CELLS if a != b][::2]
    return [
        Scene("white", (Object("circle", "red", "large", a), Object("square", "blue", "large", b)), seed)
        for seed, (a, b) in enumerate(pairs)
    ]


def agreements(model, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[scene, object] of the word after each object's phrase, and of its colour."""
    scenes, after, colour = two_objects(), [], []
    drawn = masks(scenes)
    for row, scene in enumerate(scenes):
        found = attention_maps(model, full_caption(scene), words=[7, 15, 2, 10], steps=6, seeds=[row])
        scores = found.agreement(drawn[(row + shift) % len(scenes)][[0, 1, 0, 1]]).values[0]
        after.append(scores[:2])
        colour.append(scores[2:])
    return np.array(after), np.array(colour)


def test_the_shapes_model_looks_at_the_word_that_ends_an_object():
    """Its text encoder reads to the right only, and gathers an object in the first token behind its words.

    The maps of a model that never saw a picture, and of another scene's words, find no object.
    """
    after, colour = agreements(interp.load("shapes"))
    assert after.mean() > 0.9
    assert colour.mean() < 0.5  # a map of a word is no picture of what it says
    shuffled, _ = agreements(interp.load("shapes"), shift=3)
    torch.manual_seed(0)
    untrained = describe_pipeline(new_pipeline(new_text_encoder(), new_unet()), "untrained")
    for control in (shuffled, agreements(untrained)[0]):
        assert abs(control.mean() - 0.5) < 0.2 < after.mean() - control.mean()


def test_a_planted_place_is_found_and_nothing_where_nothing_is():
    """Keys that are all the same attract everywhere alike; then the cells of the upper half see one word more."""
    model = describe_pipeline(pipeline("sd"), "planted")
    with torch.no_grad():
        model.tap(Site("cross_pattern", "up.2.1")).module.to_k.weight.zero_()
    regions = np.zeros((2, 16, 16), bool)
    regions[:, :8] = True
    asked = dict(words=["red", "blue"], blocks=["up.2.1"], **SETTINGS)
    flat = attention_maps(model, PROMPT, **asked)
    np.testing.assert_allclose(flat.data["attention"], 1 / 12, atol=1e-12)
    np.testing.assert_allclose(flat.agreement(regions), 0.5)
    upper = range(flat.data.sizes["y"] // 2 * flat.data.sizes["x"])
    more = interp.Add(Site("cross_scores", "up.2.1", 0), 2.0, positions=upper, units=[2])
    planted = attention_maps(model, PROMPT, edits=[more], **asked).agreement(regions)
    assert planted.sel(word=1).min() > 0.99
    assert planted.sel(word=5).max() < 0.01  # what one word gains the others lose


def test_a_result_is_saved_loaded_and_drawn(tmp_path):
    found = mapped()
    found.save(tmp_path / "maps.nc")
    again = Result.load(tmp_path / "maps.nc")
    assert isinstance(again, AttentionMaps) and again.data.identical(found.data)
    figure = again.plot(example=1)
    assert len([trace for trace in figure.data if trace.type == "heatmap"]) == 7
    assert "red" in found.summary() and "2 pictures, 1 runs of 2 steps" in found.summary()
    assert PROMPT in found.title


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"words": ["purple"]}, PairError, "occurs 0 times"),
        ({"words": ["a"]}, PairError, "occurs 2 times .* give its number"),
        ({"words": [7]}, PairError, "has the words 0 to 6; got 7"),
        ({"words": []}, PairError, "at least one"),
        ({"words": ["red", 1]}, PairError, "each once"),
        ({"words": "red"}, InterpError, r"write \['red'\]"),
        ({"blocks": ["up.9.0"]}, SiteError, "no block 'up.9.0'"),
        ({"blocks": ["down.2.0"]}, SiteError, "no 'cross_pattern' at 'down.2.0'"),
        ({"heads": [2]}, SiteError, "2 heads there"),
        ({"when": When(branch=Branch.UNCOND)}, InterpError, "sees no word"),
        ({"when": When(steps=[2])}, InterpError, r"names steps \[2\]"),
    ],
)
def test_what_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        attention_maps(described("sd"), PROMPT, **SETTINGS | changes)


def test_a_model_without_words():
    with pytest.raises(SiteError, match="attends to no words"):
        attention_maps(described("dit"), "a", seeds=1, steps=2)
