"""Results round-trip exactly, and a file that is not exactly what was saved is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from interp import results
from interp.errors import InterpError, LoadError
from interp.results import Result, provenance, replacing


@dataclass(frozen=True, repr=False, eq=False)
class Heads(Result):
    title = "Effect of <each> head"


@dataclass(frozen=True, repr=False, eq=False)
class Traces(Result):
    def __post_init__(self) -> None:
        super().__post_init__()
        if "effect" not in self.data:
            raise InterpError("Traces need an effect.")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Heads` and `Traces` as if interp defined them."""
    for kind in (Heads, Traces):
        monkeypatch.setattr(kind, "__module__", "interp.results")
        monkeypatch.setattr(results, kind.__name__, kind, raising=False)


def example() -> xarray.Dataset:
    effect = numpy.linspace(-1, 2, 24).reshape(2, 3, 4)
    effect[0, 1, 2] = numpy.nan
    return xarray.Dataset(
        {
            "effect": (("layer", "pos", "example"), effect, {"units": "logits"}),
            "tiny": (("layer",), numpy.array([-0.0, 1e-40], dtype=numpy.float32)),
            "correct": (("example",), numpy.array([True, False, True, True])),
            "clean": ((), 3.5),
            "nothing": (("none",), numpy.zeros(0)),
        },
        coords={
            "layer": [0, 1],
            "token": ("pos", [" Mary", "é\n", " Mary"]),
            "nul": ("pos", numpy.array(["\0", "a\0b", ""], dtype=object)),
            "narrow": ("pos", numpy.array(["", "\0a", "x"])),
            "subject": ("pos", [False, True, False]),
            "scale": ("pos", numpy.array([0.1, numpy.nan, 3], dtype=numpy.float32)),
            "example": ["first", "second", "", "fourth"],
            "wide": ("layer", numpy.array([2**63, 1], dtype=numpy.uint64)),
        },
        attrs={"method": "é json:", "list": [1, 2.5, None, True], "empty": "", "odd": "json:{"},
    )


def saved(tmp_path: Path) -> tuple[Path, Result]:
    result = Result(example(), provenance(model="toy", seed=0, n_attempted=5, n_scored=4))
    result.save(tmp_path / "result.nc")
    return tmp_path / "result.nc", result


def assert_same(one: Result, other: Result) -> None:
    assert type(one) is type(other)
    xarray.testing.assert_identical(one.data, other.data)
    assert set(one.data.coords) == set(other.data.coords)
    for name, variable in one.data.variables.items():
        assert variable.dtype == other.data.variables[name].dtype, name
        if variable.dtype.kind == "f":
            assert variable.values.tobytes() == other.data.variables[name].values.tobytes()
    assert dict(one.provenance) == dict(other.provenance)
    assert one.data.attrs == other.data.attrs


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path, result = saved(tmp_path)
    loaded = Result.load(path)
    assert_same(result, loaded)
    assert numpy.signbit(loaded.data["tiny"].values[0])
    assert loaded.data["nul"].values.tolist() == ["\0", "a\0b", ""]
    assert loaded.data["narrow"].values.tolist() == ["", "\0a", "x"]
    loaded.save(path)
    assert_same(result, Result.load(path))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(
    values=arrays.arrays(
        st.sampled_from(["float64", "float32", "int64", "uint8", "bool", "int16"]),
        arrays.array_shapes(min_dims=2, max_dims=2),
    ),
    tokens=st.data(),
    attr=json_values,
    origin=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)
def test_round_trip_of_anything(
    tmp_path_factory: pytest.TempPathFactory,
    values: numpy.ndarray,
    tokens: st.DataObject,
    attr: object,
    origin: dict,
) -> None:
    strings = numpy.empty(values.shape[1], dtype=object)
    strings[:] = tokens.draw(st.lists(text, min_size=values.shape[1], max_size=values.shape[1]))
    data = xarray.Dataset({"value": (("layer", "pos"), values, {"note": attr})}, {"token": ("pos", strings)})
    path = tmp_path_factory.mktemp("any") / "r.nc"
    result = Result(data, origin)
    result.save(path)
    assert_same(result, Result.load(path))


def test_data_are_a_read_only_copy() -> None:
    data = example()
    origin = {"sites": ["L0.z"], "pair": (1, 2)}
    result = Result(data, origin)
    data["effect"][0, 0, 0] = 99
    origin["sites"].append("L1.z")
    assert result.data["effect"].values[0, 0, 0] == -1
    assert result.provenance["sites"] == ["L0.z"] and result.provenance["pair"] == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        result.data["effect"].values[0, 0, 0] = 1
    with pytest.raises(FrozenInstanceError):
        result.data = data  # type: ignore[misc]
    with pytest.raises(TypeError):
        result.provenance["model"] = "x"  # type: ignore[index]


def test_a_file_knows_its_class(tmp_path: Path, kinds: None) -> None:
    path = tmp_path / "heads.nc"
    Heads(example(), {}).save(path)
    assert type(Result.load(path)) is Heads
    assert type(Heads.load(path)) is Heads
    with pytest.raises(LoadError, match="holds a Heads, not a Traces"):
        Traces.load(path)


def test_contents_that_the_class_refuses(tmp_path: Path, kinds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    Traces(example(), {}).save(tmp_path / "t.nc")

    def refuse(self: Result) -> None:
        raise InterpError("no effect")

    monkeypatch.setattr(Traces, "__post_init__", refuse)
    with pytest.raises(LoadError, match="intact but Traces refuses"):
        Result.load(tmp_path / "t.nc")


def test_a_class_outside_interp_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InterpError, match="cannot be saved"):
        Heads(example(), {}).save(tmp_path / "heads.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("os:system", "not a result of the interp package"),
        ("interpol.results:Result", "not a result of the interp package"),
        ("interp.results:provenance", "is not a Result"),
        ("interp.results:Path", "is not a Result"),
        ("interp.results:Missing", "not known to this version"),
        ("interp.nowhere:Result", "not known to this version"),
        ("interp.results:Result.load", "not a result of the interp package"),
        ("", "not a result of the interp package"),
    ],
)
def test_only_results_of_interp_are_imported(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "forged.nc"  # a digest that is right, and a class that is not
    results._encoded(Result(example(), {}).data, kind, {}).to_netcdf(path, engine="netcdf4")
    with pytest.raises(LoadError, match=message):
        Result.load(path)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no result file"):
        Result.load(tmp_path / "missing.nc")
    with pytest.raises(LoadError, match="is a folder"):
        Result.load(tmp_path)
    for name, content in {
        "empty": b"",
        "text": b"layer,effect\n0,1\n",
        "hdf": b"\x89HDF\r\n\x1a\n" + bytes(500),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LoadError, match="not a readable result file"):
            Result.load(tmp_path / name)
    foreign = tmp_path / "foreign.nc"
    xarray.Dataset({"rain": ("day", [1.0, 2.0])}).to_netcdf(foreign, engine="netcdf4")
    with pytest.raises(LoadError, match=r"not a result of this version of interp.*rain"):
        Result.load(foreign)


def test_truncation_is_refused(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 1, max(1, len(whole) // 60)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(LoadError, match="truncated or damaged"):
            Result.load(path)


def test_flipped_bits_in_the_contents_are_refused(tmp_path: Path) -> None:
    path, result = saved(tmp_path)
    whole = path.read_bytes()
    parts = {
        "effect": result.data["effect"].values.tobytes(),
        "tiny": result.data["tiny"].values.tobytes(),
        "unit": b"logits",
        "token": b" Mary",
        "model": b'"model":"toy"',
        "class": b"interp.results:Result",
        "digest": results._digest(result.data, "interp.results:Result", dict(result.provenance)).encode(),
    }
    for name, part in parts.items():
        start = whole.find(part)
        assert start > 0, name
        for offset in range(0, len(part), max(1, len(part) // 12)):
            for bit in (1, 0x80):
                altered = bytearray(whole)
                altered[start + offset] ^= bit
                path.write_bytes(bytes(altered))
                with pytest.raises(LoadError):
                    Result.load(path)


def test_a_flip_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    path, result = saved(tmp_path)
    whole = path.read_bytes()
    refused = 0
    for position in numpy.random.default_rng(0).integers(0, len(whole), 80):
        altered = bytearray(whole)
        altered[position] ^= 0xFF
        path.write_bytes(bytes(altered))
        try:
            loaded = Result.load(path)
        except LoadError:
            refused += 1
        else:
            assert_same(result, loaded)
    assert refused > 2


def test_an_altered_attribute_is_refused(tmp_path: Path) -> None:
    import netCDF4

    path, _ = saved(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        file["effect"].units = "nats"
    with pytest.raises(LoadError, match="altered after it was saved"):
        Result.load(path)


def test_a_variable_more_is_refused(tmp_path: Path) -> None:
    import netCDF4

    path, _ = saved(tmp_path)
    with netCDF4.Dataset(path, "a") as file:
        file.createVariable("more", "f8", ("layer",)).interp_dtype = "<f8"
    with pytest.raises(LoadError, match="altered"):
        Result.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, result = saved(tmp_path)
    before = path.read_bytes()

    def break_off(self: xarray.Dataset, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(xarray.Dataset, "to_netcdf", break_off)
    with pytest.raises(OSError, match="disk full"):
        result.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["result.nc"]


def test_a_save_that_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, result = saved(tmp_path)
    before = path.read_bytes()
    write = xarray.Dataset.to_netcdf

    def write_less(self: xarray.Dataset, target: Path, **options: object) -> None:
        write(self.isel(example=slice(0, 1)), target, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(xarray.Dataset, "to_netcdf", write_less)
    with pytest.raises(LoadError, match="altered"):
        result.save(path)
    assert path.read_bytes() == before


def test_replacing(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")

    def interrupted() -> None:
        with replacing(target) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError, match="no folder"), replacing(tmp_path / "no" / "x"):
        pass


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (xarray.Dataset({"a b": 1.0}), "cannot name"),
        (xarray.Dataset({"interp_x": 1.0}), "cannot name"),
        (xarray.Dataset({"a": ("x/y", [1.0])}), "cannot name"),
        (xarray.Dataset({"a": numpy.float16(1)}), "holds float16"),
        (xarray.Dataset({"a": 1j}), "holds complex128"),
        (xarray.Dataset({"a": ("x", numpy.array(["\ud83d"]))}), "half a character"),
        (xarray.Dataset({"a": ("x", numpy.array(["s", 1], dtype=object))}), "int"),
        (xarray.Dataset({"a": ("x", numpy.array(["2020-01-01"], dtype="datetime64[ns]"))}), "datetime64"),
        (xarray.Dataset({"a": 1.0}, attrs={"of": object()}), "data.attrs.of is a object"),
        (xarray.Dataset({"a": 1.0}, attrs={"coordinates": "x"}), "reserves"),
        (xarray.Dataset({"a": ((), 1.0, {"_FillValue": 0})}), "reserves"),
        (
            xarray.Dataset({"a": (("p", "q"), [[1.0]])}, {"p": [0], "q": [0]}).stack(both=("p", "q")),
            "multi-index",
        ),
    ],
)
def test_data_that_cannot_be_kept(data: xarray.Dataset, message: str) -> None:
    with pytest.raises(InterpError, match=message):
        Result(data, {})


def test_provenance_that_json_cannot_hold() -> None:
    with pytest.raises(InterpError, match=r"provenance\.edits\[1\] is a set"):
        Result(example(), {"edits": ["x", {1}]})
    with pytest.raises(InterpError, match="key 1"):
        Result(example(), {"by": {1: "x"}})
    with pytest.raises(InterpError, match="provenance.site is a object"):
        provenance(site=object())
    with pytest.raises(InterpError, match="versions"):
        provenance(versions={})


def test_provenance_adds_versions_and_time() -> None:
    found = provenance(model="toy", counts=numpy.array([1, 2]), share=numpy.float32(0.5), yes=numpy.bool_(True))
    assert found["counts"] == [1, 2] and found["share"] == 0.5 and found["yes"] is True
    assert found["versions"].keys() == {"interp", "torch", "transformers", "python"}
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["created"].endswith("+00:00")


def test_dataframe_is_long() -> None:
    frame = Result(example().drop_vars("nothing"), {}).to_dataframe()
    assert len(frame) == 24
    row = frame[(frame["layer"] == 1) & (frame["pos"] == 2) & (frame["example"] == "second")].iloc[0]
    assert row["effect"] == example()["effect"].values[1, 2, 1]
    assert row["token"] == " Mary" and row["clean"] == 3.5 and not row["correct"]
    assert Result(xarray.Dataset({"iia": 0.5}), {}).to_dataframe().to_dict("list") == {"iia": [0.5]}


def test_json_is_strict() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = example().assign(odds=("layer", [numpy.inf, 1.0]))
    whole = json.loads(Result(data, {"gap": float("nan")}).to_json(), parse_constant=refuse)
    assert whole["class"] == "interp.results:Result"
    assert whole["provenance"] == {"gap": None}
    assert whole["data"]["variables"]["effect"]["values"][0][1][2] is None
    assert whole["data"]["variables"]["odds"]["values"] == [None, 1.0]
    assert whole["data"]["variables"]["effect"]["dims"] == ["layer", "pos", "example"]
    assert whole["data"]["coords"]["token"]["values"][0] == " Mary"
    assert whole["data"]["variables"]["correct"]["values"] == [True, False, True, True]


def test_nan_in_provenance_survives_a_file(tmp_path: Path) -> None:
    Result(example(), {"gap": float("nan")}).save(tmp_path / "r.nc")
    assert numpy.isnan(Result.load(tmp_path / "r.nc").provenance["gap"])


def test_repr_is_short_and_says_what_it_is() -> None:
    shown = repr(Heads(example(), {"model": "toy", "n_scored": 4, "n_attempted": 5}))
    assert "Heads: Effect of <each> head" in shown
    assert "layer 2 · pos 3 · example 4" in shown
    assert "effect (logits): mean 0.5" in shown and "from -1 to 2, 1 missing" in shown
    assert "3 of 4 true" in shown and "4 of 5 scored" in shown
    assert len(shown.splitlines()) < 12


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)


def test_html_escapes_everything() -> None:
    evil = "<script>alert(1)</script>"
    data = xarray.Dataset(
        {"effect": ("pos", [1.0], {"units": evil})}, {"token": ("pos", [evil])}, attrs={"method": evil}
    )
    page = Result(data, {"model": evil})._repr_html_()
    assert "script" not in _Tags(page).seen
    assert "&lt;script&gt;" in page


def test_import_is_light() -> None:
    heavy = "{'xarray', 'pandas', 'numpy', 'torch', 'transformers', 'netCDF4', 'scipy', 'plotly', 'statsmodels'}"
    code = f"import sys, interp.results, interp.statistics, interp.plots; print({heavy} & set(sys.modules))"
    root = Path(importlib.util.find_spec("interp.results").origin).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "set()"
