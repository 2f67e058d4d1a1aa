"""Harvests against plain runs: every row is what `run` captures at its text and position, or picture, step and cell."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from models.denoisers import described

from interp.dictionaries import harvest as module
from interp.dictionaries.harvest import harvest_pictures, harvest_texts
from interp.dictionaries.store import Store
from interp.errors import InterpError, PairError, ShapeError, SiteError
from interp.interventions.denoise import denoise
from interp.interventions.edits import When
from interp.interventions.run import run
from interp.models.guidance import Branch
from interp.models.load import load
from interp.shapes.caption import full_caption
from interp.shapes.pipeline import new_pipeline, new_text_encoder, new_unet
from interp.shapes.scene import factors_of, sample_scenes
from interp.tasks.concept_masks import SHAPES_CONCEPTS, seen_masks

TEXTS = [
    "The cat sat on the mat and looked at the old dog.",
    "Hi",
    "In the house there were two men and a bird.",
    "Rain fell.",
]
SITES = ["L1.resid_post", "L0.z", "L2.mlp_act"]


class Killed(Exception):
    pass


def killed_after(n):
    def progress(items, _):
        for number, item in enumerate(items):
            if number == n:
                raise Killed
            yield item

    return progress


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 8)
    monkeypatch.setattr(module, "BATCH_TOKENS", 16)
    monkeypatch.setattr(module, "PICTURES", 2)


def test_rows_of_texts_are_what_a_run_captures(speaking, tmp_path, small_shards):
    store = harvest_texts(speaking, TEXTS, SITES, tmp_path / "store", context=6, first=1)
    assert (
        len(store.shards) > 2 and store.complete and store.widths == {"L1.resid_post": 24, "L0.z": 24, "L2.mlp_act": 40}
    )
    labels = {name: store.label(name).tolist() for name in ("text", "position", "token")}
    seen = set()
    for row, (text, position, token) in enumerate(zip(*labels.values(), strict=True)):
        ids = speaking.tokenizer(TEXTS[text]).input_ids
        start = position // 6 * 6
        assert ids[position] == token and position != start
        piece = torch.tensor([ids[start : start + 6]])
        made = run(speaking, piece, capture=SITES)
        for site in SITES:
            found = store.activations(site).batch(torch.tensor([row])).x[0]
            torch.testing.assert_close(found.double(), made[site][0, position - start].flatten(), atol=1e-5, rtol=1e-5)
        seen.add((text, position))
    ids = [speaking.tokenizer(text).input_ids for text in TEXTS]
    assert seen == {(t, p) for t, tokens in enumerate(ids) for p in range(len(tokens)) if p % 6}


def test_a_killed_harvest_goes_on_to_the_same_store(speaking, tmp_path, small_shards):
    whole = harvest_texts(speaking, TEXTS, SITES, tmp_path / "whole", context=6)
    with pytest.raises(Killed):
        harvest_texts(speaking, TEXTS, SITES, tmp_path / "cut", context=6, progress=killed_after(1))
    assert not Store.open(tmp_path / "cut").complete
    ran = []
    cut = harvest_texts(
        speaking, TEXTS, SITES, tmp_path / "cut", context=6, progress=lambda x, _: ran.append(len(x)) or x
    )
    assert ran == [len(whole.shards) - 1]
    assert cut.shards == whole.shards
    harvest_texts(speaking, TEXTS, SITES, tmp_path / "cut", context=6, progress=lambda x, _: ran.append(len(x)) or x)
    assert ran[-1] == 0
    with pytest.raises(InterpError, match="another harvest"):
        harvest_texts(speaking, TEXTS[:3], SITES, tmp_path / "cut", context=6)


def test_a_byte_budget_ends_a_harvest(speaking, tmp_path, small_shards):
    whole = harvest_texts(speaking, TEXTS, SITES, tmp_path / "whole", context=6)
    budget = whole.shards[0].bytes + whole.shards[1].bytes + 2000  # less than a third shard
    store = harvest_texts(speaking, TEXTS, SITES, tmp_path / "part", context=6, max_bytes=budget)
    assert whole.shards[2].bytes > 2000
    assert store.shards == whole.shards[:2] and store.bytes <= budget
    assert store.about["ended"] == f"byte budget, after 2 of {len(whole.shards)} shards"
    with pytest.raises(InterpError, match="smaller than the first shard"):
        harvest_texts(speaking, TEXTS, SITES, tmp_path / "none", max_bytes=100)


def test_activations_that_are_not_finite_stop_a_harvest(speaking, tmp_path):
    model = load(copy.deepcopy(speaking.network), speaking.tokenizer, name="broken")
    with torch.no_grad():  # after loading, which would refuse such weights
        model.network.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    with pytest.raises(ShapeError, match="L1.resid_post is nan at text 0, position 1"):
        harvest_texts(model, TEXTS, ["L1.resid_post"], tmp_path / "store")
    assert not Store.open(tmp_path / "store").shards


def test_refusals_of_texts(speaking, tmp_path):
    for wrong, error, what in [
        (dict(texts=[]), PairError, "No texts"),
        (dict(texts="a text"), PairError, "No texts"),
        (dict(texts=["a", ""]), PairError, "Text 1 has no tokens"),
        (dict(texts=["Hi"]), InterpError, "nothing to keep"),
        (dict(sites=[]), SiteError, "No site"),
        (dict(sites=["L1.attn_pattern"]), SiteError, "no fixed width"),
        (dict(sites=["L9.resid_post"]), SiteError, "3 layers"),
        (dict(first=9, context=9), InterpError, "first=9"),
        (dict(dtype="int8"), InterpError, "int8"),
    ]:
        arguments = dict(texts=TEXTS, sites=SITES) | wrong
        with pytest.raises(error, match=what):
            harvest_texts(speaking, arguments.pop("texts"), arguments.pop("sites"), tmp_path / "store", **arguments)


@pytest.fixture(scope="module")
def shapes():
    torch.manual_seed(0)
    return load(new_pipeline(new_text_encoder(), new_unet()), name="untrained")


def test_rows_of_pictures_are_what_a_run_captures(shapes, tmp_path, small_shards):
    scenes = sample_scenes(3, 1)
    sites = ["mid.0.block_out", "mid.0.resnet_out"]
    store = harvest_pictures(shapes, scenes, sites, tmp_path / "store", when=When(), seed=5, steps=2, guidance=3.0)
    sampling = replace(
        shapes.sampling([full_caption(s) for s in scenes], seeds=0, steps=2, guidance=3.0), seeds=(5, 6, 7)
    )
    made = denoise(shapes, sampling, capture=sites)
    labels = [store.label(name).tolist() for name in ("picture", "branch", "cell", "step")]
    assert len(labels[0]) == 3 * 2 * 2 * made[sites[0]].shape[3] and len(store.shards) == 2
    order = [Branch.COND, Branch.UNCOND]
    for site in sites:
        x = store.activations(site).batch(torch.arange(len(store))).x
        wanted = torch.stack([
            made[site][made.steps.index(step), made.branches.index(order[branch]), picture, cell]
            for picture, branch, cell, step in zip(*labels, strict=True)
        ])  # fmt: skip
        torch.testing.assert_close(x, wanted, atol=1e-4, rtol=1e-4)
    assert labels[3][:2] == [0, 1]  # steps are innermost
    pictures = store.extra("pictures").numpy()
    assert (store.extra("masks").numpy() == seen_masks(pictures).masks).all()
    assert store.about["concepts"] == list(SHAPES_CONCEPTS)
    assert store.texts("factors") == [factors_of(s) for s in scenes]
    assert store.texts("prompts") == [full_caption(s) for s in scenes]


def test_pictures_of_another_pipeline_and_refusals(tmp_path):
    model = described("sd")
    from models.pipelines import PROMPTS

    few = dict(steps=2, guidance=3.0, height=16, width=16)
    store = harvest_pictures(
        model, PROMPTS[:2], ["mid.0.block_out"], tmp_path / "a", when=When(steps=[1], branch=Branch.COND), **few
    )
    assert set(store.label("step").tolist()) == {1} and "concepts" not in store.about
    for inputs, sites, error, what in [
        ([], ["mid.0.block_out"], PairError, "No inputs"),
        (PROMPTS[:1], ["time_embed"], SiteError, "no cells"),
        (PROMPTS[:1], ["mid.0.block_out", "down.0.0.block_out"], SiteError, "different grids"),
        ([PROMPTS[0], sample_scenes(1)[0]], ["mid.0.block_out"], PairError, "not both"),
    ]:
        with pytest.raises(error, match=what):
            harvest_pictures(model, inputs, sites, tmp_path / "b", **few)
