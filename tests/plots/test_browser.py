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
search.value = "early"; search.dispatchEvent(new Event("input"));
told.found = [...document.querySelectorAll("#list a")].map((a) => a.textContent);
search.value = ""; search.dispatchEvent(new Event("input"));
const order = document.getElementById("order");
order.value = "f1"; order.dispatchEvent(new Event("change"));
told.sorted = [...document.querySelectorAll("#list a")].map((a) => a.getAttribute("href"));
const click = (selector) =>
  document.querySelector(selector).dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true}));
const texts = (selector) => [...document.querySelectorAll(selector)].map((one) => one.textContent);
told.heads = texts("#graph .head"); told.nodes = texts("#graph .node text"); told.edges = document.querySelectorAll("#graph .edge").length;
told.hover = texts("#graph .edge title")[0]; told.left = texts("#graph .soft");
document.querySelector('[data-node="0"] rect').dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
told.faint = [...document.querySelectorAll("#graph .edge")].map((edge) => edge.classList.contains("faint"));
told.lowers = document.querySelectorAll("#graph .edge.lowers").length;
let visited = 0;
window.addEventListener("hashchange", () => setTimeout(() => {
  visited += 1;
  if (visited === 1) {
    told.concept = document.querySelector("h1").textContent;
    told.token = texts(".text .at");
    told.around = texts(".neighbours .node text"); told.here = texts(".neighbours .here text");
    click('.neighbours [data-node="2"]');
  } else {
    told.child = document.querySelector("h1").textContent; told.parents = texts(".parents a");
    told.title = document.title; told.errors = window.errors;
    document.body.dataset.told = JSON.stringify(told);
  }
}, 50));
click('#graph [data-node="0"]');
}
</script>
"""


def page():
    def concept(level, number, label, f1, tokens):
        example = {"name": "strongest 1", "value": 1.0, "tokens": tokens, "activations": [0.0, 1.0, 0.2], "at": 1}
        return {
            "id": f"{level}/{number}", "level": level, "latent": number, "label": label, "candidate": label,
            "numbers": {"strongest": 1.0, "f1": f1}, "histogram": [1, 2], "hint": tokens[1], "examples": [example],
        }  # fmt: skip

    def node(level, name, number, concept, label=""):
        numbers = {"frequency": 0.25, "breadth": None}
        return {
            "name": f"{name}/{number}",
            "level": level,
            "latent": number,
            "concept": concept,
            "label": label,
            "numbers": numbers,
        }

    return {
        "title": "A dictionary", "about": [EVIL], "summary": "two lines\nof words", "meaning": {"f1": "F1"},
        "orders": ["f1"], "bins": [0.5, 1.0], "pictures": [], "prompts": [],
        "concepts": [
            concept("early", 3, EVIL, 0.4, ["on", EVIL, "."]), concept("late %", 3, "", 0.9, ["a", " weekend", "\u2028"])
        ],
        "graph": {
            "levels": [{"name": "early", "place": "L1.resid_post"}, {"name": "late %", "place": "L2.resid_post"}],
            "nodes": [
                node(0, "early", 3, "early/3", EVIL), node(0, "early", 5, None), node(1, "late %", 3, "late %/3"),
                node(1, "late %", 4, None), node(1, "late %", 9, None),
            ],
            "edges": [
                {"parent": 0, "child": 2, "effect": 0.5, "predicted": 0.25}, {"parent": 1, "child": 2, "effect": -0.1, "predicted": None},
                {"parent": 0, "child": 3, "effect": 0.2, "predicted": 0.2},
            ],
            "nodeMeaning": {"frequency": "share", "breadth": "children"},
            "edgeMeaning": {"effect": "measured", "predicted": "predicted"},
        },
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
        "start": "A dictionary", "all": 2, "found": [f"early/3 · {EVIL}"], "sorted": ["#late%20%25%2F3", "#early%2F3"],
        # early 5 stands above early 3, so that no edges cross
        "heads": ["early", "late %"], "nodes": ["5", f"3 · {EVIL}", "3", "4"], "edges": 3, "lowers": 1,
        "left": ["1 of 5 concepts have no such edge and are left out."],
        "hover": "early/5 → late %/3\nmeasured -0.1, predicted –", "faint": [True, False, False],
        "concept": f"early, latent 3: {EVIL}", "token": [EVIL], "around": [f"3 · {EVIL}", "3", "4"], "here": [f"3 · {EVIL}"],
        "child": "late %, latent 3", "parents": [f"early/3 · {EVIL}"], "title": "A dictionary", "errors": [],
    }  # fmt: skip


def test_without_a_graph_there_is_a_list_alone(chromium, tmp_path):
    write_browser(tmp_path / "page.html", "A dictionary", page() | {"graph": None})
    seen = chromium(tmp_path / "page.html")
    assert 'data-ready="yes"' in seen and 'id="graph"' not in seen and ">early/3" in seen


def test_nothing_of_the_data_can_end_the_script(tmp_path):
    write_browser(tmp_path / "page.html", EVIL, page())
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert EVIL not in text and text.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(data) == page()
    assert "default-src 'none'" in text and "http://" not in text.replace("http://www.w3.org", "")
    with pytest.raises(ValueError, match="Out of range float"):
        browser("x", {"concepts": [float("nan")]})
