"""The concept browser in a real one: it loads, searches, follows an edge, and shows markup in tokens as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from interp.plots.browser import browser, write_browser

EVIL = "<script>document.title='taken'</script>"
DRIVER = """
<script>
window.errors = [];
window.addEventListener("error", (event) => window.errors.push(event.message));
</script>
"""
STEPS = """
<script>
{
const told = {start: document.querySelector("h1").textContent, all: document.querySelectorAll("#list li").length};
const search = document.getElementById("search");
search.value = "weekday"; search.dispatchEvent(new Event("input"));
told.found = [...document.querySelectorAll("#list a")].map((a) => a.textContent);
search.value = ""; search.dispatchEvent(new Event("input"));
const order = document.getElementById("order");
order.value = "f1"; order.dispatchEvent(new Event("change"));
told.sorted = [...document.querySelectorAll("#list a")].map((a) => a.getAttribute("href"));
window.addEventListener("hashchange", () => setTimeout(() => {
  if (location.hash === "#3") {
    told.concept = document.querySelector("h1").textContent;
    told.token = [...document.querySelectorAll(".text .at")].map((span) => span.textContent);
    document.querySelector("table.children a").click();
  } else {
    told.child = document.querySelector("h1").textContent;
    told.title = document.title; told.errors = window.errors;
    document.body.dataset.told = JSON.stringify(told);
  }
}, 50));
document.querySelector("#edges a").click();
}
</script>
"""


def page():
    def concept(number, label, f1, tokens):
        example = {"name": "strongest 1", "value": 1.0, "tokens": tokens, "activations": [0.0, 1.0, 0.2], "at": 1}
        return {
            "id": number, "label": label, "candidate": label, "numbers": {"strongest": 1.0, "f1": f1}, "histogram": [1, 2],
            "hint": tokens[1], "examples": [example],
        }  # fmt: skip

    return {
        "title": "A dictionary", "about": [EVIL], "summary": "two lines\nof words", "meaning": {"f1": "F1"},
        "orders": ["f1"], "bins": [0.5, 1.0], "edges": [{"parent": 3, "child": 8, "weight": 0.5, "measured": None}],
        "edgeColumns": ["weight", "measured"],
        "concepts": [concept(3, "weekday", 0.4, ["on", EVIL, "."]), concept(8, "", 0.9, ["a", " weekend", "\u2028"])],
    }  # fmt: skip


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A function from a page to its document after scripts ran."""
    name = next((n for n in ("chromium", "chromium-browser", "google-chrome") if shutil.which(n)), None)
    if name is None:
        pytest.skip("no Chromium on this machine; `apt-get install chromium` brings one")
    command = [name, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]

    def dom(path) -> str:
        return subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=300, check=True).stdout

    plain = tmp_path_factory.mktemp("plain") / "page.html"
    plain.write_text("<p id='it'></p><script>document.getElementById('it').textContent = 6 * 7</script>")
    try:
        assert '"it">42<' in dom(plain)
    except (OSError, subprocess.SubprocessError, AssertionError) as error:
        pytest.skip(f"the Chromium of this machine runs no page ({type(error).__name__})")
    return dom


def test_it_loads_searches_sorts_and_follows_an_edge(chromium, tmp_path):
    text = browser("A dictionary", page())
    path = tmp_path / "page.html"
    path.write_text(text.replace("<body>", "<body>" + DRIVER).replace("</body>", STEPS + "</body>"), encoding="utf-8")
    told = re.search(r'data-told="([^"]*)"', chromium(path))
    assert told, "the page did not get through its steps"
    assert json.loads(unescape(told[1])) == {
        "start": "A dictionary", "all": 2, "found": ["3 · weekday"], "sorted": ["#8", "#3"],
        "concept": "Latent 3: weekday", "token": [EVIL], "child": "Latent 8", "title": "A dictionary", "errors": [],
    }  # fmt: skip


def test_nothing_of_the_data_can_end_the_script(tmp_path):
    write_browser(tmp_path / "page.html", EVIL, page())
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert EVIL not in text and text.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(data) == page()
    assert "default-src 'none'" in text and "http://" not in text.replace("http://www.w3.org", "")
    with pytest.raises(ValueError, match="Out of range float"):
        browser("x", {"concepts": [float("nan")]})
