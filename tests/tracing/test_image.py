"""Causal tracing of pictures: planted paths are found, a model without any shows nothing, and sweeps equal plain runs."""

from dataclasses import dataclass
from inspect import unwrap

import numpy as np
import pytest
import torch
from models.denoisers import changed, words_enter_at

from interp.errors import InterpError, PairError, SiteError
from interp.interventions.denoise import denoise
from interp.interventions.edits import Replace, UnderPrompt, When
from interp.models.guidance import Branch
from interp.models.site import Site
from interp.results import Result
from interp.tracing import ImageTraceResult, trace, trace_image


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Towards:
    """Minus the distance to the clean picture of the same row."""

    clean: torch.Tensor
    name: str = "closeness"
    unit: str = "of full range"

    def values(self, images, example):
        return -(images - self.clean[example]).square().mean((1, 2, 3)).sqrt()


PROMPT = "a red circle on a blue square"
SETTINGS = dict(attribute="red", replacement="green", seeds=2, steps=4, guidance=3.0)


def traced(model, **changes):
    clean = denoise(model, model.sampling(PROMPT, seeds=range(2), steps=4, guidance=3.0))
    return trace(model, PROMPT, metrics=[Towards(clean.images)], **{**SETTINGS, "window": 4, **changes})


@pytest.mark.parametrize("address", ["down.0.1", "mid.0", "up.1.1"])
def test_a_planted_path_is_found(address):
    found = traced(changed(words_enter_at(address)))
    effect = found.data["closeness_mean"].values[:, 0] - float(found.data["closeness_corrupted"].mean())
    blocks = [str(b) for b in found.data["block"].values]
    assert blocks[int(effect.argmax())] == address
    # All of the difference passes there, so restoring it in every step gives the clean picture; nowhere else does any.
    np.testing.assert_allclose(found.data["closeness"].sel(block=address).values, 0, atol=1e-9)
    assert np.abs(np.delete(effect, blocks.index(address))).max() < 1e-9
    if address != "mid.0":  # through which so little passes here that a ratio is refused
        np.testing.assert_allclose(found.recovered()["recovered"].sel(block=address).values, 1, atol=1e-6)


def test_where_no_path_is_nothing_is_found():
    def cut(unet):
        for path, module in unet.named_modules():
            if path.endswith("attn2"):
                module.to_out[0].weight.zero_()

    found = traced(changed(cut))
    assert np.ptp(found.data["closeness"].values) < 1e-9
    with pytest.raises(PairError, match="differs by"):
        found.recovered()


@pytest.mark.parametrize("matching", ["state", "trajectory"])
def test_cells_are_plain_runs(matching):
    model = changed()
    found = traced(model, matching=matching, window=2, stride=2)
    clean = denoise(model, model.sampling(PROMPT, seeds=range(2), steps=4, guidance=3.0), (), ["cross_attn_out"])
    base = model.sampling("a green circle on a blue square", seeds=range(2), steps=4, guidance=3.0)
    for address, start in (("up.1.1", 0), ("down.1.0", 2)):
        site = next(site for site in model.sites("cross_attn_out") if site.layer == address)
        value = UnderPrompt(PROMPT) if matching == "state" else clean
        when = When(steps=[start, start + 1], branch=Branch.COND if matching == "state" else None)
        images = denoise(model, base, [Replace(site, value, when=when)]).images
        expected = Towards(clean.images).values(images, torch.arange(2)).numpy()
        cell = found.data["closeness"].sel(block=address).values[start // 2]
        np.testing.assert_allclose(cell, expected, rtol=0, atol=1e-9)
    naive = traced(model, matching=matching, window=2, stride=2, exact="naive")
    np.testing.assert_allclose(found.data["closeness"].values, naive.data["closeness"].values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("part", ["embed", "resid_post", "attn_out", "mlp_out"])
def test_a_text_encoder_by_layer_and_token(part):
    """Against one run per cell, with the clean run's state written at one token of one layer by hand."""
    model = changed()
    found = traced(model, part=part, window=None)
    assert found.data["closeness_mean"].dims == ("block", "pos")
    addresses = [str(block) for block in found.data["block"].values]
    assert addresses == (["text"] if part == "embed" else ["text.0", "text.1", "text.2"])
    tokens = [str(token) for token in found.data["token"].values]
    assert "red" in tokens and tokens.index("red") == 2
    for layer, address in enumerate(addresses):
        clean = model.sampling(PROMPT, seeds=range(2), steps=4, guidance=3.0)
        base = model.sampling(PROMPT.replace("red", "green"), seeds=range(2), steps=4, guidance=3.0)
        run = denoise(model, clean, (), [Site(part, address)])
        for position in (1, 2, 5):
            value = run[Site(part, address)][run.branches.index(Branch.COND)][:, position : position + 1]
            edit = Replace(Site(part, address), value, positions=[position], when=When(branch=Branch.COND))
            images = denoise(model, base, [edit]).images
            expected = Towards(denoise(model, clean).images).values(images, torch.arange(2)).numpy()
            cell = found.data["closeness"].values[layer, position]
            np.testing.assert_allclose(cell, expected, rtol=0, atol=1e-9)
    # What stands before the word cannot know of it: known without running.
    before = found.data["closeness"].values[:, :2] - found.data["closeness_corrupted"].values
    np.testing.assert_array_equal(before, 0)
    assert found.provenance["rows_skipped"] >= 2 * 2 * len(addresses)
    if part == "embed":  # the one place where the words differ
        np.testing.assert_allclose(found.data["closeness"].values[0, 2], 0, atol=1e-9)
    assert "token" in found.summary() and found.plot().data


def test_windows_overlap_and_are_named():
    found = traced(changed(), window=None)
    assert found.data["window"].values.tolist() == ["0–1", "1–2", "2–3"]
    figure = found.plot()
    assert figure.layout.xaxis.ticktext == ("0–1", "1–2", "2–3")
    assert figure.layout.xaxis.title.text == "denoising steps"


def test_pictures_are_drawn():
    found = traced(changed(), window=2)
    figure = found.plot_pictures()
    assert len(figure.layout.images) == 2 * (2 + 3 + 1)  # seeds × (clean, corrupted, three cells, difference)
    texts = [annotation.text for annotation in figure.layout.annotations]
    assert "clean" in texts and "seed 1" in texts


def test_noise_on_the_word_and_nowhere_else():
    model = changed()
    found = traced(model, corruption="noise", noise=3.0)
    assert found.provenance["corrupted"] == PROMPT
    assert (found.data["closeness_corrupted"] < -1e-4).all()
    weaker = traced(model, corruption="noise", noise=1e-9)
    np.testing.assert_allclose(weaker.data["closeness_corrupted"].values, 0, atol=1e-6)


def test_a_result_is_saved_loaded_and_drawn(tmp_path):
    found = traced(changed(), window=2)
    assert isinstance(found, ImageTraceResult)
    found.save(tmp_path / "trace.nc")
    again = Result.load(tmp_path / "trace.nc")
    assert isinstance(again, ImageTraceResult) and again.data.identical(found.data)
    figure = found.plot()
    assert figure.data and "state-matched" in found.title
    assert "rows run" in found.summary()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attribute": "purple"}, PairError, "occurs 0 times"),
        ({"attribute": "a"}, PairError, "occurs 2 times"),
        ({"part": "cross_attn_ou"}, SiteError, "cross_attn_out"),
        ({"blocks": ["up.9.0"]}, SiteError, "no block 'up.9.0'"),
        ({"window": 5}, InterpError, "window of 5"),
        ({"stride": 0}, InterpError, "stride of 0"),
        ({"part": "embed", "replacement": "dark green"}, PairError, "as many tokens"),
        ({"part": "resid_mid"}, SiteError, "resid_mid"),
    ],
)
def test_what_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        traced(changed(), **changes)


def test_another_corruption():
    with pytest.raises(InterpError, match="'replacement' or 'noise'"):  # without the tests' type checks
        unwrap(trace_image)(changed(), PROMPT, attribute="red", corruption="swap")


def test_a_picture_needs_an_attribute_and_a_text_does_not_take_one():
    with pytest.raises(PairError, match="attribute"):
        trace(changed(), PROMPT)
    with pytest.raises(PairError, match="stand in place"):
        trace_image(changed(), "two stars on a square", attribute="stars", metrics=[], seeds=1, steps=2)
