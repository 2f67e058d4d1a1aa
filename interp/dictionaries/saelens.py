"""Dictionaries in the folders of SAELens 6: `cfg.json` and `sae_weights.safetensors`.

SAELens knows no standardisation, so ours is folded into the weights, exactly: with mean μ and scale s,

    W_enc = (W / s)ᵀ,   b_enc = c,   W_dec = a · s,   b_dec = μ + s · b,   apply_b_dec_to_input = true

| here | written as | read from |
|---|---|---|
| TopK | `topk` | `topk` |
| BatchTopK, Matryoshka | `jumprelu` with one threshold | `batchtopk`, `matryoshka_batchtopk` (of a training) |
| JumpReLU | `jumprelu` | `jumprelu`, `standard` (thresholds 0) |
| Gated | `gated` | `gated` |
| MatchingPursuit | `matching_pursuit`; its codes are s times ours | `matching_pursuit` |

What is read has the codes and reconstructions that SAELens computes, and atoms of the length that the file has. Decoder
norms that scale activations there are folded into the encoder, as SAELens itself does when it saves for inference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary, LinearDictionary
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpReLU
from interp.dictionaries.matching_pursuit import MatchingPursuit
from interp.dictionaries.standardise import Standardisation
from interp.dictionaries.topk import BatchChosen, BatchTopK, Matryoshka, TopK
from interp.errors import InterpError, LoadError, SiteError, nearest
from interp.models.site import Site
from interp.results import replacing

ARCHITECTURES = ("topk", "jumprelu", "standard", "gated", "matching_pursuit", "batchtopk", "matryoshka_batchtopk")
"""What is read."""
_VERSION = "6.0.0"
"""The version of SAELens whose format this is: below it, SAELens would take `cfg.json` for an older one."""
_UNSCALED = ("none", "expected_average_only_in")
"""Settings of `normalize_activations` under which SAELens leaves activations as they are."""


@torch.no_grad()
def write_saelens(dictionary: Dictionary, folder: str | Path, *, model: str = "") -> None:
    """Write a dictionary as SAELens does.

    Args:
        folder: made if it is not there; what is in it is replaced.
        model: name of the model, for the metadata; the hook's name is that of the site.

    Raises:
        InterpError: what SAELens has no form for: several step bins, transcoders, matching pursuit of several sites, a
            dictionary without a threshold.
    """
    from safetensors.torch import save_file

    d, read = dictionary, dictionary.read
    if not d.autoencodes or read.n_bins > 1:
        what = "several step bins" if d.autoencodes else "a site that it writes and does not read"
        raise InterpError(f"This dictionary has {what}, for which SAELens has no form.")
    mean, scale = read.mean[0], read.channel_scale()
    tensors = {"W_dec": d.atoms * scale, "b_dec": mean + scale * d.offset}
    cfg: dict[str, Any] = {}
    if isinstance(d, LinearDictionary):
        tensors["W_enc"] = (d.encoder / scale).T
        tensors["b_gate" if isinstance(d, Gated) else "b_enc"] = d.bias
    if isinstance(d, TopK):
        cfg = {"architecture": "topk", "k": d.k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(d, BatchChosen | JumpReLU):
        cfg = {"architecture": "jumprelu"}
        tensors["threshold"] = d.log_threshold.exp() if isinstance(d, JumpReLU) else d.threshold.expand(d.n_latents)
        if tensors["threshold"].isnan().any():
            raise InterpError("This dictionary has no threshold yet: train it, or call `calibrate`.")
    elif isinstance(d, Gated):
        cfg = {"architecture": "gated"}
        tensors |= {"r_mag": d.log_magnitude, "b_mag": d.magnitude_bias}
    elif isinstance(d, MatchingPursuit):
        if len(read.sites) > 1:
            raise InterpError("Matching pursuit of several sites, scaled apart, has no form in SAELens.")
        cfg = {
            "architecture": "matching_pursuit", "max_iterations": d.k, "residual_threshold": 0.0,
            "stop_on_duplicate_support": False,
        }  # fmt: skip
        tensors["W_dec"] = d.atoms
    cfg |= {
        "d_in": read.width, "d_sae": d.n_latents, "dtype": str(d.atoms.dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", **_hook(read.sites),
    }  # fmt: skip
    cfg["metadata"] |= {"sae_lens_version": _VERSION, "model_name": model, "training_architecture": d.kind}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "sae_weights.safetensors") as temporary:
        save_file({name: x.clone().contiguous() for name, x in tensors.items()}, temporary)
    with replacing(folder / "cfg.json") as temporary:
        temporary.write_text(json.dumps(cfg, indent=1))


@torch.no_grad()
def read_saelens(folder: str | Path) -> Dictionary:
    """Read a folder of SAELens 6.

    Raises:
        LoadError: no such folder, or a damaged one; an architecture that is not known here; a normalisation that
            depends on the activation.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        cfg = json.loads((folder / "cfg.json").read_text())
        w = load_file(folder / "sae_weights.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise LoadError(f"{folder} is no folder of SAELens, or a damaged one: {error}.") from error
    kind = cfg.get("architecture")
    if kind not in ARCHITECTURES:
        raise LoadError(
            f"{folder} has the architecture {kind!r}, which is not known here." + nearest(str(kind), ARCHITECTURES)
        )
    if (how := cfg.get("normalize_activations", "none")) not in _UNSCALED:
        raise LoadError(f"{folder} normalises each activation by itself ({how}), which no dictionary here does.")
    try:
        return _made(kind, cfg, w)
    except KeyError as error:
        raise LoadError(f"{folder}: a {kind!r} needs {error}; it has {', '.join(sorted({*cfg, *w}))}.") from error


def _made(kind: str, cfg: Mapping[str, Any], w: dict[str, Tensor]) -> Dictionary:
    metadata = cfg.get("metadata") or {}
    read = Standardisation.identity(int(cfg["d_in"]), _site(metadata.get("hook_name")))
    n, subtracts = int(cfg["d_sae"]), bool(cfg.get("apply_b_dec_to_input", True))
    if "log_threshold" in w:  # of folders older than 6
        w["threshold"] = w["log_threshold"].exp()
    w = {name: x.float() for name, x in w.items()}
    if cfg.get("rescale_acts_by_decoder_norm") and kind != "gated":
        norm = w["W_dec"].norm(dim=1)
        w |= {"W_enc": w["W_enc"] * norm, "b_enc": w["b_enc"] * norm, "W_dec": w["W_dec"] / norm[:, None]}
    made: Any
    match kind:
        case "topk":
            made = TopK(read, n, int(cfg["k"]))
        case "batchtopk":
            made = BatchTopK(read, n, cfg["k"])
        case "matryoshka_batchtopk":
            made = Matryoshka(read, n, cfg["k"], prefixes=cfg["matryoshka_widths"])
        case "jumprelu" | "standard":
            made = JumpReLU(read, n)
        case "gated":
            made = Gated(read, n)
        case _:
            made = MatchingPursuit(read, n, int(cfg.get("max_iterations") or cfg["d_in"]))
    made.atoms.copy_(w["W_dec"])
    made.offset.copy_(w["b_dec"] if subtracts or kind != "matching_pursuit" else torch.zeros_like(w["b_dec"]))
    if isinstance(made, LinearDictionary):
        made.encoder.copy_(w["W_enc"].T)
        # Where nothing is subtracted there, what we subtract is added again.
        added = torch.zeros(n) if subtracts else made.encoder @ made.offset
        made.bias.copy_((w["b_gate"] if kind == "gated" else w["b_enc"]) + added)
        if isinstance(made, Gated):
            made.log_magnitude.copy_(w["r_mag"])
            made.magnitude_bias.copy_(w["b_mag"] + w["r_mag"].exp() * added)
        elif isinstance(made, JumpReLU):
            made.log_threshold.copy_((torch.zeros(n) if kind == "standard" else w["threshold"].clamp(min=0)).log())
        elif isinstance(made, BatchChosen):
            made.threshold.copy_(w["topk_threshold"])
    return made


def _site(hook: Any) -> str:
    """Our name of a hook, where we have one."""
    try:
        return str(Site.parse(str(hook)))
    except SiteError:
        return "" if hook is None else str(hook)


def _hook(sites: tuple[str, ...]) -> dict[str, Any]:
    """How SAELens is told the site: by TransformerLens's name, where it has one."""
    if len(sites) != 1:
        return {"reshape_activations": "none", "metadata": {"hook_name": None, "interp_sites": list(sites)}}
    (own,) = sites
    try:
        site = Site.parse(own)
        name, heads = site.lens_name, site.part == "z"
    except SiteError:
        name, heads = own, False
    return {"reshape_activations": "hook_z" if heads else "none", "metadata": {"hook_name": name}}
