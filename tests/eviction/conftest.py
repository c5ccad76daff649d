"""Fixtures for a node with a small disk: a kind cluster of one that `hack/test nodes` creates and removes."""

from __future__ import annotations

from tests.e2e.conftest import cluster, team

__all__ = ["cluster", "team"]
