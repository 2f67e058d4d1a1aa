"""Activations on disk: shards that are whole or absent, and an index that knows them.

A store is a folder with `index.json` and shards `shard-00000.safetensors`, … Each shard holds some rows: of every site
`x.<site>` [row, width]; labels that say where each row comes from, `label.<name>` [row]; and what belongs to its inputs
rather than to its rows (pictures, masks) as `extra.<name>`. Rows lie in the order in which they were harvested; the
moments that standardisation needs are kept with each shard, per denoising step, so bins are chosen when a dictionary
is made.

A shard is written beside its place and moved there, and only then entered in the index: a harvest that is killed leaves
whole shards, and goes on behind them. A shard that was cut off all the same (a full disk, an interrupted copy) is
noticed by its size on opening: the store then ends before it, with a warning that says so.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.dictionaries.activations import Batch
from interp.dictionaries.standardise import Moments, Standardisation
from interp.errors import InterpError, LoadError, ShapeError, SiteError, nearest
from interp.results import replacing

_FORMAT = "interp-activations-1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""In which activations may be kept."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What the index says of a shard."""

    file: str
    rows: int
    bytes: int
    sha256: str


class Store:
    """Rows of activations in a folder; open one with `Store.open`, make one with `harvest_texts` or `harvest_pictures`.

    Attributes:
        about: what was harvested from what; JSON-able.
        widths: channels of each site.
        steps: denoising steps that rows may belong to; 1 for a language model.
        shards: whole ones, in order.
        complete: whether the harvest reached its end, or its byte budget.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, dict(index["about"])
        self.mark_of_plan = str(index["mark"])
        self.widths: dict[str, int] = {str(site): int(width) for site, width in index["widths"].items()}
        self.dtype, self.steps = DTYPES[index["dtype"]], int(index["steps"])
        self.shards = [Shard(**shard) for shard in index["shards"]]
        self.complete = bool(index["complete"])

    @classmethod
    def create(
        cls, folder: str | Path, mark: str, about: Mapping[str, Any], widths: Mapping[str, int], dtype: str, steps: int
    ) -> Store:
        """An empty store.

        Raises:
            InterpError: a type in which activations are not kept.
        """
        if dtype not in DTYPES:
            raise InterpError(f"Activations cannot be kept as {dtype!r}." + nearest(dtype, DTYPES))
        index = {"mark": mark, "about": about, "widths": widths, "dtype": dtype, "steps": steps, "shards": []}
        store = cls(Path(folder), index | {"complete": False})
        store.folder.mkdir(parents=True, exist_ok=True)
        store._write_index()
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """The store in a folder. If a shard was cut off or lost, it ends before that one, and a warning says so.

        Raises:
            LoadError: no index, one that cannot be read, or one of another format.
        """
        file = Path(folder) / "index.json"
        if not file.is_file():
            raise LoadError(f"There is no store of activations in {folder}: it has no index.json.")
        try:
            index = json.loads(file.read_text())
            if index["format"] != _FORMAT:
                raise LoadError(f"{file} is of the format {index['format']!r}; this version reads {_FORMAT!r}.")
            store = cls(Path(folder), index)
        except (ValueError, KeyError, TypeError) as error:
            raise LoadError(f"{file} is damaged ({type(error).__name__}: {error}).") from error
        store._repair()
        return store

    def _repair(self) -> None:
        for number, shard in enumerate(self.shards):
            path = self.folder / shard.file
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"was cut off ({size} of {shard.bytes} bytes)"
                kept, lost = self.shards[:number], self.shards[number:]
                self.shards, self.complete = kept, False
                self._write_index()
                warnings.warn(
                    f"{path} {found}: the store now ends before it, with {len(kept)} of {len(kept) + len(lost)} shards "
                    f"and {len(self)} rows. The same harvest again makes the rest anew.",
                    stacklevel=3,
                )
                return

    def verify(self) -> None:
        """Read every shard and compare its digest.

        Raises:
            LoadError: one that is not what was written.
        """
        for shard in self.shards:
            with (self.folder / shard.file).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    raise LoadError(f"{self.folder / shard.file} is not what was written: its digest differs.")

    # -- writing --------------------------------------------------------------------------------------

    def append(
        self,
        x: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        extra: Mapping[str, Tensor] | None = None,
        texts: Mapping[str, Any] | None = None,
        max_bytes: int | None = None,
    ) -> bool:
        """Write one shard, and say so; not if the store would then exceed `max_bytes`.

        Args:
            x: of every site of the store the rows [row, width].
            labels: of every row; `step`, where rows belong to denoising steps.
            extra: tensors that belong to the inputs of the shard.
            texts: JSON-able; the same, for what is no tensor.
            max_bytes: of all shards together.

        Raises:
            ShapeError: activations that are not finite, or not in the type they are kept in (with where).
        """
        from safetensors.torch import save

        kept = {site: x[site].to(self.dtype) for site in self.widths}
        for site, rows in kept.items():
            if not rows.isfinite().all():
                raise ShapeError(_not_finite(site, rows, x[site], labels))
        tensors = {f"x.{site}": rows.contiguous() for site, rows in kept.items()}
        tensors |= {f"label.{name}": label.to(torch.int32).contiguous() for name, label in labels.items()}
        tensors |= {f"extra.{name}": value.contiguous() for name, value in (extra or {}).items()}
        for site, rows in kept.items():
            moments = Moments.of(rows, labels.get("step"), self.steps)
            tensors |= {f"{part}.{site}": getattr(moments, part) for part in ("count", "total", "squares")}
        data = save(tensors, {"texts": json.dumps(texts or {})})
        if max_bytes is not None and self.bytes + len(data) > max_bytes:
            return False
        name = f"shard-{len(self.shards):05d}.safetensors"
        with replacing(self.folder / name) as temporary:
            temporary.write_bytes(data)
        self.shards.append(Shard(name, len(next(iter(kept.values()))), len(data), hashlib.sha256(data).hexdigest()))
        self._write_index()
        return True

    def finish(self, how: str) -> None:
        """Say that the harvest has ended, and how."""
        self.complete, self.about["ended"] = True, how
        self._write_index()

    def _write_index(self) -> None:
        index = {
            "format": _FORMAT, "mark": self.mark_of_plan, "about": self.about, "widths": self.widths,
            "dtype": next(name for name, dtype in DTYPES.items() if dtype == self.dtype), "steps": self.steps,
            "shards": [{name: getattr(shard, name) for name in Shard.__slots__} for shard in self.shards],
            "complete": self.complete,
        }  # fmt: skip
        with replacing(self.folder / "index.json") as temporary:
            temporary.write_text(json.dumps(index, indent=1))

    # -- reading --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(self.widths)

    def label(self, name: str) -> Int[Tensor, "row"]:
        """A label of every row.

        Raises:
            InterpError: a label that rows do not have.
            ShapeError: a store without rows.
        """
        return torch.cat([self._tensor(shard, f"label.{name}") for shard in self._some()]).long()

    def extra(self, name: str) -> Tensor:
        """What belongs to the inputs: `pictures`, `masks` … of all shards, one after the other.

        Raises:
            InterpError: nothing of this name.
        """
        return torch.cat([self._tensor(shard, f"extra.{name}") for shard in self._some()])

    def texts(self, name: str) -> list[Any]:
        """Texts, prompts, factors … of all shards, one after the other.

        Raises:
            InterpError: nothing of this name.
        """
        found: list[Any] = []
        for shard in self.shards:
            about = json.loads((self._opened(shard).metadata() or {}).get("texts", "{}"))
            if name not in about:
                raise InterpError(f"{self.folder} keeps no {name!r}." + nearest(name, about))
            found += about[name]
        return found

    def standardisation(
        self, *sites: str, bins: Sequence[Sequence[int]] | None = None, across_steps: bool = False
    ) -> Standardisation:
        """Mean and scale of some sites over all rows, side by side.

        Args:
            sites: names; the only one, if not given.
            bins: sets of denoising steps that are standardised apart; `None`: all steps together.
            across_steps: the site at every step that was kept, side by side, as `site@step`; for `activations` of the
                same setting.

        Raises:
            SiteError: a site that was not harvested.
            ShapeError: bins that name a step twice or leave one out; a bin without rows, or without variance; bins
                beside `across_steps`.
        """
        names = self.checked(sites)
        if across_steps:
            return self._across_steps(names, bins)
        sets = [list(range(self.steps))] if bins is None else [list(b) for b in bins]
        if sorted(step for one in sets for step in one) != list(range(self.steps)):
            raise ShapeError(f"Bins {sets} must name each of the steps 0 to {self.steps - 1} once.")
        each = []
        for site in names:
            m = self._moments(site)
            each.append(
                Moments(*(torch.stack([part[one].sum(0) for one in sets]) for part in (m.count, m.total, m.squares)))
            )
        moments = Moments(each[0].count, *(torch.cat([getattr(m, p) for m in each], 1) for p in ("total", "squares")))
        return Standardisation.from_moments(
            moments, names, [self.widths[site] for site in names], None if bins is None else sets
        )

    def _across_steps(self, names: Sequence[str], bins: Any) -> Standardisation:
        if bins is not None:
            raise ShapeError("Across steps there are no bins of steps; leave `bins` out.")
        columns, scales, sites, widths = [], [], [], []
        for site in names:
            each = self._moments(site)
            for step in self.kept_steps:
                one = Moments(*(part[step : step + 1] for part in (each.count, each.total, each.squares)))
                standard = Standardisation.from_moments(one)
                columns.append(standard.mean)
                scales.append(standard.scale)
                sites.append(f"{site}@{step}")
                widths.append(self.widths[site])
        return Standardisation(torch.cat(columns, 1), torch.cat(scales, 1), sites, widths)

    @property
    def kept_steps(self) -> list[int]:
        """The denoising steps whose activations were kept."""
        return sorted(set(self._tensor(self._some()[0], "label.step").tolist()))

    def activations(
        self,
        *read: str,
        write: Sequence[str] | None = None,
        bins: Sequence[Sequence[int]] | None = None,
        across_steps: bool = False,
    ) -> StoredActivations:
        """Rows to train a dictionary on, read as they are needed.

        Args:
            read: sites whose activations are read, side by side; the only one, if not given.
            write: sites that are to be reconstructed from them; those that are read, if not given.
            bins: as in `standardisation`.
            across_steps: a row is a picture's cell, with its activations at all steps that were kept side by side:
                what a crosscoder over steps is trained on.

        Raises:
            SiteError: a site that was not harvested.
            ShapeError: bins, or sites to write, beside `across_steps`.
        """
        if across_steps and (bins is not None or write is not None):
            raise ShapeError("Across steps a row has all steps and writes what it reads; leave `bins` and `write` out.")
        steps = len(self.kept_steps) if across_steps else 1
        written = None if write is None else self.checked(write)
        return StoredActivations(self, self.checked(read), written, bins, steps)

    def checked(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Names of sites that were harvested; the only one, of none.

        Raises:
            SiteError: one that was not, or none of several.
        """
        if not sites and len(self.widths) == 1:
            return self.sites
        if not sites:
            raise SiteError(f"Name the sites, of {', '.join(self.sites)}.")
        for site in sites:
            if site not in self.widths:
                raise SiteError(f"{site} was not harvested." + nearest(site, self.widths))
        return tuple(sites)

    def _moments(self, site: str) -> Moments:
        parts = [
            Moments(*(self._tensor(shard, f"{part}.{site}") for part in ("count", "total", "squares")))
            for shard in self._some()
        ]
        return sum(parts[1:], parts[0])

    def _some(self) -> list[Shard]:
        if not self.shards:
            raise ShapeError(f"{self.folder} holds no rows.")
        return self.shards

    def _opened(self, shard: Shard) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.folder / shard.file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{self.folder / shard.file} cannot be read: {error}.") from error

    def _tensor(self, shard: Shard, name: str) -> Tensor:
        opened = self._opened(shard)
        if name not in opened.keys():  # noqa: SIM118 (it is no mapping)
            kind = name.split(".")[0]
            have = [key.removeprefix(f"{kind}.") for key in opened.keys() if key.startswith(f"{kind}.")]  # noqa: SIM118
            raise InterpError(f"{self.folder} keeps no {name!r}." + nearest(name.removeprefix(f"{kind}."), have))
        return opened.get_tensor(name)

    def __repr__(self) -> str:
        state = "" if self.complete else ", not complete"
        return (
            f"Store({self.folder}: {len(self)} rows of {', '.join(self.sites)}, {len(self.shards)} shards, "
            f"{self.bytes / 2**20:.0f} MiB{state})"
        )


class StoredActivations:
    """Rows of a store, in any order. Shards are mapped into memory, so the operating system keeps what it can."""

    def __init__(
        self,
        store: Store,
        read: tuple[str, ...],
        write: tuple[str, ...] | None,
        bins: Sequence[Sequence[int]] | None,
        steps: int = 1,
    ) -> None:
        self.store, self.read, self.write, self.bins, self.steps = store, read, write, bins, steps
        self._starts = torch.tensor([0, *(shard.rows for shard in store.shards)]).cumsum(0)
        self._bin = None
        if bins is not None:
            of_step = torch.empty(store.steps, dtype=torch.long)
            for number, one in enumerate(bins):
                of_step[list(one)] = number
            self._bin = of_step[store.label("step")]

    @property
    def mark(self) -> str:
        """As `Activations.mark`."""
        about = [self.read, self.write, self.bins, self.steps, [shard.sha256 for shard in self.store.shards]]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.store) // self.steps

    def batch(self, rows: Int[Tensor, "row"]) -> Batch:
        """As `Activations.batch`, in the type that the store keeps."""
        if self.steps > 1:  # steps are innermost
            every = (rows[:, None] * self.steps + torch.arange(self.steps)).flatten()
            x = self._rows(every).x.view(len(rows), self.steps, -1)
            widths = [self.store.widths[site] for site in self.read]
            return Batch(torch.cat([part.flatten(1) for part in x.split(widths, dim=2)], 1))
        return self._rows(rows)

    def _rows(self, rows: Tensor) -> Batch:
        where = torch.searchsorted(self._starts, rows, right=True) - 1
        parts = [(int(s), (where == s).nonzero()[:, 0]) for s in where.unique()]
        bins = None if self._bin is None else self._bin[rows]
        target = None if self.write is None else self._side_by_side(self.write, rows, parts)
        return Batch(self._side_by_side(self.read, rows, parts), target, bins)

    def _side_by_side(self, sites: tuple[str, ...], rows: Tensor, parts: Sequence[tuple[int, Tensor]]) -> Tensor:
        out = torch.empty(len(rows), sum(self.store.widths[site] for site in sites), dtype=self.store.dtype)
        column = 0
        for site in sites:
            width = self.store.widths[site]
            for shard, at in parts:
                out[at, column : column + width] = self._mapped[shard][f"x.{site}"][rows[at] - self._starts[shard]]
            column += width
        return out

    @cached_property
    def _mapped(self) -> list[dict[str, Tensor]]:
        sites = dict.fromkeys([*self.read, *(self.write or ())])
        return [{f"x.{s}": self.store._tensor(shard, f"x.{s}") for s in sites} for shard in self.store.shards]


def _not_finite(site: str, kept: Tensor, x: Tensor, labels: Mapping[str, Tensor]) -> str:
    row, channel = (int(i) for i in (~kept.isfinite()).nonzero()[0])
    where = ", ".join(f"{name} {int(label[row])}" for name, label in labels.items())
    value = float(x[row, channel])
    if torch.isfinite(x[row, channel]):
        return (
            f"{site} is {value:g} at {where}, channel {channel}: too large for {kept.dtype}; keep bfloat16 or float32."
        )
    return f"{site} is {value} at {where}, channel {channel}. Nothing of this shard was kept."
