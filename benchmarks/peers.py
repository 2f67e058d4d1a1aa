"""The same cells, computed by other toolkits, each on its own copy of the network.

A peer that is not installed is None in `make_peer`, never an error. pyvene has a process of its own
(`peer_pyvene.py`), since it pins other versions of half the packages. No benchmark by itself.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from report import ROOT
from torch import Tensor, nn
from workload import Cell, Hooks

NAMES = {
    "transformer_lens": "TransformerLens `patching`, bridge",
    "nnsight": "nnsight, a trace per cell",
    "nnsight_batched": "nnsight, batched invokes",
    "pyvene": "pyvene, a call per cell",
    "pyvene_batched": "pyvene, a layer's cells as rows (by the caller)",
}


class Peer(Protocol):
    """Logit differences of cells."""

    def values(self, cells: Sequence[Cell]) -> list[float]: ...


class TransformerLens:
    """`transformer_lens.patching` on a bridge, without weight processing."""

    def __init__(
        self, network: nn.Module, tokenizer: Any, part: str, clean: Tensor, corrupted: Tensor, answers: tuple[int, int]
    ) -> None:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        network = copy.deepcopy(network)  # a bridge changes its network in place
        name = type(network).__name__
        self.bridge = build_bridge_from_module(network, name, hf_config=network.config, tokenizer=tokenizer)
        self.part, self.corrupted = part, corrupted
        self.metric = lambda logits: logits[0, -1, answers[0]] - logits[0, -1, answers[1]]
        with torch.no_grad():
            _, self.clean = self.bridge.run_with_cache(clean)

    def values(self, cells: Sequence[Cell]) -> list[float]:
        import pandas
        from transformer_lens import patching

        if self.part == "resid_pre":
            function, columns = patching.get_act_patch_resid_pre, ["layer", "pos"]
        elif cells[0].pos is None:
            function, columns = patching.get_act_patch_attn_head_out_all_pos, ["layer", "head"]
        else:
            function, columns = patching.get_act_patch_attn_head_out_by_pos, ["layer", "pos", "head"]
        index = pandas.DataFrame([[getattr(cell, column) for column in columns] for cell in cells], columns=columns)
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            found = function(
                self.bridge, self.corrupted, self.clean, self.metric, index_axis_names=None, index_df=index
            )
        return found.tolist()


class Nnsight:
    """nnsight: a trace per cell, or as many cells per trace as `at_once`, each an invoke."""

    def __init__(
        self, network: nn.Module, tokenizer: Any, part: str, n_heads: int, clean: Tensor, corrupted: Tensor,
        answers: tuple[int, int], at_once: int,
    ) -> None:  # fmt: skip
        import nnsight

        wrap = getattr(nnsight, "TransformersModel", None)
        network = copy.deepcopy(network)
        self.clean = Hooks(network, part, n_heads, clean, corrupted).clean
        self.model = wrap(network, tokenizer=tokenizer) if wrap else nnsight.LanguageModel(network, tokenizer=tokenizer)
        self.part, self.n_heads, self.corrupted, self.answers, self.at_once = part, n_heads, corrupted, answers, at_once

    def place(self, layer: int) -> Any:
        """The envoy whose input is the state."""
        llama = hasattr(self.model._module, "model")
        block = (self.model.model.layers if llama else self.model.transformer.h)[layer]
        return block if self.part == "resid_pre" else block.self_attn.o_proj if llama else block.attn.c_proj

    def where(self, cell: Cell) -> tuple:
        positions = slice(None) if cell.pos is None else cell.pos
        if cell.head is None:
            return (slice(None), positions)
        width = self.clean[0].shape[-1] // self.n_heads
        return (slice(None), positions, slice(cell.head * width, (cell.head + 1) * width))

    def values(self, cells: Sequence[Cell]) -> list[float]:
        found = []
        with torch.no_grad():
            for i in range(0, len(cells), self.at_once):
                some = cells[i : i + self.at_once]
                logits = self.one(some[0]) if self.at_once == 1 else self.several(some)
                found += [float(x[0, self.answers[0]] - x[0, self.answers[1]]) for x in logits]
        return found

    def one(self, cell: Cell) -> list[Tensor]:
        place, where, clean = self.place(cell.layer), self.where(cell), self.clean[cell.layer]
        with self.model.trace(self.corrupted):
            place.input[where] = clean[where]
            logits = self.model.lm_head.output[:, -1].save()
        return [logits]

    def several(self, cells: Sequence[Cell]) -> list[Tensor]:
        with self.model.trace() as tracer:
            logits = list().save()
            for cell in cells:
                with tracer.invoke(self.corrupted):
                    where = self.where(cell)
                    self.place(cell.layer).input[where] = self.clean[cell.layer][where]
                    logits.append(self.model.lm_head.output[:, -1])
        return logits


def make_peer(
    name: str, network: nn.Module, tokenizer: Any, part: str, n_heads: int, clean: Tensor, corrupted: Tensor,
    answers: tuple[int, int], at_once: int = 14,
) -> Peer | None:  # fmt: skip
    """A peer that runs in this process, ready to compute cells; None if it is not installed."""
    package = "transformer_lens" if name == "transformer_lens" else "nnsight"
    if importlib.util.find_spec(package) is None:
        return None
    logging.disable(logging.WARNING)
    if name == "transformer_lens":
        return TransformerLens(network, tokenizer, part, clean, corrupted, answers)
    size = at_once if name == "nnsight_batched" else 1
    return Nnsight(network, tokenizer, part, n_heads, clean, corrupted, answers, size)


def run_pyvene(python: str, cells: Sequence[Cell], batched_layers: Sequence[int], threads: int) -> dict | None:
    """What `peer_pyvene.py` measured with this interpreter; None if pyvene is not installed there."""
    command = [
        python, "-W", "ignore", str(Path(__file__).with_name("peer_pyvene.py")),
        "--cells", json.dumps([cell[:2] for cell in cells]), "--layers", json.dumps(list(batched_layers)),
        "--threads", str(threads),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1:] or [""]
    if done.returncode and "ModuleNotFoundError" not in done.stderr:
        raise RuntimeError(f"{' '.join(command[:4])} failed:\n{done.stderr[-2000:]}")
    return json.loads(last[0]) if last[0].startswith("{") else None
