"""Why an agent is not Ready on a node that cannot hold pools."""

from __future__ import annotations

from pathlib import Path

from dbranch.agent.preflight import not_ready_reason


def test_an_agent_names_what_its_node_is_missing() -> None:
    base = Path("/var/lib/dbranch")
    assert not_ready_reason(base, propagates=True, immutable=True) is None
    assert "Bidirectional" in str(not_ready_reason(base, propagates=False, immutable=False))
    assert "immutable" in str(not_ready_reason(base, propagates=True, immutable=False))
