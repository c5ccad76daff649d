"""Options of every layer's tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

# The same inputs in every run, so that a run is red because of what was changed; --soak draws new ones. No deadline:
# that is a time-out of 200 ms an input, which a busy machine breaks.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None, max_examples=1000)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("search" if config.getoption("--soak") else "repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="the long forms: every point, more rounds")
    parser.addoption("--update-golden", action="store_true", help="write the outputs in docs/cli.md anew")
    parser.addoption(
        "--chaos", metavar="SECONDS", help="end to end: the controller and the agents are deleted so often"
    )


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--soak"))
