"""Dictionaries on disk: our own folders, and those of SAELens against its formulas."""

from __future__ import annotations

import json

import pytest
import torch
from dictionaries.kinds import LATENTS, MAKERS, K
from safetensors.torch import load_file, save_file

from interp.dictionaries.kinds import load, save
from interp.dictionaries.saelens import read_saelens, write_saelens
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.topk import TopK
from interp.errors import InterpError, LoadError


def shaken(dictionary, rows, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in dictionary.named_parameters():
            if name == "log_threshold":
                p.copy_(torch.rand(p.shape, generator=generator).log())
            else:
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
        dictionary.atoms.div_(dictionary.atoms.norm(dim=1, keepdim=True))
        dictionary.calibrate(dictionary.read.apply_to(rows))
    return dictionary


@pytest.mark.parametrize("kind", MAKERS)
def test_saved_and_loaded(kind, planted, tmp_path):
    d = shaken(MAKERS[kind](planted.read), planted.x[:500])
    save(d, tmp_path / "d", {"from": "a test"})
    again = load(tmp_path / "d")
    assert (type(again), again.settings(), again.read.sites) == (type(d), d.settings(), d.read.sites)
    assert torch.equal(again.encode(planted.x[:50]).dense(), d.encode(planted.x[:50]).dense())
    assert torch.equal(again(planted.x[:50]), d(planted.x[:50]))


def test_transcoders_and_step_bins_are_saved(planted, tmp_path):
    bins = torch.arange(4096) % 2
    read = Standardisation.from_moments(Moments.of(planted.x, bins, 2), ("a", "b"), (10, 6), [[0, 1], [2]])
    write = Standardisation.from_moments(Moments.of(planted.x[:, :5], bins, 2), ("c",), (5,), [[0, 1], [2]])
    d = TopK(read, LATENTS, K, write=write, conditioned=True).double()
    save(d, tmp_path)
    again = load(tmp_path)
    assert again.read.steps == ((0, 1), (2,)) and again.atoms.dtype == torch.float64
    assert torch.equal(again(planted.x, bins), d(planted.x, bins))
    with pytest.raises(InterpError, match="writes and does not read"):
        write_saelens(d, tmp_path)
    with pytest.raises(InterpError, match="several step bins"):
        write_saelens(TopK(read, LATENTS, K), tmp_path)


def test_damaged_and_unknown_folders(planted, tmp_path):
    with pytest.raises(LoadError, match="no dictionary in"):
        load(tmp_path)
    save(TopK(planted.read, LATENTS, K), tmp_path)
    record = json.loads((tmp_path / "dictionary.json").read_text())
    for change, what in [({"kind": "topq"}, "kind 'topq'. Did you mean 'topk'"), ({"format": "x"}, "format 'x'")]:
        (tmp_path / "dictionary.json").write_text(json.dumps(record | change))
        with pytest.raises(LoadError, match=what):
            load(tmp_path)
    (tmp_path / "dictionary.json").write_text(json.dumps(record))
    file = tmp_path / "dictionary.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(LoadError, match="not what was written"):
        load(tmp_path)
    (tmp_path / "dictionary.json").write_text("{")
    with pytest.raises(LoadError, match="damaged"):
        load(tmp_path)
    with pytest.raises(InterpError, match="about"):
        save(TopK(planted.read, LATENTS, K), tmp_path, {"x": torch.ones(1)})


def theirs(folder, x):
    """SAELens's inference, from its files: codes and reconstructions."""
    cfg, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    centred = x - w["b_dec"] * cfg["apply_b_dec_to_input"]
    kind = cfg["architecture"]
    if kind == "matching_pursuit":
        codes = torch.zeros(len(x), cfg["d_sae"])
        for _ in range(cfg["max_iterations"]):
            value, best = (centred @ w["W_dec"].T).max(1)
            value = value.relu()[:, None]
            codes = codes.scatter_add(1, best[:, None], value)
            centred = centred - value * w["W_dec"][best]
        return codes, codes @ w["W_dec"] + w["b_dec"]
    z = centred @ w["W_enc"] + w["b_gate" if kind == "gated" else "b_enc"]
    if kind == "topk":
        norm = w["W_dec"].norm(dim=1) if cfg["rescale_acts_by_decoder_norm"] else torch.ones(cfg["d_sae"])
        z = z * norm
        codes = z.relu() * (z >= z.sort(1, descending=True).values[:, cfg["k"] - 1 : cfg["k"]])
        return codes, (codes / norm) @ w["W_dec"] + w["b_dec"]
    if kind == "gated":
        codes = (z > 0) * (centred @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    else:
        codes = z.relu() * (z > (w["threshold"] if kind == "jumprelu" else 0))
    return codes, codes @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_written_is_the_same_dictionary_by_saelens_formulas(kind, planted, tmp_path):
    d = shaken(MAKERS[kind](planted.read), planted.x[:500])
    if hasattr(d, "threshold"):
        d.threshold.mul_(0.999)
    write_saelens(d, tmp_path, model="a model")
    x = planted.x[:200]
    codes, out = theirs(tmp_path, x)
    factor = float(d.read.scale) if kind == "matching_pursuit" else 1.0
    torch.testing.assert_close(codes, factor * d.encode(x).dense().detach(), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(out, d(x).detach(), atol=5e-5, rtol=1e-4)
    again = read_saelens(tmp_path)
    torch.testing.assert_close(again.encode(x).dense().detach(), codes, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(again(x).detach(), out, atol=5e-5, rtol=1e-4)


def by_hand(folder, like, seed=3, **cfg):
    """A folder as SAELens writes it, with decoder rows of any length."""
    generator = torch.Generator().manual_seed(seed)
    d_in, d_sae = 16, 30
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= {"b_gate": (d_sae,), "b_mag": (d_sae,), "r_mag": (d_sae,)} if like == "gated" else {"b_enc": (d_sae,)}
    w = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    if like == "jumprelu":
        w["threshold"] = torch.randn(d_sae, generator=generator) / 2  # SAELens cuts negative ones off by its ReLU
    save_file(w, folder / "sae_weights.safetensors")
    about = {"d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
    about |= {"normalize_activations": "none", "reshape_activations": "none", "architecture": like}
    about |= {"metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.5.hook_resid_post"}}
    (folder / "cfg.json").write_text(json.dumps(about | cfg))


@pytest.mark.parametrize(
    ("architecture", "cfg"),
    [
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False, "normalize_activations": "expected_average_only_in"}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
        ("jumprelu", {}),
        ("jumprelu", {"apply_b_dec_to_input": False}),
        ("gated", {}),
        ("gated", {"apply_b_dec_to_input": False}),
    ],
)
def test_a_folder_by_hand_is_read_as_saelens_would_run_it(architecture, cfg, planted, tmp_path):
    by_hand(tmp_path, architecture, **cfg)
    d = read_saelens(tmp_path)
    assert d.read.sites == ("L5.resid_post",)
    x = planted.x[:100]
    codes, out = theirs(tmp_path, x)
    assert 0 < float((codes > 0).float().mean()) < 0.9
    torch.testing.assert_close(d.encode(x).dense().detach(), codes, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(d(x).detach(), out, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(("architecture", "widths"), [("batchtopk", None), ("matryoshka_batchtopk", [10, 30])])
def test_a_training_folder_is_read_with_its_threshold(architecture, widths, planted, tmp_path):
    by_hand(tmp_path, architecture, k=4.5, rescale_acts_by_decoder_norm=True, matryoshka_widths=widths)
    w = load_file(tmp_path / "sae_weights.safetensors")
    save_file(w | {"topk_threshold": torch.tensor(0.7, dtype=torch.float64)}, tmp_path / "sae_weights.safetensors")
    d = read_saelens(tmp_path)
    z = ((planted.x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * w["W_dec"].norm(dim=1)
    torch.testing.assert_close(d.encode(planted.x).dense().detach(), z * (z > 0.7), atol=1e-4, rtol=1e-4)
    assert d.k == 4.5


def test_refusals(planted, tmp_path):
    with pytest.raises(LoadError, match="no folder of SAELens"):
        read_saelens(tmp_path)
    for cfg, what in [
        ({"architecture": "topkk"}, "architecture 'topkk', which is not known here. Did you mean 'topk'"),
        ({"architecture": "temporal"}, "'temporal'"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"architecture": "jumprelu"}, "needs 'threshold'"),
    ]:
        by_hand(tmp_path, "standard", **cfg)
        with pytest.raises(LoadError, match=what):
            read_saelens(tmp_path)
    with pytest.raises(InterpError, match="no threshold yet"):
        write_saelens(MAKERS["batch_topk"](planted.read), tmp_path)
    both = Standardisation.from_moments(Moments.of(planted.x), ("a", "b"), (10, 6))
    with pytest.raises(InterpError, match="several sites"):
        write_saelens(MAKERS["matching_pursuit"](both), tmp_path)
