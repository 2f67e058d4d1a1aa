"""The linear maps of a prompt: where they are, and that what they are said to read is what they read."""

import pytest
import torch
from models.denoisers import described, options
from models.pipelines import PROMPTS

from interp.errors import SiteError
from interp.interventions.denoise import denoise
from interp.models.projections import projections, states_read
from interp.models.reweighted import weights_of


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart"])
def test_keys_and_values_are_the_map_of_what_is_said_to_be_read(family):
    model = described(family)
    found = projections(model, ["cross_k", "cross_v"])
    assert {str(one.site) for one in found} == {str(s) for p in ("cross_k", "cross_v") for s in model.sites(p)}
    run = denoise(
        model, model.sampling(PROMPTS[:2], steps=1, guidance=1.0, height=16, width=24), (), [one.site for one in found]
    )
    for one in found:
        assert torch.equal(weights_of(model, [one.path])[one.path], one.module.weight)
        states, mask = states_read(model, one, PROMPTS[:2])
        seen = run[one.site][0, 0].flatten(-2)
        with torch.no_grad():
            torch.testing.assert_close(one.module(states)[mask], seen[mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "site"),
    [("sd", "text.1.attn_out"), ("sd", "text.2.mlp_out"), ("sdxl", "text2.0.mlp_out"), ("sd3", "text2.1.attn_out")],
)
def test_projections_of_text_encoders_read_what_makes_their_output(family, site):
    model = described(family)
    (one,) = projections(model, [site])
    states, mask = states_read(model, one, PROMPTS[:2])
    extra = {k: v for k, v in options(family).items() if k in ("height", "width")}
    seen = denoise(model, model.sampling(PROMPTS[:2], steps=1, guidance=1.0, **extra), (), [site])[site][0]
    assert mask.all()
    with torch.no_grad():
        torch.testing.assert_close(one.module(states), seen, rtol=0, atol=1e-12)


def test_text_encoders_come_first_in_forward_order():
    model = described("sdxl")
    found = projections(model, ["cross_k", "text2.0.mlp_out", "text.1.mlp_out", "text.1.attn_out"])
    assert [str(one.site) for one in found[:3]] == ["text.1.attn_out", "text.1.mlp_out", "text2.0.mlp_out"]


def test_masked_padding_does_not_count():
    model = described("pixart")
    (one, *_) = projections(model, ["cross_k"])
    _, mask = states_read(model, one, ["red circle"])
    assert mask.sum() == 3  # two words and the end


@pytest.mark.parametrize(
    ("family", "where", "message"),
    [
        ("dit", ["cross_k"], "classes and no text"),
        ("sd3", ["cross_k"], "joint attention"),
        ("flux", ["cross_v"], "joint attention"),
        ("sd", ["up.1.0.cross_q"], "no linear map of the prompt"),
        ("sd", ["text.0.resid_post"], "no linear map of the prompt"),
        ("pixart", ["text.0.resid_post"], "no linear map of the prompt"),
        ("sd", ["up.9.0.cross_k"], "no block 'up.9.0'"),
    ],
)
def test_what_is_refused(family, where, message):
    with pytest.raises(SiteError, match=message):
        projections(described(family), where)


def test_a_norm_before_keys_and_values_is_refused():
    model = described("sd")
    attention = model.network.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
    attention.norm_cross = torch.nn.Identity()
    try:
        with pytest.raises(SiteError, match="norm_cross"):
            projections(model, ["mid.0.cross_k"])
    finally:
        attention.norm_cross = None
