"""Sites, and TransformerLens's names for them."""

from __future__ import annotations

import pytest

from interp.errors import SiteError
from interp.models.site import HEAD_PARTS, LAYER_PARTS, PARTS, Site

LENS = {
    "hook_embed": Site("embed"),
    "embed.hook_out": Site("embed"),
    "blocks.5.hook_resid_pre": Site("resid_pre", 5),
    "blocks.5.hook_in": Site("resid_pre", 5),
    "blocks.5.hook_resid_mid": Site("resid_mid", 5),
    "blocks.12.hook_resid_post": Site("resid_post", 12),
    "blocks.12.hook_out": Site("resid_post", 12),
    "blocks.0.hook_attn_out": Site("attn_out", 0),
    "blocks.0.attn.hook_out": Site("attn_out", 0),
    "blocks.0.hook_mlp_out": Site("mlp_out", 0),
    "blocks.0.mlp.hook_out": Site("mlp_out", 0),
    "blocks.3.attn.hook_q": Site("q", 3),
    "blocks.3.attn.q.hook_out": Site("q", 3),
    "blocks.3.attn.hook_k": Site("k", 3),
    "blocks.3.attn.k.hook_out": Site("k", 3),
    "blocks.3.attn.hook_v": Site("v", 3),
    "blocks.3.attn.v.hook_out": Site("v", 3),
    "blocks.3.attn.hook_attn_scores": Site("attn_scores", 3),
    "blocks.3.attn.hook_pattern": Site("attn_pattern", 3),
    "blocks.3.attn.hook_z": Site("z", 3),
    "blocks.3.attn.hook_result": Site("head_result", 3),
    "blocks.3.mlp.hook_pre": Site("mlp_pre", 3),
    "blocks.3.mlp.hook_post": Site("mlp_act", 3),
    "ln_final.hook_normalized": Site("final_norm"),
    "ln_final.hook_out": Site("final_norm"),
    "unembed.hook_out": Site("logits"),
}


@pytest.mark.parametrize("name", LENS)
def test_names_of_transformer_lens(name):
    assert Site.parse(name) == LENS[name]
    assert Site.parse(LENS[name].lens_name) == LENS[name]


@pytest.mark.parametrize("part", PARTS)
def test_every_site_reads_its_own_name(part):
    layer = 11 if part in LAYER_PARTS else None
    for head in (None, 0, 10) if part in HEAD_PARTS else (None,):
        site = Site(part, layer, head)
        assert Site.parse(str(site)) == site
        assert Site.parse(site.lens_name) == site.all_heads == Site(part, layer)
        assert hash(Site.parse(str(site))) == hash(site)
    assert part in {site.part for site in LENS.values()}


def test_the_printed_form():
    assert [str(s) for s in (Site("z", 5), Site("z", 5, 3), Site("embed"))] == ["L5.z", "L5H3.z", "embed"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blocks.5.attn.hook_zz", "'blocks.5.attn.hook_z'"),
        ("blocks.7.hook_resid_pos", "'blocks.7.hook_resid_post'"),
        ("blocks.x.hook_resid_pre", "'blocks.0.hook_resid_pre'"),
        ("xblocks.3.hook_resid_pre", "'blocks.3.hook_resid_pre'"),
        ("blocks.3.blocks.4.hook_resid_pre", "'blocks.3.hook_resid_pre'"),
        ("L5.resid_per", "Allowed: .*hook_resid_pre"),
        ("", "Allowed"),
        ("blocks.1.hook_mlp_out\n", "'blocks.1.hook_mlp_out'"),
    ],
)
def test_an_unknown_name_brings_the_nearest(name, hint):
    with pytest.raises(SiteError, match=f"neither a site nor a known hook name.*{hint}"):
        Site.parse(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resid_prr", 1), "no part 'resid_prr'. Did you mean 'resid_pre'"),
        (("z",), "'z' needs a layer; got layer=None"),
        (("embed", 0), "'embed' belongs to no layer; got layer=0"),
        (("logits", 2), "belongs to no layer"),
        (("resid_pre", 1, 0), "'resid_pre' has no heads; got head=0. Parts with heads: q, k, v"),
        (("embed", None, 1), "has no heads"),
    ],
)
def test_impossible_sites_are_refused(arguments, message):
    with pytest.raises(SiteError, match=message.replace("(", r"\(")):
        Site(*arguments)


@pytest.mark.parametrize("name", ["L5.embed", "z", "L5H3.resid_pre", "L1H1.logits"])
def test_impossible_names_are_refused(name):
    with pytest.raises(SiteError, match="needs a layer|belongs to no layer|has no heads"):
        Site.parse(name)
