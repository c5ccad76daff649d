"""`hack/words` finds retired words, and only those."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def words() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("hack_words", str(ROOT / "hack" / "words"))
    spec = importlib.util.spec_from_loader("hack_words", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


PAGE = """
## Retired words

| retired | where | use instead |
|---|---|---|
| `frob`, `frobs` | everywhere | reconcile |
| `widget` | names | scope |
| `gizmo` | whole | existing |
"""


@pytest.mark.parametrize(
    ("text", "is_python", "hits"),
    [
        ("Asked for a Frob.", False, [1]),
        ("last_frobs = 1\n", True, [1]),
        ("x = 1\nwidget_graph = 2\n", True, [2]),
        ("gizmo = 1\n", True, [1]),
        ("# gizmo is text\ngizmofore = 1\n", True, []),
        ("A widget in a text.\n", False, []),
        ("refrobed = 1\n", True, []),
    ],
)
def test_hits(words: ModuleType, text: str, is_python: bool, hits: list[int]) -> None:
    result = words.hits_in(text, is_python, words.read_list(PAGE))
    assert [line for line, _, _ in sorted(result)] == hits


def test_the_page_lists_words_of_each_scope(words: ModuleType) -> None:
    listed = words.read_list((ROOT / words.PAGE).read_text(encoding="utf-8"))
    assert all(listed[scope] for scope in ("everywhere", "names", "whole"))
