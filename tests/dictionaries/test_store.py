"""Stores: what was put in comes out; cut-off shards, NaN and unknown names are noticed."""

from __future__ import annotations

import json

import pytest
import torch

from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.store import Store
from interp.errors import InterpError, LoadError, ShapeError, SiteError

SHARDS = (7, 12, 3)


def rows(number, n, seed=0):
    generator = torch.Generator().manual_seed(100 * seed + number)
    x = {"a": torch.randn(n, 4, generator=generator) * 5 + 2, "b": torch.randn(n, 3, generator=generator)}
    return x, {"place": torch.arange(n) + 100 * number, "step": torch.randint(0, 3, (n,), generator=generator)}


@pytest.fixture
def store(tmp_path):
    made = Store.create(tmp_path / "store", "mark", {"model": "none"}, {"a": 4, "b": 3}, "float32", 3)
    for number, n in enumerate(SHARDS):
        x, labels = rows(number, n)
        made.append(x, labels, {"pictures": torch.full((2, 5), number)}, {"prompts": [f"p{number}", "q"]})
    made.finish("all inputs")
    return made


def whole(name):
    return torch.cat([rows(number, n)[0][name] for number, n in enumerate(SHARDS)])


def labels(name):
    return torch.cat([rows(number, n)[1][name] for number, n in enumerate(SHARDS)])


def test_rows_come_out_in_any_order(store):
    opened = Store.open(store.folder)
    assert (len(opened), opened.complete, opened.sites) == (sum(SHARDS), True, ("a", "b"))
    opened.verify()
    order = torch.tensor([21, 0, 7, 6, 18, 19, 0])
    batch = opened.activations("b", "a", write=["a"]).batch(order)
    assert torch.equal(batch.x, torch.cat([whole("b"), whole("a")], 1)[order])
    assert torch.equal(batch.target, whole("a")[order]) and batch.bins is None
    binned = opened.activations("a", bins=[[0, 2], [1]]).batch(order)
    assert torch.equal(binned.bins, (labels("step") == 1).long()[order]) and binned.target is None
    assert torch.equal(opened.label("place"), labels("place"))
    assert opened.extra("pictures")[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert opened.texts("prompts") == ["p0", "q", "p1", "q", "p2", "q"]


def test_standardisation_is_that_of_the_rows(store):
    both = torch.cat([whole("a"), whole("b")], 1)
    for bins, of in ((None, torch.zeros(22).long()), ([[1], [2, 0]], (labels("step") != 1).long())):
        n = 1 if bins is None else 2
        wanted = Standardisation.from_moments(Moments.of(both, of, n), ("a", "b"), (4, 3), bins)
        found = store.standardisation("a", "b", bins=bins)
        torch.testing.assert_close(found.mean, wanted.mean)
        torch.testing.assert_close(found.scale, wanted.scale)
        assert (found.sites, found.steps) == (wanted.sites, wanted.steps)


def test_rows_across_steps_are_a_cells_activations_side_by_side(tmp_path):
    store = Store.create(tmp_path / "steps", "", {}, {"a": 4, "b": 3}, "float32", 5)
    parts = []
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        x = {"a": torch.randn(6, 3, 4, generator=generator), "b": torch.randn(6, 3, 3, generator=generator)}
        parts.append(x)
        store.append(
            {site: rows.flatten(0, 1) for site, rows in x.items()}, {"step": torch.tensor([0, 2, 4]).repeat(6)}
        )
    assert store.kept_steps == [0, 2, 4]
    found = store.activations("b", "a", across_steps=True)
    assert len(found) == 12
    order = torch.tensor([11, 0, 6])
    both = {site: torch.cat([part[site] for part in parts]) for site in ("a", "b")}
    wanted = torch.cat([both[site][order].flatten(1) for site in ("b", "a")], 1)
    assert torch.equal(found.batch(order).x, wanted)
    standard = store.standardisation("b", "a", across_steps=True)
    assert standard.sites == ("b@0", "b@2", "b@4", "a@0", "a@2", "a@4") and standard.widths == (3, 3, 3, 4, 4, 4)
    out = standard.apply_to(found.batch(torch.arange(12)).x)
    for part in out.split(standard.widths, 1):
        assert float(part.var(0, correction=0).mean()) == pytest.approx(1, abs=1e-4)
    for call in (store.activations, store.standardisation):
        with pytest.raises(ShapeError, match="cross steps"):
            call("a", bins=[[0, 1, 2, 3, 4]], across_steps=True)


def test_a_store_that_was_cut_off_ends_before_the_damage_and_says_so(store):
    file = store.folder / "shard-00001.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-40])
    with pytest.warns(UserWarning, match="was cut off .* 1 of 3 shards and 7 rows"):
        opened = Store.open(store.folder)
    assert len(opened) == 7 and not opened.complete
    assert torch.equal(opened.activations("a").batch(torch.arange(7)).x, whole("a")[:7])
    Store.open(store.folder)  # repaired: nothing more to say


def test_a_missing_shard(store):
    (store.folder / "shard-00000.safetensors").unlink()
    with pytest.warns(UserWarning, match="is missing: the store now ends before it, with 0 of 3 shards"):
        opened = Store.open(store.folder)
    with pytest.raises(ShapeError, match="holds no rows"):
        opened.standardisation("a")


def test_a_changed_byte_is_found_by_its_digest(store):
    file = store.folder / "shard-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(LoadError, match="shard-00002.* its digest differs"):
        Store.open(store.folder).verify()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused_with_where(store, value):
    x, where = rows(3, 5)
    x["b"][4, 1] = value
    with pytest.raises(ShapeError, match=rf"b is {value} at place 304, step {int(where['step'][4])}, channel 1"):
        store.append(x, where)
    assert len(Store.open(store.folder)) == sum(SHARDS)


def test_what_is_too_large_for_its_type_is_refused(tmp_path):
    half = Store.create(tmp_path / "half", "", {}, {"a": 4, "b": 3}, "float16", 3)
    x, where = rows(0, 5)
    x["a"][2, 3] = 1e5
    with pytest.raises(ShapeError, match="100000 at place 2, .* too large for torch.float16"):
        half.append(x, where)


def test_half_precision_is_kept_and_read(tmp_path):
    half = Store.create(tmp_path / "half", "", {}, {"a": 4, "b": 3}, "bfloat16", 3)
    x, where = rows(0, 5)
    half.append(x, where)
    read = Store.open(half.folder).activations("a").batch(torch.tensor([4, 1])).x
    assert torch.equal(read, x["a"].bfloat16()[[4, 1]])


def test_names_that_are_not_there(store, tmp_path):
    with pytest.raises(SiteError, match="c was not harvested"):
        store.activations("c")
    with pytest.raises(SiteError, match="Name the sites, of a, b"):
        store.standardisation()
    with pytest.raises(InterpError, match="keeps no 'label.plaec'. Did you mean 'place'"):
        store.label("plaec")
    with pytest.raises(InterpError, match="keeps no 'prompt'. Did you mean 'prompts'"):
        store.texts("prompt")
    for bins in ([[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2, 3]]):
        with pytest.raises(ShapeError, match="must name each of the steps"):
            store.standardisation("a", bins=bins)
    with pytest.raises(InterpError, match="float31"):
        Store.create(tmp_path / "x", "", {}, {"a": 1}, "float31", 1)
    with pytest.raises(LoadError, match="no index.json"):
        Store.open(tmp_path)


@pytest.mark.parametrize("damage", ["{", '{"format": "interp-activations-1"}', "[]"])
def test_a_damaged_index(store, damage):
    (store.folder / "index.json").write_text(damage)
    with pytest.raises(LoadError, match="is damaged"):
        Store.open(store.folder)


def test_an_index_of_another_version(store):
    index = json.loads((store.folder / "index.json").read_text())
    (store.folder / "index.json").write_text(json.dumps(index | {"format": "interp-activations-9"}))
    with pytest.raises(LoadError, match="format 'interp-activations-9'"):
        Store.open(store.folder)
