"""Circuit files of EAP-IG and MIB: JSON with `cfg`, `nodes` and `edges`.

Those tools give every query head its own key and value input. Where ours share one (grouped-query attention), it
stands in the file as one edge per query head of the group, all in the circuit or none, with equal parts of the
score: their gradients add up to the shared input's.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from interp.circuits.graph import Graph
from interp.circuits.results import Circuit, EdgeScores
from interp.circuits.select import Scored
from interp.errors import LoadError
from interp.models.language_model import LanguageModel
from interp.results import provenance, replacing

_SHAPE = {"n_layers": "n_layers", "n_heads": "n_heads", "parallel_attn_mlp": "parallel", "d_model": "d_model"}


def write_mib(found: Scored, path: str | Path) -> None:
    """Write scores, and what is in the circuit (nothing, of scores alone), as EAP-IG reads them.

    The extra key `interp` holds the model's name and the hash of its weights.
    """
    graph = found.graph
    chosen = found.edges if isinstance(found, Circuit) else np.zeros(graph.edges.shape, dtype=bool)
    used = set(found.nodes) if isinstance(found, Circuit) else set()
    edges: dict[str, Any] = {}
    for i, j in np.argwhere(graph.edges):
        names = _ungrouped(graph, graph.receivers[j])
        share = float(found.scores[i, j]) / len(names)
        for name in names:
            edges[f"{graph.senders[i]}->{name}"] = {"score": share, "in_graph": bool(chosen[i, j])}
    whole = {
        "cfg": {theirs: getattr(graph, ours) for theirs, ours in _SHAPE.items()},
        "nodes": {node: {"in_graph": node in used} for node in graph.nodes},
        "edges": edges,
        "interp": {"model": graph.model, "weights": graph.weights},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(whole), encoding="utf-8")


def read_mib(path: str | Path, model: LanguageModel) -> Circuit | EdgeScores:
    """Read a circuit file; one in which no edge is in the circuit gives `EdgeScores`.

    Edges that the file leaves out are not in the circuit and score 0. Neurons of nodes are not read.

    Raises:
        LoadError: not such a file; of a model of another shape or with other weights; an edge that this model does
            not have; a key input shared by several heads, of which some are in the circuit and some not.
        InterpError: a model whose edges are not defined.
    """
    import xarray as xr

    path, graph = Path(path), Graph.of(model)
    whole = _parsed(path)
    for theirs, ours in _SHAPE.items():
        # Files of other tools may lack an entry; what is there must agree.
        if theirs in whole["cfg"] and whole["cfg"][theirs] != getattr(graph, ours):
            raise LoadError(
                f"{path} is of another model: {theirs} is {whole['cfg'][theirs]!r} there, {getattr(graph, ours)!r} in "
                f"{model.name}."
            )
    written = whole.get("interp", {})
    if written.get("weights", graph.weights) != graph.weights:
        raise LoadError(f"{path} is of {written.get('model')!r}, whose weights are not those of {model.name}.")
    known = {
        f"{graph.senders[i]}->{name}": (i, j)
        for i, j in np.argwhere(graph.edges)
        for name in _ungrouped(graph, graph.receivers[j])
    }
    scores = np.where(graph.edges, 0.0, np.nan)
    inside: dict[tuple[int, int], set[bool]] = {}
    for name, edge in whole["edges"].items():
        if name not in known:
            raise LoadError(f"{path}: {model.name} has no edge {name!r}.")
        scores[known[name]] += _score(path, name, edge)
        inside.setdefault(known[name], set()).add(bool(edge.get("in_graph")))
    if split := [at for at, states in inside.items() if len(states) > 1]:
        i, j = split[0]
        raise LoadError(
            f"{path}: {graph.senders[i]}->{graph.receivers[j]} is one edge, shared by the queries of its group, but "
            "only some of them are in the circuit; include all or none."
        )
    chosen = np.zeros(graph.edges.shape, dtype=bool)
    for at, states in inside.items():
        chosen[at] = states == {True}
    names = {"sender": list(graph.senders), "receiver": list(graph.receivers)}
    data = xr.Dataset({"score": (("sender", "receiver"), scores, {"unit": ""})}, names)
    record = provenance(
        experiment="circuit file", method=f"file {path.name}", model=model.name, graph=graph.record(), unit="",
        selection=f"read from {path.name}",
    )  # fmt: skip
    if not chosen.any():
        return EdgeScores(data, record)
    return Circuit(data.assign(edge=(("sender", "receiver"), chosen)), record)


def _ungrouped(graph: Graph, receiver: str) -> list[str]:
    """The names that a receiver has where every query head has its own key and value input."""
    if ".kv" not in receiver:
        return [receiver]
    layer, _, rest = receiver.partition(".kv")
    head, group = int(rest[:-3]), graph.n_heads // graph.n_kv_heads
    return [f"{layer}.h{head * group + query}{rest[-3:]}" for query in range(group)]


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise LoadError(f"There is no circuit file at {path}.")
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is not JSON: {error}.") from error
    if not isinstance(whole, dict) or not all(isinstance(whole.get(key), dict) for key in ("cfg", "nodes", "edges")):
        raise LoadError(f"{path} is no circuit file: it needs the objects 'cfg', 'nodes' and 'edges'.")
    return whole


def _score(path: Path, name: str, edge: Any) -> float:
    score = edge.get("score", 0.0) if isinstance(edge, dict) else None
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise LoadError(f"{path}: the edge {name!r} is {edge!r}; it must be an object with a finite 'score'.")
    return float(score)
