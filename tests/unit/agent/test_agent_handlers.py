"""Which events of an object that is being deleted lead to a reconcile: those that its removal waits for."""

from __future__ import annotations

from typing import Any

from dbranch.agent.handlers import Deletions
from dbranch.api import names

BOTH = [names.CONTROLLER_FINALIZER, names.AGENT_FINALIZER]


def body(**meta: Any) -> dict[str, Any]:
    meta = {"uid": "x-uid", "finalizers": BOTH, "deletionTimestamp": "2026-11-28T08:00:00Z"} | meta
    return {"metadata": meta}


def test_a_deletion_goes_on_when_a_finalizer_goes_and_when_somebody_requests_it() -> None:
    deletions = Deletions()
    assert not deletions.has_changed("MODIFIED", body(deletionTimestamp=None))
    assert deletions.has_changed("MODIFIED", body())
    assert not deletions.has_changed("MODIFIED", body(resourceVersion="2"))
    assert deletions.has_changed("MODIFIED", body(finalizers=BOTH[1:]))
    requested = body(finalizers=BOTH[1:], annotations={names.AGENT_REQUESTED_AT: "1"})
    assert deletions.has_changed("MODIFIED", requested)
    assert not deletions.has_changed("MODIFIED", requested)


def test_a_branch_goes_on_with_the_controllers_word_and_not_with_what_else_is_written() -> None:
    deletions = Deletions()
    held = body(finalizers=BOTH[1:]) | {"status": {"release": "Pending"}}
    assert deletions.has_changed("MODIFIED", held)
    assert not deletions.has_changed(
        "MODIFIED", held | {"status": {"release": "Pending", "phase": "Deleting"}}
    )
    assert deletions.has_changed("MODIFIED", held | {"status": {"release": "2026-11-28T08:00:00Z"}})


def test_an_agent_that_starts_goes_on_and_what_is_gone_is_forgotten() -> None:
    deletions = Deletions()
    assert deletions.has_changed(None, body())
    assert not deletions.has_changed("DELETED", body())
    assert deletions.has_changed("ADDED", body())
