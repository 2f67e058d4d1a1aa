"""A model with other weights: the old one to the bit, everything untouched shared, the new one as if loaded so."""

import copy

import pytest
import torch
from models.denoisers import described, every_site, sampling, state_of
from models.pipelines import FAMILIES, pipeline

from interp.errors import ShapeError, SiteError
from interp.interventions.denoise import denoise
from interp.models.load import load
from interp.models.reweighted import weights_of, with_weights

PATHS = {
    "sd": ["unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", "text_encoder.encoder.layers.1.mlp.fc2.weight"],
    "sdxl": ["unet.down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_v.weight", "text_encoder_2.encoder.layers.0.self_attn.out_proj.weight"],
    "pixart": ["transformer.transformer_blocks.1.attn2.to_k.weight"],
    "dit": ["transformer.transformer_blocks.2.attn1.to_k.weight"],
    "sd3": ["transformer.transformer_blocks.0.attn.add_k_proj.weight"],
    "flux": ["transformer.single_transformer_blocks.1.attn.to_k.weight"],
}  # fmt: skip


def paths(model, family):
    """The paths above, whichever of transformers' two layouts of CLIP is installed."""
    known = {name for root in ("unet", "transformer", "text_encoder", "text_encoder_2") if hasattr(model.pipeline, root)
             for name in (f"{root}.{n}" for n, _ in getattr(model.pipeline, root).named_parameters())}  # fmt: skip
    return [p if p in known else p.replace(".encoder.layers", ".text_model.encoder.layers") for p in PATHS[family]]


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_those_of_a_pipeline_built_with_the_new_weights(family):
    made = pipeline(family)
    model = load(made, name=family)
    names = paths(model, family)
    new = {path: value * 1.5 + 0.01 for path, value in weights_of(model, names).items()}
    before, hash_before, state = denoise(model, sampling(family, 1)).images, model.weights_hash, state_of(model)
    other = with_weights(model, new, "other")
    pictures = denoise(other, sampling(family, 1)).images
    fresh = pipeline(family)
    with torch.no_grad():
        for path, value in new.items():
            component, _, inner = path.partition(".")
            getattr(fresh, component).get_parameter(inner).copy_(value)
    assert torch.equal(pictures, denoise(load(fresh, name="fresh"), sampling(family, 1)).images)
    assert not torch.equal(pictures, before)
    assert torch.equal(denoise(model, sampling(family, 1)).images, before)  # and the old one is what it was
    assert state_of(model) == state and load(made, name="again").weights_hash == hash_before != other.weights_hash


@pytest.mark.parametrize("family", ["sd", "pixart"])
def test_captures_of_the_new_model_are_its_own(family):
    """Every site of the new handle looks at the new modules."""
    model = described(family)
    names = paths(model, family)
    other = with_weights(model, {path: value * 2 for path, value in weights_of(model, names).items()}, "other")
    fresh = load(other.pipeline, name="fresh")
    sites = every_site(other)
    assert sites == every_site(fresh)
    here, there = (denoise(m, sampling(family, 1, steps=2, model=m), (), sites) for m in (other, fresh))
    assert all(torch.equal(here[site], there[site]) for site in sites)


def test_everything_untouched_is_shared_and_nothing_lands_on_the_old_modules():
    model = described("sd")
    path = PATHS["sd"][0]
    other = with_weights(model, {path: weights_of(model, [path])[path] + 1}, "other")
    old, new = dict(model.network.named_modules()), dict(other.network.named_modules())
    changed = [name for name in old if old[name] is not new[name]]
    owner = path.removeprefix("unet.").removesuffix(".weight")
    assert changed == [name for name in old if owner == name or owner.startswith(f"{name}.") or not name]
    assert other.pipeline.vae is model.pipeline.vae and other.pipeline.text_encoder is model.pipeline.text_encoder
    handle = other.network.get_submodule(owner).register_forward_hook(lambda *_: None)
    assert not model.network.get_submodule(owner)._forward_hooks
    handle.remove()
    shared = {p.data_ptr() for p in model.network.parameters()} & {p.data_ptr() for p in other.network.parameters()}
    assert len(shared) == len(list(model.network.parameters())) - 1


def test_nothing_changed_is_the_same_network():
    model = described("sd")
    assert with_weights(model, {}, "same").network is model.network


def test_a_module_under_two_names_becomes_one_shell():
    made = pipeline("sd")
    attention = made.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    made.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2 = attention
    model = load(made, name="tied")
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    other = with_weights(model, {path: weights_of(model, [path])[path] * 2}, "other")
    first = other.network.mid_block.attentions[0].transformer_blocks[0].attn2
    assert first is other.network.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    assert first is not attention


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        ("unet.conv_inn.weight", torch.zeros(1), SiteError, "conv_in.weight"),
        ("unett.conv_in.weight", torch.zeros(1), SiteError, "no weight 'unett"),
        ("unet.conv_in.bias", torch.zeros(3), ShapeError, r"is \(8,\); got \(3,\)"),
        ("unet.conv_in.bias", torch.full((8,), float("nan")), ShapeError, "NaN or infinite"),
    ],
)
def test_what_is_refused(path, value, error, message):
    with pytest.raises(error, match=message):
        with_weights(described("sd"), {path: value.double()}, "other")


def test_a_copy_of_a_pipeline_keeps_its_settings():
    """What `copy.copy` of a pipeline must do for this to work."""
    made = pipeline("sd")
    other = copy.copy(made)
    other.unet = made.unet
    assert other.config.keys() == made.config.keys() and other.components.keys() == made.components.keys()
