"""Texts from Python's manual, from tasks, and from a data set (a stand-in; nothing is downloaded)."""

from __future__ import annotations

import sys
import types

import pytest

from interp.dictionaries.texts import hub_texts, python_manual, task_texts
from interp.errors import InterpError
from interp.tasks.ioi import ioi


def test_the_manual_has_paragraphs():
    texts = python_manual()
    assert len(texts) > 500 and min(map(len, texts)) >= 200 and len(set(texts)) > 500
    assert not any("\n" in text or "  " in text for text in texts)
    assert python_manual(7) == texts[:7]
    assert any("assignment" in text for text in texts)


def test_sentences_of_tasks():
    task = ioi(5, seed=0)
    texts = task_texts(task, task)
    assert len(texts) == len(set(texts)) == 10
    assert task.pairs[0].clean + task.pairs[0].answer in texts


@pytest.fixture
def hub(monkeypatch):
    asked = []
    module = types.ModuleType("datasets")

    def load_dataset(*where, **how):
        asked.append((where, how))
        return ({"text": f"text {i}"} for i in range(10))

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_data_set_is_streamed(hub):
    assert hub_texts("owner/name", 3, config="small") == ["text 0", "text 1", "text 2"]
    assert hub == [(("owner/name", "small"), {"split": "train", "streaming": True})]
    with pytest.raises(InterpError, match="no column 'txt'; it has text"):
        hub_texts("owner/name", 3, column="txt")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InterpError, match="pip install datasets"):
        hub_texts("owner/name", 3)
