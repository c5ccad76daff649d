"""What kopf takes for news, decided from what a process remembers."""

from __future__ import annotations

from typing import Any

import kopf

from dbranch.runtime.kopf_storage import InMemoryDiffBaseStorage, Progress

MINE = "dbranch.io/controller"
FIELDS = {("status", "node")}
OTHERS = [("metadata", "annotations", "agent.dbranch.io/poke"), ("status", "node", "uniqueBytes")]


def body(uid: str = "u1", finalizers: tuple[str, ...] = (), deleted: bool = False, **more: Any) -> kopf.Body:
    meta: dict[str, Any] = {"name": "b", "uid": uid, "finalizers": list(finalizers)}
    if deleted:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    meta["annotations"] = more.pop("annotations", {})
    return kopf.Body({"kind": "DBBranch", "apiVersion": "v1", "metadata": meta, "spec": {}, **more})


def handle(storage: InMemoryDiffBaseStorage, seen: kopf.Body) -> tuple[Any, Any]:
    """What kopf does with an event that it handles to its end: the old essence and the new one."""
    old, new = storage.fetch(body=seen), storage.build(body=seen, extra_fields=FIELDS)
    storage.store(body=seen, patch=kopf.Patch(), essence=new)
    return old, new


def needs_reconcile(storage: InMemoryDiffBaseStorage, seen: kopf.Body) -> bool:
    return bool(storage.fetch(body=seen) != storage.build(body=seen, extra_fields=FIELDS))


def test_a_new_object_stays_new_until_it_was_handled() -> None:
    storage = InMemoryDiffBaseStorage(MINE, OTHERS)
    assert storage.fetch(body=body()) is None
    storage.build(body=body(), extra_fields=FIELDS)
    # Now kopf has put its finalizer there; nothing was handled yet.
    assert storage.fetch(body=body(finalizers=(MINE,))) is None
    handle(storage, body(finalizers=(MINE,)))
    assert not needs_reconcile(storage, body(finalizers=(MINE,)))


def test_what_an_earlier_process_handled_is_resumed_and_no_news() -> None:
    storage = InMemoryDiffBaseStorage(MINE, OTHERS)
    handle(storage, body("other"))
    there = body("u2", (MINE, "dbranch.io/agent"), status={"node": {"slot": "s"}})
    old, new = handle(storage, there)
    assert old == new and old is not None
    assert needs_reconcile(storage, body("u2", (MINE,), status={"node": {"slot": "t"}}))


def test_only_what_concerns_the_role_is_news() -> None:
    storage = InMemoryDiffBaseStorage(MINE, OTHERS)
    handle(storage, body(status={"node": {"slot": "s", "uniqueBytes": 1}, "phase": "Pending"}))
    assert not needs_reconcile(
        storage, body(status={"node": {"slot": "s", "uniqueBytes": 2}, "phase": "Ready"})
    )
    poked = {"agent.dbranch.io/poke": "1"}
    assert not needs_reconcile(storage, body(status={"node": {"slot": "s"}}, annotations=poked))
    assert needs_reconcile(storage, body(status={"node": {"slot": "t"}}))
    mine = {"controller.dbranch.io/poke": "1"}
    assert needs_reconcile(storage, body(status={"node": {"slot": "s"}}, annotations=mine))


def test_what_is_kept_is_no_part_of_a_body_and_goes_with_the_object() -> None:
    storage = InMemoryDiffBaseStorage(MINE, OTHERS)
    _, essence = handle(storage, body(status={"node": {"slot": "s"}}))
    essence["status"]["node"]["slot"] = "changed"
    assert not needs_reconcile(storage, body(status={"node": {"slot": "s"}}))
    assert storage.fetch(body=body(deleted=True)) is None
    assert storage.fetch(body=body()) is None


def test_progress_is_kept_in_the_process_and_wakes_by_an_annotation() -> None:
    storage, patch = Progress("kopf-state.controller.dbranch.io"), kopf.Patch()
    storage.store(key="branch", record={"retries": 1}, body=body(), patch=patch)
    assert storage.fetch(key="branch", body=body()) == {"retries": 1}
    assert storage.fetch(key="branch", body=body("u2")) is None
    assert not patch
    storage.touch(body=body(), patch=patch, value="now")
    assert any(key.endswith("/touch-dummy") for key in patch["metadata"]["annotations"])
    storage.purge(key="branch", body=body(), patch=kopf.Patch())
    assert storage.fetch(key="branch", body=body()) is None
