"""A controller cut off at any write of a restore: the next one ends it as if nothing had been."""

from __future__ import annotations

from typing import Any

import pytest
from tests.factories import NAMESPACE, Json, restore
from tests.unit.controller.restores import Agent, finish, shop
from tests.unit.controller.rig import SNAPSHOTS, Rig, conditions_of

from dbranch.api.errors import ClusterUnreachable
from dbranch.kube.client import restore_path


def final_state(rig: Rig) -> Json:
    """Return what counts in the end, without times and versions."""
    status, body = rig.branch("feature-x")["status"], rig.api.peek(restore_path(NAMESPACE, "again"))
    return {
        "restore": body and (body["status"]["phase"], conditions_of(body)),
        "finalizers": body and body["metadata"].get("finalizers"),
        "order": status.get("restore"),
        "records": [record["uid"] for record in status.get("restores") or ()],
        "route": {key: status["route"].get(key) for key in ("state", "address", "restore")},
        "snapshots": [body["metadata"]["name"] for body in rig.api.find(SNAPSHOTS)],
        "ready": conditions_of({"status": status})["Ready"],
    }


class CutOff:
    """Lets a number of the controller's writes through; the next one is lost, before or behind it."""

    def __init__(self, rig: Rig, at: int, is_lost: bool) -> None:
        self.at, self.count, self.done = at, 0, False
        self.is_lost = is_lost
        for verb in ("create", "merge", "apply", "delete", "json_patch"):
            self._wrap(rig, verb)

    def _wrap(self, rig: Rig, verb: str) -> None:
        original = getattr(rig.api, verb)

        def call(path: str, *args: Any, **kwargs: Any) -> Any:
            is_own = kwargs.pop("manager", None) is None and not self._is_others(path, args)
            if is_own and not self.done:
                self.count += 1
                if self.count > self.at:
                    self.done = True
                    if not self.is_lost:
                        original(path, *args, **kwargs)
                    raise ClusterUnreachable(f"{verb} {path}: cut off")
            return original(path, *args, **kwargs)

        setattr(rig.api, verb, call)

    @staticmethod
    def _is_others(path: str, args: tuple[Any, ...]) -> bool:
        body = args[0] if args and isinstance(args[0], dict) else {}
        written = body.get("status") or {}
        if path == restore_path(NAMESPACE, "again") and not body:
            # The user's.
            return True
        by_agent = "dbsnapshots" in path and (body.get("metadata") or {}).get("finalizers") == []
        return "node" in written or "proxies" in written or by_agent


@pytest.mark.parametrize("ends", ["done", "failed", "canceled"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_a_controller_cut_off_at_any_write_is_followed_by_one_that_ends_the_restore(
    ends: str, is_lost: bool
) -> None:
    def play(at: int | None) -> tuple[Json, Agent, bool]:
        rig = shop()
        agent = Agent(rig, fails="Switching" if ends == "failed" else "")
        rig.put(restore())
        cut = None if at is None else CutOff(rig, at, is_lost)
        if ends == "canceled":
            try:
                rig.reconcile_restore()
            except ClusterUnreachable:
                rig.start()
            rig.api.delete(restore_path(NAMESPACE, "again"))
        finish(rig, agent, interrupted=True)
        return final_state(rig), agent, cut is None or cut.done

    expected, agent, _ = play(None)
    assert len(agent.exchanges) == (1 if ends == "done" else 0)
    assert expected["order"] is None and expected["ready"] == "Available"
    assert len(expected["snapshots"]) == (1 if ends == "done" else 0)
    at, cuts = 0, 0
    while True:
        state, agent, was_cut = play(at)
        if not was_cut:
            break
        assert state == expected, f"cut at write {at}"
        assert len(agent.exchanges) == (1 if ends == "done" else 0), f"cut at write {at}"
        at, cuts = at + 1, cuts + 1
    assert cuts > 5
