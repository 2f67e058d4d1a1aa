"""PNG files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects
import pytest

from interp.errors import InterpError
from interp.plots import write_png


def test_png_has_the_wanted_size(tmp_path: Path) -> None:
    figure = plotly.graph_objects.Figure(plotly.graph_objects.Scatter(y=[1, 2]))
    write_png(figure, tmp_path / "f.png", width=200, height=100, scale=3.0)
    content = (tmp_path / "f.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert [int.from_bytes(content[start : start + 4], "big") for start in (16, 20)] == [600, 300]


@pytest.mark.parametrize("error", [ValueError("kaleido is not installed"), ImportError("no"), RuntimeError("Chrome")])
def test_without_kaleido(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise error

    monkeypatch.setattr(plotly.graph_objects.Figure, "to_image", fail)
    with pytest.raises(InterpError, match="kaleido"):
        write_png(plotly.graph_objects.Figure(), tmp_path / "f.png")
    assert not list(tmp_path.iterdir())
