"""What the concept browser shows of an atlas, as JSON-able records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.concepts.atlas import Atlas

MEANING = {
    "share": "share of rows in which it is on", "mean": "mean code where it is on", "strongest": "largest code",
    "f1": "F1 of the label, held out", "f1_chance": "F1 of the label by chance",
    "precision": "precision of the label", "recall": "recall of the label",
    "kl": "KL of adding it, nats", "kl_random": "KL of a random direction of its length, nats",
}  # fmt: skip
"""Numbers by latent that the browser knows, in the order in which it shows them."""
_TIMES = 4


def page_of(atlas: Atlas, edges: Sequence[Mapping[str, Any]], about: Sequence[str]) -> dict[str, Any]:
    """The page of `interp.plots.browser`.

    Raises:
        InterpError: an edge without parent, child or weight, or of a latent that the atlas does not show.
    """
    data = atlas.data
    shown = {int(latent) for latent in data["latent"].values}
    for edge in edges:
        if missing := {"parent", "child", "weight"} - edge.keys():
            raise InterpError(f"An edge has {', '.join(edge)}; it needs {', '.join(sorted(missing))} too.")
        if strangers := {edge["parent"], edge["child"]} - shown:
            raise InterpError(f"An edge names latent {strangers.pop()}, which the atlas does not show.")
    names = [name for name in MEANING if name in data and data[name].dims == ("latent",)]
    columns = list(dict.fromkeys(name for edge in edges for name in edge if name not in ("parent", "child")))
    page = {
        "title": atlas.title, "about": list(about), "summary": atlas.summary(), "meaning": MEANING, "orders": names,
        "bins": data["bin"].values.tolist(), "edges": [dict(edge) for edge in edges], "edgeColumns": columns,
        "concepts": [_concept(atlas, names, i) for i in range(data.sizes["latent"])],
    }  # fmt: skip
    if not atlas.of_texts:
        from interp.plots.pictures import as_uri

        page["grid"] = [data.sizes["cell_y"], data.sizes["cell_x"]]
        page["pictures"] = [as_uri(picture, _TIMES) for picture in data["pictures"].values]
        page["prompts"] = [str(prompt) for prompt in data["prompt"].values]
    return page


def _concept(atlas: Atlas, names: Sequence[str], i: int) -> dict[str, Any]:
    one = atlas.data.isel(latent=i)
    concept: dict[str, Any] = {
        "id": int(one["latent"]), "label": _text(one, "label"), "candidate": _text(one, "candidate"),
        "numbers": {name: _number(one[name].item()) for name in names},
        "histogram": one["histogram"].values.tolist(), "hint": _hint(atlas, i), "examples": [],
    }  # fmt: skip
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
            seen |= {"picture": int(example["picture"]), "step": int(example["step"]), "activations": strengths}
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
