"""Fixtures of the command line's tests."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.unit.cli.store import FakeStore

from dbranch_cli import invocation
from dbranch_cli.main import cli


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a command over a store and returns its result."""
    monkeypatch.delenv("DBRANCH_PROJECT", raising=False)

    def run(store: FakeStore, *arguments: str) -> Result:
        monkeypatch.setattr(invocation.Invocation, "store", store)
        monkeypatch.setattr(invocation.Invocation, "namespace", "team")
        return CliRunner().invoke(cli, [*arguments, "-p", "shop"])

    return run
