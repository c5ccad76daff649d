"""The examples in docstrings hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import dbranch
import dbranch_cli


def _modules() -> list[str]:
    packages: list[ModuleType] = [dbranch, dbranch_cli]
    return [
        module.name
        for package in packages
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]


@pytest.mark.parametrize("module", _modules())
def test_examples(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    examples = [
        test
        for module in _modules()
        for test in finder.find(importlib.import_module(module))
        if test.examples
    ]
    assert len(examples) > 5
