"""Results: labelled numbers that know where they came from, and files that refuse to lie.

Every experiment returns a `Result`: an `xarray.Dataset` with named dimensions (layer, pos, head, example …)
and token strings as coordinates, plus a provenance: a JSON-able record of the model, prompts, edits, metric,
seed, versions and denominators. `save` writes one NetCDF-4 file, atomically, with a SHA-256 digest over
everything in it; `load` reads a file wholly and correctly, or raises `LoadError`. No pickle anywhere.

On disk, data are plain NetCDF that any reader opens. Attributes that are not simple strings are stored as
`json:…` text; what NetCDF cannot say (exact
dtypes, the class, the provenance) is in attributes named `interp_…`.
The digest finds damage and accidents; it is no signature, and does not prove who wrote a file.
"""

from __future__ import annotations

import hashlib
import html
import importlib
import json
import math
import os
import platform
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from interp.errors import InterpError, LoadError

if TYPE_CHECKING:
    import numpy
    import pandas
    import xarray

_Kind = TypeVar("_Kind", bound="Result")

_ENGINE = "netcdf4"
_FORMAT = "interp-result-1"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED_ATTRS = frozenset(
    {"coordinates", "dtype", "_FillValue", "missing_value", "scale_factor", "add_offset", "grid_mapping"}
)  # NetCDF conventions: xarray reads these as instructions about how a variable is stored


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """What an experiment found: labelled values, and how they were obtained.

    A subclass adds a `title` and a `plot()` and may override `summary()`; it adds no fields, because only
    `data` and `provenance` are saved.

    Args:
        data: one variable per metric or statistic, dimensions named by the house's axis words, strings such
            as tokens as coordinates, units in each variable's `attrs["units"]`. It is copied, and the values
            of the copy are read-only.
        provenance: JSON-able; see `provenance`. It is copied: tuples become lists.

    Raises:
        InterpError: a name that is not an identifier, values that are neither numbers, booleans nor strings,
            a provenance or attribute that JSON cannot hold.
    """

    data: xarray.Dataset
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _frozen(self.data))
        object.__setattr__(self, "provenance", MappingProxyType(_plain(self.provenance, "provenance")))

    def summary(self) -> str:
        """A few lines: what this is, its dimensions, mean and range of each variable, the denominators."""
        name = type(self).__name__
        title = getattr(self, "title", None)
        lines = [f"{name}: {title}" if isinstance(title, str) else name]
        lines.append(" · ".join(f"{dim} {size}" for dim, size in self.data.sizes.items()) or "one value")
        shown = list(self.data.data_vars.items())
        lines += [_numbers(str(key), variable) for key, variable in shown[:8]]
        if len(shown) > 8:
            lines.append(f"… and {len(shown) - 8} more variables")
        known = self.provenance
        keys = ("model", "metric", "seed")
        facts = [f"{key} {known[key]}" for key in keys if isinstance(known.get(key), str | int)]
        if "n_scored" in known and "n_attempted" in known:
            facts.append(f"{known['n_scored']} of {known['n_attempted']} scored")
        return "\n".join(lines + ([" · ".join(facts)] if facts else []))

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>{self.data._repr_html_()}"

    def to_dataframe(self) -> pandas.DataFrame:
        """The values in long form: one row per cell, a column per dimension, coordinate and variable.

        Variables that lack a dimension are repeated along it. A dimension without labels counts from 0.
        """
        import pandas

        if not self.data.sizes:
            return pandas.DataFrame(
                {str(name): [variable.values.item()] for name, variable in self.data.variables.items()}
            )
        return self.data.to_dataframe(dim_order=list(self.data.sizes)).reset_index()

    def to_json(self) -> str:
        """Everything as one strict JSON object, for the command line: `class`, `data`, `provenance`.

        NaN and infinities, which JSON lacks, become null.
        """

        def described(variable: xarray.Variable) -> dict[str, Any]:
            return {"dims": variable.dims, "attrs": variable.attrs, "values": variable.values.tolist()}

        variables = self.data.variables
        whole = {
            "class": _class_path(type(self)),
            "data": {
                "sizes": dict(self.data.sizes),
                "coords": {name: described(variables[name]) for name in self.data.coords},
                "variables": {name: described(variables[name]) for name in self.data.data_vars},
                "attrs": self.data.attrs,
            },
            "provenance": dict(self.provenance),
        }
        return json.dumps(_without_nan(whole), allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one NetCDF-4 file, which `load` reads back exactly.

        The file is written beside its destination, read back, compared, and only then moved into place: an
        interrupted or failed save leaves what was there before.

        Args:
            path: the file to write or replace, customarily `….nc`; its folder must exist.

        Raises:
            InterpError: a class that `load` could not find again (one outside the `interp` package).
            OSError: the folder is missing, full, or not writable.
        """
        kind = _class_path(type(self))
        try:
            found = _class_of(kind)
        except LoadError as error:
            raise InterpError(f"{kind} cannot be saved, for it could not be loaded again: {error}") from error
        if found is not type(self):
            raise InterpError(f"{kind} cannot be saved: that name now means another class.")
        encoded = _encoded(self.data, kind, dict(self.provenance))
        with replacing(path) as temporary:
            encoded.to_netcdf(temporary, engine=_ENGINE, format="NETCDF4", mode="w")
            _read(temporary)

    @classmethod
    def load(cls: type[_Kind], path: str | os.PathLike[str]) -> _Kind:
        """Read a saved result, as the class that was saved.

        Called on `Result` it accepts every result; called on a subclass, only that kind.

        Raises:
            LoadError: the file is missing, truncated, altered, not written by interp, of a class that is not
                a `Result` of the `interp` package, or of another class than the one asked for. The
                message says what was found.
        """
        source = Path(path)
        if not source.is_file():
            what = ": that is a folder." if source.is_dir() else "."
            raise LoadError(f"There is no result file at {source}{what}")
        kind, data, origin = _read(source)
        found = _class_of(kind)
        if not issubclass(found, cls):
            name = found.__name__
            raise LoadError(f"{source} holds a {name}, not a {cls.__name__}: use {name}.load.")
        try:
            return found(data, origin)
        except InterpError as error:
            name = found.__name__
            raise LoadError(f"{source} is intact but {name} refuses its contents: {error}") from error


def provenance(**items: Any) -> dict[str, Any]:
    """`items`, plus the versions of interp, torch, transformers and python, and the time (UTC).

    A package that is not installed has version None. Customary items: model, weights (hash), prompts, sites,
    edits, metric, seed, n_attempted, n_scored.

    Raises:
        InterpError: an item named `versions` or `created`, or one that JSON cannot hold.
    """
    if taken := {"versions", "created"} & items.keys():
        raise InterpError(f"provenance() itself fills in {' and '.join(sorted(taken))}: choose another name.")
    versions = {name: _version(name) for name in ("interp", "torch", "transformers")}
    versions["python"] = platform.python_version()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {**_plain(items, "provenance"), "versions": versions, "created": created}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success it replaces `path`, on any failure it is removed.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent}: create it first.")
    temporary = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened, nor need it be
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@cache  # looking them up takes milliseconds
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON's own types; numpy scalars and arrays become numbers and lists."""
    if hasattr(value, "tolist") and type(value).__module__ == "numpy":
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):  # subclasses, such as enumerations, become the plain type
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        if strangers := [key for key in value if not isinstance(key, str)]:
            raise InterpError(f"{where} has the key {strangers[0]!r}; keys must be strings.")
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InterpError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold. "
        "Allowed: str, int, float, bool, None, and lists and mappings of them; str() may be the fix."
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _numbers(name: str, variable: xarray.DataArray) -> str:
    unit = f" ({variable.attrs['units']})" if variable.attrs.get("units") else ""
    values = variable.values
    if values.dtype.kind == "b":
        return f"{name}{unit}: {int(values.sum())} of {values.size} true"
    if values.dtype.kind not in "iuf":
        return f"{name}{unit}: {values.size} strings"
    present = values[values == values]
    missing = f", {values.size - present.size} missing" if present.size < values.size else ""
    if not present.size:
        return f"{name}{unit}: no values{missing}"
    mean = present.mean(dtype=float)
    return f"{name}{unit}: mean {mean:.4g}, from {present.min():.4g} to {present.max():.4g}{missing}"


def _frozen(data: xarray.Dataset) -> xarray.Dataset:
    """A checked, loaded, read-only copy with plain attributes."""
    import pandas

    copy = data.compute().copy(deep=True).drop_encoding()
    copy.attrs = _checked_attrs(data.attrs, "data")
    for name, variable in copy.variables.items():
        for label in (name, *variable.dims):
            if not isinstance(label, str) or not _NAME.fullmatch(label) or label.startswith("interp_"):
                raise InterpError(f"{label!r} cannot name a variable or dimension: use letters, digits, _.")
        if isinstance(copy.indexes.get(name), pandas.MultiIndex):
            raise InterpError(f"The coordinate {name!r} is a multi-index; call reset_index first.")
        _check_values(str(name), variable.values)
        variable.attrs = _checked_attrs(variable.attrs, str(name))
        if name not in copy.indexes:  # those are immutable already
            variable.values.setflags(write=False)
    return copy


def _check_values(name: str, values: numpy.ndarray) -> None:
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b" or (kind in "iuf" and size <= 8 and values.dtype != "float16"):
        return
    if kind == "U" or (kind == "O" and all(isinstance(item, str) for item in values.flat)):
        try:
            "".join(values.flat).encode()
        except UnicodeEncodeError as error:
            raise InterpError(f"{name!r} holds half a character, which is not text: {error}.") from error
        return
    held = values.dtype if kind != "O" else sorted({type(item).__name__ for item in values.flat})
    allowed = "bool, integers, float32, float64 and str"
    raise InterpError(f"{name!r} holds {held}. Allowed: {allowed}; cast it first.")


def _checked_attrs(attrs: Mapping[Any, Any], where: str) -> dict[str, Any]:
    plain = _plain(dict(attrs), f"{where}.attrs")
    for key in plain:
        if not _NAME.fullmatch(key) or key.startswith("interp_") or key in _RESERVED_ATTRS:
            raise InterpError(
                f"{where}.attrs has {key!r}: use letters, digits and _, and no name that NetCDF reserves."
            )
    return plain


def _numpy() -> Any:
    import numpy

    return numpy


def _class_path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class_of(kind: str) -> type[Result]:
    """The class that a file names: only a `Result` of this package, so that a file cannot run other code."""
    module, _, name = kind.partition(":")
    if not re.fullmatch(r"interp(\.\w+)+", module) or not name.isidentifier():
        raise LoadError(f"The class {kind!r} is not a result of the interp package.")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise LoadError(f"The class {kind!r} is not known to this version of interp: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, Result)):
        raise LoadError(f"{kind!r} is not a Result.")
    return found


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))  # ASCII, so never a coding question


def _digest(data: xarray.Dataset, kind: str, origin: Mapping[str, Any]) -> str:
    """SHA-256 over class, provenance, attributes, and each variable's dimensions, dtype and bytes."""
    numpy = _numpy()
    sha = hashlib.sha256()

    def add(part: bytes) -> None:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)

    add(_json([_FORMAT, kind, origin, data.attrs]).encode())
    for name in sorted(map(str, data.variables)):
        variable = data.variables[name]
        values = variable.values
        dtype = values.dtype.newbyteorder("<")
        is_coord = name in data.coords
        add(_json([name, is_coord, variable.dims, variable.shape, dtype.str, variable.attrs]).encode())
        if values.dtype.kind in "OU":
            add(_json(values.ravel().tolist()).encode())
        else:
            add(numpy.ascontiguousarray(values, dtype).tobytes())
    return sha.hexdigest()


def _attr_text(value: Any) -> str:
    """A string that NetCDF keeps, from which `_attr_value` makes `value` again."""
    simple = isinstance(value, str) and value.isascii() and value.isprintable() and value
    return value if simple and not value.startswith("json:") else "json:" + json.dumps(value)


def _attr_value(text: Any) -> Any:
    return json.loads(text[5:]) if str(text).startswith("json:") else str(text)


def _encoded(data: xarray.Dataset, kind: str, origin: dict[str, Any]) -> xarray.Dataset:
    """The dataset as it is written: string attributes only, and notes of what NetCDF would lose."""
    import xarray

    variables = {}
    for name, variable in data.variables.items():
        values = variable.values
        attrs = {key: _attr_text(value) for key, value in variable.attrs.items()}
        attrs["interp_dtype"] = values.dtype.newbyteorder("<").str
        if values.dtype.kind in "OU":
            values = values.astype(object)
            if any("\0" in text for text in values.flat):  # HDF5 strings end at a NUL
                escaped = [json.dumps(text) for text in values.flat]
                values = _numpy().array(escaped, dtype=object).reshape(values.shape)
                attrs["interp_escaped"] = "json"
        encoding = {"_FillValue": None} if values.dtype.kind == "f" else {}
        variables[name] = xarray.Variable(variable.dims, values, attrs, encoding)
    coords = {name: variables.pop(name) for name in data.coords}
    encoded = xarray.Dataset(variables, coords)
    encoded.attrs = {key: _attr_text(value) for key, value in data.attrs.items()} | {
        "interp_format": _FORMAT,
        "interp_class": kind,
        "interp_coords": _json(sorted(map(str, data.coords))),
        "interp_provenance": _json(origin),
        "interp_sha256": _digest(data, kind, origin),
    }
    return encoded


def _read(path: Path) -> tuple[str, xarray.Dataset, dict[str, Any]]:
    """The class path, data and provenance in a file whose digest is right."""
    import xarray

    try:
        with xarray.open_dataset(path, engine=_ENGINE, decode_cf=False, cache=False) as opened:
            raw = opened.load()
        if raw.attrs.get("interp_format") != _FORMAT:
            found = f"interp_format is {raw.attrs.get('interp_format')!r}, not {_FORMAT!r}"
            raise LoadError(
                f"{path} is a NetCDF file but not a result of this version of interp: {found}; "
                f"its variables are {list(map(str, raw))}."
            )
        kind, data, origin = _decoded(raw)
        digest, recorded = _digest(data, kind, origin), str(raw.attrs["interp_sha256"])
    except LoadError:
        raise
    except Exception as error:  # a damaged file makes HDF5, netCDF and xarray raise a dozen types
        raise LoadError(
            f"{path} ({path.stat().st_size} bytes) is not a readable result file, "
            f"or is truncated or damaged: {type(error).__name__}: {error}"
        ) from error
    if digest != recorded:
        raise LoadError(
            f"{path} was altered after it was saved: its digest is {digest[:12]}…, "
            f"but it records {recorded[:12]}…. Restore it or run the experiment again."
        )
    return kind, data, origin


def _decoded(raw: xarray.Dataset) -> tuple[str, xarray.Dataset, dict[str, Any]]:
    import xarray

    variables = {}
    for name, variable in raw.variables.items():
        values = variable.values
        if variable.attrs.get("interp_escaped") == "json":
            decoded = _numpy().empty(values.shape, dtype=object)
            decoded.ravel()[:] = [json.loads(text) for text in values.flat]
            values = decoded
        attrs = {
            key: _attr_value(text)
            for key, text in variable.attrs.items()
            if key not in _RESERVED_ATTRS and not key.startswith("interp_")
        }
        values = values.astype(variable.attrs["interp_dtype"])
        variables[name] = xarray.Variable(variable.dims, values, attrs)
    coords = set(json.loads(raw.attrs["interp_coords"]))
    attrs = {key: _attr_value(text) for key, text in raw.attrs.items() if key not in _RESERVED_ATTRS}
    data = xarray.Dataset(
        {name: variable for name, variable in variables.items() if name not in coords},
        coords={name: variables[name] for name in coords},
        attrs={key: value for key, value in attrs.items() if not key.startswith("interp_")},
    )
    return str(raw.attrs["interp_class"]), data, json.loads(raw.attrs["interp_provenance"])
