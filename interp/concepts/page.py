"""What the concept browser shows, as JSON-able records: of one atlas, or of a graph with the atlases of its levels."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.concepts.graph_result import ConceptGraph
from interp.errors import InterpError, nearest

if TYPE_CHECKING:
    from interp.concepts.atlas import Atlas

MEANING = {
    "share": "share of rows in which it is on", "mean": "mean code where it is on", "strongest": "largest code",
    "f1": "F1 of the label, held out", "f1_chance": "F1 of the label by chance",
    "precision": "precision of the label", "recall": "recall of the label",
    "kl": "KL of adding it, nats", "kl_random": "KL of a random direction of its length, nats",
}  # fmt: skip
"""Numbers by latent that the browser knows, in the order in which it shows them."""
NODE_MEANING = {
    "frequency": "share of places where it is on", "typical": "typical code", "spread": "spread within an example",
    "breadth": "children moved", "decodable": "first level that tells it",
}  # fmt: skip
"""The same of nodes of a graph."""
EDGE_MEANING = {
    "effect": "measured", "effect_low": "95 % from", "effect_high": "to", "predicted": "predicted",
    "agreement": "agreement",
}  # fmt: skip
"""The same of edges; the first is the weight that is drawn."""
_TIMES = 4


def browse_graph(
    path: str | os.PathLike[str], graph: ConceptGraph, atlases: Mapping[str, Atlas], about: Sequence[str] = ()
) -> None:
    """Write the concept browser of a graph: the graph to walk through, and a page for every concept of its atlases.

    Args:
        path: of one HTML file, which needs no network.
        atlases: by the name of a level. Levels of one dictionary at several steps share an atlas, and its pages.
        about: paragraphs to begin with.

    Raises:
        InterpError: a level without an atlas, or with one of another dictionary.
        OSError: the folder is missing or cannot be written.
    """
    from interp.plots import write_browser

    write_browser(path, graph.title, page_of_graph(graph, atlases, about))


def page_of(atlas: Atlas, about: Sequence[str]) -> dict[str, Any]:
    """The page of `interp.plots.browser` for one atlas."""
    return _page(atlas.title, [atlas.summary()], {"": atlas}, about)


def page_of_graph(graph: ConceptGraph, atlases: Mapping[str, Atlas], about: Sequence[str]) -> dict[str, Any]:
    """The page of `interp.plots.browser` for a graph.

    Raises:
        InterpError: as `browse_graph`.
    """
    levels = graph.provenance["levels"]
    names = [level["name"] for level in levels]
    if unknown := [name for name in atlases if name not in names]:
        raise InterpError(f"The graph has no level {unknown[0]!r}." + nearest(unknown[0], names))
    sharing: dict[int, list[str]] = {}
    for level in levels:
        if level["name"] not in atlases:
            raise InterpError(f"Level {level['name']!r} has no atlas; give one for each of {', '.join(names)}.")
        atlas = atlases[level["name"]]
        if wrong := [what for what in ("site", "dictionary") if atlas.provenance.get(what) != level[what]]:
            raise InterpError(
                f"The atlas of level {level['name']!r} is of another {wrong[0]} than the graph, which was made of a "
                f"dictionary of {level['site']}; the atlas shows {atlas.title}. Make it from the level's dictionary."
            )
        sharing.setdefault(id(atlas), []).append(level["name"])
    prefixes = {name: " + ".join(own) if len(sharing) > 1 else "" for own in sharing.values() for name in own}
    parts = {prefixes[name]: atlases[name] for name in names}
    page = _page(graph.title, [graph.summary(), *(a.summary() for a in parts.values())], parts, about)
    return page | {"graph": _graph(graph, prefixes, {one["id"]: one["label"] for one in page["concepts"]})}


def _page(title: str, summaries: Sequence[str], parts: Mapping[str, Atlas], about: Sequence[str]) -> dict[str, Any]:
    """Pages of atlases, whose concepts are told apart by a prefix."""
    from interp.plots.pictures import as_uri

    concepts, pictures, prompts, orders = [], [], [], []
    for prefix, atlas in parts.items():
        data = atlas.data
        names = [name for name in MEANING if name in data and data[name].dims == ("latent",)]
        orders += [name for name in names if name not in orders]
        concepts += [_concept(atlas, prefix, names, i, len(pictures)) for i in range(data.sizes["latent"])]
        if not atlas.of_texts:
            pictures += [as_uri(picture, _TIMES) for picture in data["pictures"].values]
            prompts += [str(prompt) for prompt in data["prompt"].values]
    bins = next(iter(parts.values())).data["bin"].values.tolist()
    return {
        "title": title, "about": list(about), "summary": "\n\n".join(summaries), "meaning": MEANING, "orders": orders,
        "bins": bins, "concepts": concepts, "pictures": pictures, "prompts": prompts, "graph": None,
    }  # fmt: skip


def _graph(graph: ConceptGraph, prefixes: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, Any]:
    """Nodes, each with the concept whose page it leads to (if there is one), and edges by numbers of nodes."""
    data, agreement = graph.data, graph.agreement
    levels, nodes, edges = graph.provenance["levels"], [], []
    order = {level["name"]: number for number, level in enumerate(levels)}
    for i, name in enumerate(graph.names):
        level, latent = str(data["level"].values[i]), int(data["latent"].values[i])
        concept = _id(prefixes[level], latent)
        nodes.append({
            "name": name, "level": order[level], "latent": latent, "concept": concept if concept in labels else None,
            "label": labels.get(concept, ""),
            "numbers": {key: _number(float(data[key].values[i])) for key in NODE_MEANING},
        })  # fmt: skip
    for k in np.flatnonzero(data["edge"].values).tolist():
        weights = {key: agreement[k] if key == "agreement" else data[key].values[k] for key in EDGE_MEANING}
        ends = {end: int(data[end].values[k]) for end in ("parent", "child")}
        edges.append(ends | {key: _number(float(weight)) for key, weight in weights.items()})
    places = [{"name": lv["name"], "place": lv["site"] + _at(lv["step"])} for lv in levels]
    return {
        "levels": places, "nodes": nodes, "edges": edges, "nodeMeaning": NODE_MEANING, "edgeMeaning": EDGE_MEANING,
    }  # fmt: skip


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step}"


def _id(prefix: str, latent: int) -> str:
    return f"{prefix}/{latent}" if prefix else str(latent)


def _concept(atlas: Atlas, prefix: str, names: Sequence[str], i: int, first: int) -> dict[str, Any]:
    """One concept.

    Args:
        prefix: of its name; first: the number of its atlas's first picture on the page.
    """
    one = atlas.data.isel(latent=i)
    latent = int(one["latent"])
    concept: dict[str, Any] = {
        "id": _id(prefix, latent), "level": prefix, "latent": latent,
        "label": _text(one, "label"), "candidate": _text(one, "candidate"),
        "numbers": {name: _number(one[name].item()) for name in names},
        "histogram": one["histogram"].values.tolist(), "hint": _hint(atlas, i), "examples": [],
    }  # fmt: skip
    if not atlas.of_texts:
        concept["grid"] = [atlas.data.sizes["cell_y"], atlas.data.sizes["cell_x"]]
    if "promoted" in one and _text(one.isel(rank=0), "promoted"):
        for side in ("promoted", "suppressed"):
            concept[side] = [str(token) for token in one[side].values]
            concept[f"{side}By"] = [_number(by) for by in one[f"{side}_by"].values.tolist()]
    for number, name in enumerate(map(str, one["example"].values)):
        example = one.isel(example=number)
        if int(example["row"]) < 0:
            continue
        seen = {"name": name, "value": _number(example["value"].item())}
        strengths = [round(float(v), 3) for v in example["activation"].values.ravel()]
        if atlas.of_texts:
            inside = [k for k, token in enumerate(example["token"].values) if token != ""]
            seen |= {
                "tokens": [str(example["token"].values[k]) for k in inside],
                "activations": [strengths[k] for k in inside],
                "at": inside.index(int(np.flatnonzero(example["offset"].values == 0)[0])),
            }
        else:
            seen |= {"picture": first + int(example["picture"]), "step": int(example["step"]), "activations": strengths}
        concept["examples"].append(seen)
    return concept


def _hint(atlas: Atlas, i: int) -> str:
    """A few words for the list: of texts the tokens on which it is on most strongly."""
    if not atlas.of_texts:
        return ""
    centre = atlas.data.isel(latent=i).sel(offset=0)
    words = [str(token).strip() for token in centre["token"].values]
    return " ".join(dict.fromkeys(word for word in words if word))[:60]


def _text(one: Any, name: str) -> str:
    return str(one[name].item()) if name in one else ""


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
