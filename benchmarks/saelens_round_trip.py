"""Dictionaries written here and loaded by SAELens, and the other way round: the same codes and reconstructions.

    /tmp/peers/bin/python benchmarks/saelens_round_trip.py

Needs SAELens 6 beside interp, in an environment of its own (README.md). Ends with exit status 1 if a difference is
above the tolerance, which is rounding of float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import typer
from report import machine, report

from interp.dictionaries.dictionary import Dictionary
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpReLU
from interp.dictionaries.matching_pursuit import MatchingPursuit
from interp.dictionaries.saelens import read_saelens, write_saelens
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.topk import BatchTopK, Matryoshka, TopK

WIDTH, LATENTS, K = 64, 512, 8
TOLERANCE = 1e-5
"""Of a code or channel, as a share of the largest."""


def shaken(d: Dictionary, x: torch.Tensor) -> Dictionary:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in d.named_parameters():
            noise = 0.2 * torch.randn(p.shape, generator=generator)
            p.copy_(noise.abs().log() if name == "log_threshold" else p + noise)
        d.atoms.div_(d.atoms.norm(dim=1, keepdim=True))
        d.calibrate(d.read.apply_to(x))
    return d


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def ours_to_theirs(x: torch.Tensor) -> list[dict]:
    from sae_lens import SAE

    read, rows = Standardisation.from_moments(Moments.of(x), ("L5.resid_post",)), []
    for d in (
        TopK(read, LATENTS, K), BatchTopK(read, LATENTS, K), Matryoshka(read, LATENTS, K, prefixes=(64, LATENTS)),
        JumpReLU(read, LATENTS), Gated(read, LATENTS), MatchingPursuit(read, LATENTS, K),
    ):  # fmt: skip
        shaken(d, x)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            write_saelens(d, folder, model="a model")
            sae = SAE.load_from_disk(folder)
            scale = float(read.scale) if d.kind == "matching_pursuit" else 1.0
            codes, out = sae.encode(x), sae(x)
            rows.append(
                row(f"{d.kind}, written here", type(sae).__name__, d.encode(x).dense() * scale, codes, d(x), out)
            )
    return rows


def theirs_to_ours(x: torch.Tensor) -> list[dict]:
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

    size = {"d_in": WIDTH, "d_sae": LATENTS}
    pursuit = {"max_iterations": K, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    made = [
        StandardSAE(StandardSAEConfig(**size)),
        StandardSAE(StandardSAEConfig(**size, apply_b_dec_to_input=False)),
        TopKSAE(TopKSAEConfig(**size, k=K)),
        TopKSAE(TopKSAEConfig(**size, k=K, rescale_acts_by_decoder_norm=True)),
        JumpReLUSAE(JumpReLUSAEConfig(**size)),
        GatedSAE(GatedSAEConfig(**size)),
        MatchingPursuitSAE(MatchingPursuitSAEConfig(**size, **pursuit)),
        TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=K)),
        BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=K)),
        MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(**size, k=K, matryoshka_widths=[64, LATENTS])
        ),
    ]
    rows, generator = [], torch.Generator().manual_seed(2)
    for sae in made:
        name = type(sae).__name__
        with torch.no_grad():
            for part, p in sae.named_parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator).abs() if part == "threshold" else
                       0.1 * torch.randn(p.shape, generator=generator))  # fmt: skip
            if sae.cfg.architecture() == "matching_pursuit":
                sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
            if hasattr(sae, "topk_threshold"):
                sae.topk_threshold.fill_(1.5)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            sae.save_model(folder)
            d = read_saelens(folder)
            if hasattr(
                sae, "topk_threshold"
            ):  # in training it chooses by the batch; saved for inference, by a threshold
                inference = Path(folder) / "inference"
                sae.save_inference_model(inference)
                from sae_lens import SAE

                sae = SAE.load_from_disk(inference)
            codes, out = sae.encode(x), sae(x)
            codes = codes.to_dense() if codes.is_sparse else codes
            rows.append(row(f"{name}, written there", d.kind, d.encode(x).dense(), codes, d(x), out))
    return rows


def row(what: str, loaded: str, ours: torch.Tensor, codes: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> dict:
    return {
        "dictionary": what, "loaded as": loaded, "latents on per row": round(float((codes > 0).sum(1).float().mean()), 1),
        "codes differ by": f"{difference(ours, codes):.1e}", "reconstructions differ by": f"{difference(x, out):.1e}",
    }  # fmt: skip


def main() -> None:
    where = machine()
    x = torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(0)) * 3 + 1
    rows = ours_to_theirs(x) + theirs_to_ours(x)
    report("saelens_round_trip", "Largest differences, as shares of the largest value", rows, where=where)
    worst = max(float(r[key]) for r in rows for key in ("codes differ by", "reconstructions differ by"))
    if worst > TOLERANCE:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
