"""PNG files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects
import pytest

from interp.errors import InterpError
from interp.plots import image, write_png


def test_png_has_the_wanted_size(tmp_path: Path) -> None:
    figure = plotly.graph_objects.Figure(plotly.graph_objects.Scatter(y=[1, 2]))
    write_png(figure, tmp_path / "f.png", width=200, height=100, scale=3.0)
    content = (tmp_path / "f.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert [int.from_bytes(content[start : start + 4], "big") for start in (16, 20)] == [600, 300]


# Kaleido leaves the pipes of a dead renderer to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
def test_a_renderer_that_does_not_answer_is_replaced_by_a_new_one(tmp_path: Path, monkeypatch) -> None:
    """A stopped process is what a hung one looks like from outside."""
    import psutil
    from plotly.io import kaleido

    figure = plotly.graph_objects.Figure(plotly.graph_objects.Scatter(y=[1, 2]))
    write_png(figure, tmp_path / "f.png")
    renderer = psutil.Process(kaleido.scope._proc.pid)
    for member in [*renderer.children(recursive=True), renderer]:
        member.suspend()
    monkeypatch.setattr(image, "LIMIT", 2.0)
    monkeypatch.setattr(image, "_drawn", limited_once(image._drawn, monkeypatch))
    write_png(figure, tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    assert not renderer.is_running() or renderer.status() == psutil.STATUS_ZOMBIE


def limited_once(drawn, monkeypatch):
    """The second try has the usual time: a renderer needs some to start."""

    def one(figure, settings):
        try:
            return drawn(figure, settings)
        finally:
            monkeypatch.setattr(image, "LIMIT", 120.0)

    return one


@pytest.mark.parametrize("error", [ValueError("kaleido is not installed"), ImportError("no"), RuntimeError("Chrome")])
def test_without_kaleido(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise error

    monkeypatch.setattr(plotly.graph_objects.Figure, "to_image", fail)
    with pytest.raises(InterpError, match="kaleido"):
        write_png(plotly.graph_objects.Figure(), tmp_path / "f.png")
    assert not list(tmp_path.iterdir())
