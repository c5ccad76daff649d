"""Options of every layer's tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="the long forms: every point, more rounds")
    parser.addoption("--update-golden", action="store_true", help="write the outputs in docs/cli.md anew")
    parser.addoption(
        "--chaos", metavar="SECONDS", help="end to end: the controller and the agents are deleted so often"
    )


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--soak"))
