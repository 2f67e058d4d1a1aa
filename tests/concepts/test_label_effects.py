"""What silencing a latent costs, against plain runs read by the judge."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch

import interp
from interp.concepts.label_effects import _counted, _factor, _scenes, label_effects
from interp.dictionaries import JumpReLU, Standardisation
from interp.errors import InterpError, PairError, ShapeError
from interp.interventions.edits import Latents, Modulate, When
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.shapes.caption import full_caption
from interp.shapes.judge import load_judge
from interp.shapes.reading import compare, ideal
from interp.tasks.image_metrics import as_bytes

SITE = Site("block_out", "up.1.1")
LABELS = {0: "red", 1: "circle", 2: "white"}


@pytest.fixture(scope="module")
def shapes():
    return interp.load("shapes")


def units():
    """Latent 0 is on everywhere and strong, 1 and 2 nowhere."""
    read = Standardisation(torch.zeros(1, 96), torch.ones(1, 1), [str(SITE)], [96])
    dictionary = JumpReLU(read, 3)
    with torch.no_grad():
        dictionary.encoder.zero_()
        dictionary.bias.copy_(torch.tensor([30.0, -1.0, -1.0]))
    return dictionary


def test_what_is_lost_is_what_plain_runs_lose(shapes):
    dictionary = units()
    found = label_effects(shapes, dictionary, SITE, LABELS, n=3, others=2, steps=5)
    unit, judge = dictionary.unit(0), load_judge()
    one = Latents(unit.read[None], unit.write[None], torch.tensor([unit.bias]), torch.tensor([unit.threshold]))
    edit = Modulate(SITE, one, 0.0, when=When(branch=Branch.COND))
    for latent, label in LABELS.items():
        factor = _factor(label)
        scenes = _scenes(Random(f"0 {latent}"), factor, label, 3)
        sampling = shapes.sampling([full_caption(scene) for scene in scenes], seeds=0, steps=5)
        sampling = replace(sampling, seeds=tuple(1_000_000 + i for i in range(3)))
        right = []
        for edits in ([], [edit]):
            pictures = as_bytes(interp.run(shapes, sampling, edits).images)
            seen = judge.judge(pictures).readings()
            right.append([compare(s, ideal(scene))[factor][0] for s, scene in zip(seen, scenes, strict=True)])
        shown = sum(right[0])
        lost = sum(a and not b for a, b in zip(*right, strict=True)) / shown
        data = found.data.sel(latent=latent)
        assert int(data["n_shown"]) == shown > 0
        if latent == 0:
            assert float(data["lost"]) == lost > 0.5 and float(data["lost_by_others_most"]) == 0
        else:
            assert float(data["lost"]) == 0 and float(data["kept"]) == 1
            assert float(data["lost_by_others_most"]) == lost
    assert not found.data["holds"].values[1:].any()
    assert "latent 0, 'red': lost in" in repr(found) and repr(found).index("latent 0") < repr(found).index("latent 1")


def test_counts_by_hand():
    """Of six pictures the first does not show the value; the latent costs four of the others, and the place of one."""
    target = torch.tensor([[0.0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 0]])
    place = torch.tensor([[0.0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]])
    base = {"target": torch.tensor([0.0, 1, 1, 1, 1, 1]), "place": torch.tensor([1.0, 1, 1, 1, 1, 0])}
    counted = _counted(SimpleNamespace(base=base, values={"target": target, "place": place}), ["place"])
    assert counted["n_shown"] == 5 and counted["lost"] == pytest.approx(4 / 5)
    assert counted["kept"] == pytest.approx(4 / 5)  # what was wrong before may stay wrong
    assert counted["lost_by_others"] == counted["lost_by_others_most"] == pytest.approx(1 / 5)
    assert 0.1 < counted["lost_low"] < 0.8 < counted["lost_high"]
    base["target"] = torch.zeros(6)
    assert _counted(SimpleNamespace(base=base, values={"target": target, "place": place}), ["place"])["n_shown"] == 0


def test_refusals(shapes):
    with pytest.raises(PairError, match="No picture can lose 'rde'.*Did you mean 'red'"):
        label_effects(shapes, units(), SITE, {0: "rde", 1: "white"})
    with pytest.raises(InterpError, match="All labels are the same"):
        label_effects(shapes, units(), SITE, {0: "red", 1: "red"})
    with pytest.raises(InterpError, match="each is at least 1"):
        label_effects(shapes, units(), SITE, {})
    with pytest.raises(ShapeError, match="no latent 9"):
        label_effects(shapes, units(), SITE, {0: "red", 9: "white"})
