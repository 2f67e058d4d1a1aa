"""An atlas against loops over the store; labels against counts by hand; effects against plain runs."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

import interp
from interp.concepts.atlas import Atlas, atlas
from interp.concepts.coded_rows import BINS, CodedRows, coded_rows
from interp.concepts.graph_result import ConceptGraph
from interp.concepts.labels import FEWEST, cell_labels, label_latents, token_labels
from interp.concepts.levels import ConceptLevel
from interp.concepts.page import browse_graph, page_of, page_of_graph
from interp.concepts.token_effects import token_effects
from interp.dictionaries import TopK, harvest_pictures, harvest_texts
from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.edits import Add
from interp.models.load import load
from interp.models.site import Site
from interp.results import Result
from interp.shapes.pipeline import new_pipeline, new_text_encoder, new_unet
from interp.shapes.scene import sample_scenes

TEXTS = [
    "On Monday the dog, which was old, sat <b>here</b>.", "A cat is (not) a dog. Is it?",
    "By Friday we had 3 cats, 4 dogs and a mouse.", "The end. The end of the end, the very end!",
]  # fmt: skip
SITE = "L1.resid_post"


@pytest.fixture(scope="module")
def harvested(speaking, tmp_path_factory):
    store = harvest_texts(speaking, TEXTS, [SITE], tmp_path_factory.mktemp("texts") / "store")
    dictionary = TopK(store.standardisation(), 40, k=3, seed=1)
    return store, dictionary, coded_rows(dictionary, store.activations())


def dense(store, dictionary):
    x = store.activations().batch(torch.arange(len(store))).x
    return dictionary.encode(x).dense().detach().numpy()


def test_coded_rows_are_the_codes(harvested):
    store, dictionary, rows = harvested
    expected = dense(store, dictionary)
    assert rows.n_rows == len(store) and rows.n_latents == 40
    assert np.array_equal(rows.count, (expected > 0).sum(0)) and rows.count.max() > 3
    group = store.label("text").numpy()
    for latent in range(40):
        np.testing.assert_allclose(rows.column(latent), expected[:, latent], atol=1e-6)
        order = [r for r in np.argsort(-expected[:, latent], kind="stable") if expected[r, latent] > 0]
        assert rows.of(latent)[0].tolist() == order
        # of each text its strongest row, the strongest text first
        wanted = list({group[r]: r for r in reversed(order)}.values())[::-1]
        wanted = sorted(wanted, key=order.index)
        assert rows.strongest(latent, 3, group).tolist() == wanted[:3]
    drawn = rows.histogram([0, 7])
    for number, latent in enumerate((0, 7)):
        on = expected[:, latent][expected[:, latent] > 0]
        assert drawn[number].sum() == len(on)
        inside = [((on >= low) & (on < high)).sum() for low, high in pairwise(BINS)]
        assert drawn[number][1:-1].tolist() == inside[1:-1]


def test_ordinary_examples_are_as_strong_as_asked():
    """Latent 0 is on in row i with strength 10 − i; every row is a text of its own."""
    rows = CodedRows(np.arange(9), 10.0 - np.arange(9), np.array([0, 9, 9]), 9)
    assert rows.spread(0, (0.75, 0.5, 0.25), np.arange(9)).tolist() == [2, 4, 6]
    assert rows.spread(0, (0.5, 0.5), np.arange(9)).tolist() == [4, 5]  # not the same text twice
    assert rows.spread(0, (0.5, 0.5), np.zeros(9, int)).tolist() == [4]
    assert rows.spread(1, (0.5,), np.arange(9)).tolist() == []


def test_texts_around_each_example(speaking, harvested):
    store, dictionary, rows = harvested
    found = atlas(dictionary, store, speaking, n=2, before=3, after=2, rows=rows)
    expected = dense(store, dictionary)
    text, position = store.label("text").numpy(), store.label("position").numpy()
    tokens = [speaking.tokenizer(t).input_ids for t in TEXTS]
    whole = [[speaking.tokenizer.decode([i]) for i in ids] for ids in tokens]
    assert set(found.data["latent"].values) == set(np.flatnonzero((expected > 0).any(0)))
    seen = 0
    for one in (found.data.sel(latent=latent) for latent in found.data["latent"].values):
        for number, row in enumerate(one["row"].values.tolist()):
            if row < 0:
                assert not "".join(one["token"].values[number]) and np.isnan(one["value"].values[number])
                continue
            own, at = whole[text[row]], position[row]
            # the first token of a text is not harvested
            near = [own[p] if 1 <= p < len(own) else "" for p in range(at - 3, at + 3)]
            assert one["token"].values[number].tolist() == near
            strengths = [expected[row + o, int(one["latent"])] if near[3 + o] else 0 for o in range(-3, 3)]
            np.testing.assert_allclose(one["activation"].values[number], strengths, atol=1e-6)
            seen += 1
    assert seen > 40
    latent = int(found.data["latent"][0])
    assert found.example(latent).count("[") >= 1
    assert found.data["example"].values.tolist() == ["strongest 1", "strongest 2", "75 %", "50 %", "25 %"]


def test_an_atlas_saves_draws_and_is_joined(speaking, harvested, tmp_path):
    store, dictionary, rows = harvested
    found = atlas(dictionary, store, speaking, rows=rows)
    latents = found.data["latent"].values[:4].tolist()
    effects = token_effects(speaking, dictionary, SITE, latents, [1.0] * 4, prompts=["The cat", "A dog is"], n_tokens=3)
    joined = found.with_(effects)
    joined.save(tmp_path / "atlas.nc")
    again = Result.load(tmp_path / "atlas.nc")
    assert isinstance(again, Atlas) and repr(again) == repr(joined) and again.of_texts
    assert int(joined.data["kl"].notnull().sum()) == 4 and (joined.data["promoted"][4:] == "").all()
    assert len(found.plot().data[0].x) == found.data.sizes["latent"]
    with pytest.raises(InterpError, match="has kl, kl_random, .* already"):
        joined.with_(effects)
    page = page_of(joined, ["<i>about</i>"])
    assert json.loads(json.dumps(page, allow_nan=False)) == page and page["graph"] is None
    assert [one["id"] for one in page["concepts"]] == [str(i) for i in found.data["latent"].values]
    assert page["concepts"][0]["promoted"] and "promoted" not in page["concepts"][5]


def graph_of(levels):
    """A made-up graph of two levels in which every other pair is an edge."""
    import xarray as xr

    sizes = [len(level.latents) for level in levels]
    ends = np.indices(sizes).reshape(2, -1)
    names = [level.name for level, n in zip(levels, sizes, strict=True) for _ in range(n)]
    node = {name: ("node", np.linspace(0, 1, sum(sizes))) for name in ("frequency", "typical", "spread", "decodable")}
    node["breadth"] = ("node", np.where(np.arange(sum(sizes)) < sizes[0], 1.0, np.nan))
    pair = {
        name: ("pair", np.linspace(-1, 1, ends.shape[1]))
        for name in ("predicted", "effect", "effect_low", "effect_high")
    }
    pair["edge"] = ("pair", np.arange(ends.shape[1]) % 2 == 0)
    latents = [i for level in levels for i in level.latents]
    where = {
        "level": ("node", names),
        "latent": ("node", latents),
        "parent": ("pair", ends[0]),
        "child": ("pair", ends[1] + sizes[0]),
    }
    told = [{"name": lv.name, "site": str(lv.site), "step": lv.step, "dictionary": lv.mark} for lv in levels]
    return ConceptGraph(xr.Dataset(node | pair, where), {"model": "m", "levels": told})


def test_a_graph_with_the_atlases_of_its_levels(speaking, harvested, tmp_path):
    store, dictionary, rows = harvested
    above = harvest_texts(speaking, TEXTS[:2], ["L2.resid_post"], tmp_path / "store")
    other = TopK(above.standardisation(), 10, k=3)
    atlases = {
        "low": atlas(dictionary, store, speaking, rows=rows),
        "high": atlas(other, above, speaking, latents=[0, 1, 2]),
    }
    on = atlases["low"].data["latent"].values[:3].tolist()
    graph = graph_of([ConceptLevel("low", dictionary, on), ConceptLevel("high", other, [1, 9])])
    page = page_of_graph(graph, atlases, [])
    ids = {one["id"]: one for one in page["concepts"]}
    assert {f"low/{i}" for i in on} | {"high/0", "high/1", "high/2"} <= set(ids)
    shown = page["graph"]["nodes"]
    assert [one["concept"] for one in shown] == [*(f"low/{i}" for i in on), "high/1", None]  # no page shows high/9
    assert [one["name"] for one in shown] == graph.names and shown[4]["numbers"]["breadth"] is None
    edges = [(shown[e["parent"]]["name"], shown[e["child"]]["name"]) for e in page["graph"]["edges"]]
    assert edges == list(graph.networkx().edges)
    assert [e["effect"] for e in page["graph"]["edges"]] == [e["effect"] for *_, e in graph.networkx().edges(data=True)]
    browse_graph(tmp_path / "graph.html", graph, atlases)
    assert "m: low → high" in (tmp_path / "graph.html").read_text(encoding="utf-8")
    with pytest.raises(InterpError, match="no level 'higher'. Did you mean 'high'"):
        browse_graph(tmp_path / "x.html", graph, atlases | {"higher": atlases["high"]})
    with pytest.raises(InterpError, match="Level 'high' has no atlas"):
        browse_graph(tmp_path / "x.html", graph, {"low": atlases["low"]})
    with pytest.raises(InterpError, match="of level 'high' is of another site"):
        browse_graph(tmp_path / "x.html", graph, dict.fromkeys(("low", "high"), atlases["low"]))
    with torch.no_grad():
        other.offset.add_(1)
    with pytest.raises(InterpError, match="of level 'high' is of another dictionary"):
        page_of_graph(graph_of([ConceptLevel("low", dictionary, on), ConceptLevel("high", other, [1])]), atlases, [])


def test_effects_are_those_of_plain_runs(speaking, harvested):
    _, dictionary, _ = harvested
    prompts, amounts = ["The cat", "A dog is", "We"], [2.0, 5.0]
    found = token_effects(speaking, dictionary, SITE, [4, 9], amounts, prompts=prompts, n_tokens=4)
    for number, (latent, amount) in enumerate(zip((4, 9), amounts, strict=True)):
        push = Add(Site("resid_post", 1), dictionary.directions([latent])[0] * amount, positions=-1)
        plain = torch.cat([interp.run(speaking, p).last_logits() for p in prompts]).log_softmax(-1)
        pushed = torch.cat([interp.run(speaking, p, [push]).last_logits() for p in prompts]).log_softmax(-1)
        change = (pushed - plain).mean(0)
        top = change.topk(4)
        np.testing.assert_allclose(found.data["promoted_by"].values[number], top.values, atol=1e-4)
        words = [speaking.tokenizer.decode([i]) for i in top.indices.tolist()]
        assert found.data["promoted"].values[number].tolist() == words
        np.testing.assert_allclose(found.data["suppressed_by"].values[number], -(-change).topk(4).values, atol=1e-4)
        kl = (plain.exp() * (plain - pushed)).sum(-1).mean()
        assert float(found.data["kl"][number]) == pytest.approx(float(kl), rel=1e-3)
    assert (found.data["kl_random"] > 0).all() and "2 latents, 3 prompts" in repr(found)


def planted(n_groups=40, seed=0):
    """Latent 0 is label "a" above 1 and noise below, latent 1 is on at random, latent 2 never."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), 12)
    a, b = random.random(len(group)) < 0.25, random.random(len(group)) < 0.3
    columns = np.stack([
        np.where(a, 1.5 + random.random(len(group)), np.where(random.random(len(group)) < 0.5, random.random(len(group)), 0)),
        np.where(random.random(len(group)) < 0.3, random.random(len(group)), 0), np.zeros(len(group)),
    ], 1)  # fmt: skip
    row, value, bounds = [], [], [0]
    for column in columns.T:
        order = [r for r in np.argsort(-column, kind="stable") if column[r] > 0]
        row += order
        value += column[order].tolist()
        bounds.append(len(row))
    return CodedRows(np.array(row), np.array(value), np.array(bounds), len(group)), {"a": a, "b": b}, group


def test_a_planted_label_is_found_and_chance_is_not():
    rows, labels, group = planted()
    found = label_latents(rows, labels, group, shuffles=5)
    first = found.data.sel(latent=0)
    assert found.data["latent"].values.tolist() == [0, 1]  # one that is never on has no name
    assert first["label"].item() == "a" and 1.0 <= float(first["threshold"]) <= 1.6
    assert float(first["f1"]) == float(first["precision"]) == float(first["recall"]) == 1.0
    assert found.data["label"].values[1] == "" and float(found.data["f1"][1]) < 0.6
    assert found.data["chance"].shape == (5, 2) and 0 < float(found.data["chance"].max()) < 0.65
    assert float(first["f1_chance"]) == float(found.data["chance"].sel(name="a").max())
    assert "latent 0: 'a' F1 1.00" in repr(found)
    assert len(found.plot().data[0].x) == 2
    # by hand: the threshold that the first half chose, counted on the second
    second = found.data.sel(latent=1)
    suggesting = np.random.default_rng(0).permutation(40) < 20
    held_out = ~suggesting[group]
    on, true = rows.column(1) > float(second["threshold"]), labels[second["candidate"].item()]
    both = (on & true & held_out).sum()
    assert float(second["precision"]) == pytest.approx(both / (on & held_out).sum())
    assert float(second["recall"]) == pytest.approx(both / (true & held_out).sum())


def test_a_label_that_holds_nearly_everywhere_is_no_name():
    """Latent 0 is "a" exactly; "much" holds in nine rows of ten, and with any latent that is mostly on has a large F1."""
    rows, labels, group = planted()
    much = np.random.default_rng(4).random(rows.n_rows) < 0.9
    found = label_latents(rows, {"much": much, **labels}, group)
    assert found.data["label"].values[0] == "a"
    assert float(found.data["chance"].sel(name="much").min()) > 0.4


def test_equal_codes_fall_on_one_side():
    """Four equal codes per input, three of them of the label: a threshold takes all or none, and F1 counts them so."""
    group = np.repeat(np.arange(40), 8)
    order = np.concatenate([8 * g + np.arange(4) for g in range(40)])
    rows = CodedRows(order, np.ones(160), np.array([0, 160]), 320)
    held = np.isin(np.arange(320) % 8, [0, 1, 2])
    found = label_latents(rows, {"a": held}, group).data.sel(latent=0)
    assert float(found["precision"]) == 0.75 and float(found["recall"]) == 1 and 0 < float(found["threshold"]) < 1


def test_shuffled_labels_get_no_name():
    rows, labels, group = planted()
    moved = {name: np.roll(held, 12 * 17 + 5) for name, held in labels.items()}
    found = label_latents(rows, moved, group, shuffles=8)
    assert (found.data["label"] == "").sum() >= 1 and float(found.data["f1"].max()) < 0.65


def test_labels_of_tokens_and_refusals(speaking, harvested):
    store, _, rows = harvested
    held = token_labels(store, speaking)
    token = store.label("token").numpy()
    words = [speaking.tokenizer.decode([int(i)]).strip().lower() for i in token]
    assert held["an article"].tolist() == [w in ("a", "an", "the") for w in words]
    assert held["a day of the week"].sum() == sum(w in ("monday", "friday") for w in words) == 2
    with pytest.raises(InterpError, match="pattern of 'x' is none"):
        token_labels(store, speaking, {"x": "("})
    with pytest.raises(PairError, match=f"at least {FEWEST} rows"):
        label_latents(rows, held, store.label("text").numpy())
    with pytest.raises(InterpError, match="masks of concepts"):
        cell_labels(store)


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory):
    torch.manual_seed(0)
    model = load(new_pipeline(new_text_encoder(), new_unet()), name="untrained")
    folder = tmp_path_factory.mktemp("pictures") / "store"
    store = harvest_pictures(model, sample_scenes(4, 1), ["mid.0.block_out"], folder, steps=3, guidance=3.0)
    return store, TopK(store.standardisation(), 24, k=2)


def test_pictures_with_the_map_of_a_latent(of_pictures):
    store, dictionary = of_pictures
    found = atlas(dictionary, store, n=2, quantiles=(0.5,))
    expected = dense(store, dictionary)
    labels = {name: store.label(name).numpy() for name in ("picture", "branch", "cell", "step")}
    height, width = store.about["grid"]
    for one in (found.data.sel(latent=latent) for latent in found.data["latent"].values[:6]):
        for number, row in enumerate(one["row"].values.tolist()):
            if row < 0:
                continue
            same = np.all([labels[n] == labels[n][row] for n in ("picture", "branch", "step")], axis=0)
            cells = np.flatnonzero(same)[np.argsort(labels["cell"][same])]
            map_ = expected[cells, int(one["latent"])].reshape(height, width)
            np.testing.assert_allclose(one["activation"].values[number], map_, atol=1e-6)
            picture = store.extra("pictures").numpy()[labels["picture"][row]]
            assert np.array_equal(found.data["pictures"].values[int(one["picture"].values[number])], picture)
            assert int(one["step"].values[number]) == labels["step"][row]
    latent = int(found.data["latent"][0])
    assert found.example(latent).startswith("picture ") and not found.of_texts
    steps = [ConceptLevel(name, dictionary, [latent], step) for step, name in ((0, "noisy"), (2, "clean"))]
    page = page_of_graph(graph_of(steps), {"noisy": found, "clean": found}, [])
    assert page["concepts"][0]["grid"] == [height, width] and page["pictures"][0].startswith("data:image/png;base64,")
    # two levels of one dictionary: a page for each latent, to which both nodes lead
    assert [one["id"] for one in page["concepts"]] == [str(i) for i in found.data["latent"].values]
    assert [one["concept"] for one in page["graph"]["nodes"]] == [str(latent)] * 2
    assert [one["place"] for one in page["graph"]["levels"]] == [f"mid.0.block_out at step {i}" for i in (0, 2)]
    held = cell_labels(store)
    masks, concepts = store.extra("masks").numpy(), store.about["concepts"]
    side = masks.shape[-1] // width
    for name, row in ((concepts[0], 5), (concepts[-1], 40)):
        y, x = divmod(labels["cell"][row], width)
        part = masks[labels["picture"][row], concepts.index(name)][y * side : (y + 1) * side, x * side : (x + 1) * side]
        assert held[name][row] == (part.mean() >= 0.5)


def test_refusals(speaking, harvested, of_pictures):
    store, dictionary, rows = harvested
    with pytest.raises(InterpError, match="give the model whose tokens"):
        atlas(dictionary, store)
    with pytest.raises(ShapeError, match="There is no latent 40"):
        atlas(dictionary, store, speaking, latents=[40], rows=rows)
    with pytest.raises(ShapeError, match="at least one example"):
        atlas(dictionary, store, speaking, n=0, rows=rows)
    with pytest.raises(ShapeError, match="Codes of .* for a store"):
        atlas(dictionary, store, speaking, rows=CodedRows(np.zeros(0, int), np.zeros(0), np.zeros(41, int), 5))
    empty = CodedRows(np.zeros(0, int), np.zeros(0), np.zeros(41, int), len(store))
    with pytest.raises(InterpError, match="No latent is on in any"):
        atlas(dictionary, store, speaking, rows=empty)
    with pytest.raises(InterpError, match="store of texts"):
        token_labels(of_pictures[0], speaking)
    with pytest.raises(InterpError, match="2 latents and 1 amounts"):
        token_effects(speaking, dictionary, SITE, [1, 2], [1.0])
    with pytest.raises(ShapeError, match="not finite"):
        token_effects(speaking, dictionary, SITE, [1], [float("nan")])
    with pytest.raises(ShapeError, match="has no such rows"):
        token_effects(speaking, dictionary, "L1.z", [1], [1.0])
