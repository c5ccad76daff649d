"""Which changes kopf handles, by what the process has in memory."""

from __future__ import annotations

from typing import Any

import kopf

from dbranch.runtime.kopf_storage import InMemoryDiffBaseStorage, InMemoryProgressStorage

MINE = "dbranch.io/controller"
FIELDS = {("status", "node")}
IGNORED = [("metadata", "annotations", "agent.dbranch.io/requestedAt"), ("status", "node", "uniqueBytes")]


def body(
    uid: str = "u1", finalizers: tuple[str, ...] = (), deleted: bool = False, **fields: Any
) -> kopf.Body:
    meta: dict[str, Any] = {"name": "b", "uid": uid, "finalizers": list(finalizers)}
    if deleted:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    meta["annotations"] = fields.pop("annotations", {})
    return kopf.Body({"kind": "DBBranch", "apiVersion": "v1", "metadata": meta, "spec": {}, **fields})


def handle(storage: InMemoryDiffBaseStorage, seen: kopf.Body) -> tuple[Any, Any]:
    """Do what kopf does with an event whose handlers succeed; return the old essence and the new one."""
    old, new = storage.fetch(body=seen), storage.build(body=seen, extra_fields=FIELDS)
    storage.store(body=seen, patch=kopf.Patch(), essence=new)
    return old, new


def is_changed(storage: InMemoryDiffBaseStorage, seen: kopf.Body) -> bool:
    return bool(storage.fetch(body=seen) != storage.build(body=seen, extra_fields=FIELDS))


def test_a_new_object_stays_new_until_it_was_handled() -> None:
    storage = InMemoryDiffBaseStorage(IGNORED)
    assert storage.fetch(body=body()) is None
    storage.build(body=body(), extra_fields=FIELDS)
    # kopf has added its finalizer; nothing has been handled yet.
    assert storage.fetch(body=body(finalizers=(MINE,))) is None
    handle(storage, body(finalizers=(MINE,)))
    assert not is_changed(storage, body(finalizers=(MINE,)))


def test_an_object_that_has_the_finalizer_already_is_new_to_a_process_that_has_not_handled_it() -> None:
    """The controller puts the agent's finalizer on a branch before the agent sees it."""
    storage = InMemoryDiffBaseStorage(IGNORED)
    handle(storage, body("other"))
    bound = body("u2", (MINE, "dbranch.io/agent"), status={"node": {"slot": "s"}})
    old, _ = handle(storage, bound)
    assert old is None and not is_changed(storage, bound)
    assert is_changed(storage, body("u2", (MINE,), status={"node": {"slot": "t"}}))


def test_only_fields_of_the_role_count_as_a_change() -> None:
    storage = InMemoryDiffBaseStorage(IGNORED)
    handle(storage, body(status={"node": {"slot": "s", "uniqueBytes": 1}, "phase": "Pending"}))
    assert not is_changed(storage, body(status={"node": {"slot": "s", "uniqueBytes": 2}, "phase": "Ready"}))
    request = {"agent.dbranch.io/requestedAt": "1"}
    assert not is_changed(storage, body(status={"node": {"slot": "s"}}, annotations=request))
    assert is_changed(storage, body(status={"node": {"slot": "t"}}))
    request = {"controller.dbranch.io/requestedAt": "1"}
    assert is_changed(storage, body(status={"node": {"slot": "s"}}, annotations=request))


def test_the_stored_state_is_a_copy_and_is_dropped_with_the_object() -> None:
    storage = InMemoryDiffBaseStorage(IGNORED)
    _, essence = handle(storage, body(status={"node": {"slot": "s"}}))
    essence["status"]["node"]["slot"] = "changed"
    assert not is_changed(storage, body(status={"node": {"slot": "s"}}))
    assert storage.fetch(body=body(deleted=True)) is None
    assert storage.fetch(body=body()) is None


def test_progress_is_in_memory_and_only_the_annotation_that_wakes_kopf_is_written() -> None:
    storage, patch = InMemoryProgressStorage("kopf-state.controller.dbranch.io"), kopf.Patch()
    storage.store(key="branch", record={"retries": 1}, body=body(), patch=patch)
    assert storage.fetch(key="branch", body=body()) == {"retries": 1}
    assert storage.fetch(key="branch", body=body("u2")) is None
    assert not patch
    storage.touch(body=body(), patch=patch, value="now")
    assert any(key.endswith("/touch-dummy") for key in patch["metadata"]["annotations"])
    storage.purge(key="branch", body=body(), patch=kopf.Patch())
    assert storage.fetch(key="branch", body=body()) is None
