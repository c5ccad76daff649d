"""The controller's part of restores, for the node's tests: it orders them, and goes on as the agent answers."""

from __future__ import annotations

import threading
import uuid
from typing import Any

from tests.fakes.api import Json
from tests.node.agent_life import BRANCHES, NAMESPACE, NODE, SNAPSHOTS
from tests.node.world import World

from dbranch.api import names

_ENDS = ("Done", "Failed", "Canceled")


def make_source_and_copy(world: World, parameters: dict[str, str] | None = None) -> str:
    """Run a project whose root has a table with 1,000 rows, and a branch `b` of it; return the project's UID."""
    project = world.make_project(parameters=parameters)
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    world.make_branch("b", "main")
    world.run_agent()
    return project


def rows(world: World, branch: str) -> int:
    return int(str(world.sql(branch, "select count(*) from item")[0][0]))


class Restores(threading.Thread):
    """Orders restores of a world's branches, and moves them on in a thread.

    `ends`: by UID, the agent's last answers. `switches` False: what is prepared waits.
    """

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self._world, self._api, self._stopped = world, world.api, threading.Event()
        self.ends: dict[str, Json] = {}
        self.switches = True

    def __enter__(self) -> Restores:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def order(
        self, branch: str, source: str | None = None, snapshot: str | None = None, keep: bool = True
    ) -> str:
        """Order a restore of `branch` from a branch, or from the DBSnapshot of this object name; return its UID."""
        uid, order = str(uuid.uuid4()), {}
        if source is not None:
            source_body, kind = self._world.branch(source), "Branch"
        else:
            body = self._api.get(f"{SNAPSHOTS}/{snapshot}")
            assert body is not None
            source_body, kind = body, "Snapshot"
        origin = {"kind": kind, "name": source or snapshot, "uid": source_body["metadata"]["uid"]}
        order = {"name": f"r-{uid[:5]}", "uid": uid, "state": "Preparing", "source": origin}
        if keep:
            name, undo_uid = self._make_undo(branch, uid)
            order |= {"undo": "Keep", "undoSnapshot": name, "undoUID": undo_uid}
        else:
            order |= {"undo": "Discard"}
        self._api.merge(self._path(branch) + "/status", {"status": {"restore": order}})
        return uid

    def prepare(self, branch: str, source: str = "main", keep: bool = True) -> str:
        """Order a restore from a branch and run agents until the data is prepared, and waits; return its UID."""
        self.switches = False
        uid = self.order(branch, source=source, keep=keep)
        self.await_state(branch, "Prepared")
        return uid

    def switch(self, uid: str) -> None:
        """Let what is prepared go on, and run agents until this restore is done."""
        self.switches = True
        self._world.run_agent()
        assert self.ends[uid]["state"] == "Done", self.ends[uid]

    def cancel(self, branch: str) -> None:
        """Order its cancellation, as the controller does when the DBRestore is deleted before the switch."""
        self.switches = False
        self.set_state(branch, "Canceling")

    def await_state(self, branch: str, state: str) -> Json:
        """Run agents until they answer this of the branch's restore; return the answer."""
        for _ in range(20):
            self._world.run_agent(0, 4)
            if self.answer(branch).get("state") == state:
                return self.answer(branch)
        raise AssertionError(f"{branch}: {self.answer(branch)}")

    def undo_name(self, branch: str, uid: str) -> str:
        return names.derived_name(f"{self._world.name}-{branch}", "undo", uid)

    def _make_undo(self, branch: str, uid: str) -> tuple[str, str]:
        name, branch_uid = self.undo_name(branch, uid), self._world.uid(branch)
        body = {
            "metadata": {"name": name, "namespace": NAMESPACE, "finalizers": [names.AGENT_FINALIZER]},
            "spec": {
                "project": self._world.name,
                "branch": branch,
                "ttl": "24h",
                "origin": {"reason": "Restore", "restoreUID": uid, "branchUID": branch_uid},
            },
            "status": {"nodeName": NODE, "branchUID": branch_uid},
        }
        return name, str(self._api.put(SNAPSHOTS, body)["metadata"]["uid"])

    def set_state(self, branch: str, state: str) -> None:
        self._api.merge(self._path(branch) + "/status", {"status": {"restore": {"state": state}}})

    def answer(self, branch: str) -> Json:
        """Return what the agent says of the branch's restore."""
        node = (self._world.branch(branch).get("status") or {}).get("node") or {}
        answer: Json = node.get("restore") or {}
        return answer

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            for body in self._api.find(BRANCHES):
                self._step(body)

    def _step(self, body: dict[str, Any]) -> None:
        status, path = body.get("status") or {}, f"{BRANCHES}/{body['metadata']['name']}/status"
        order, answer = status.get("restore"), (status.get("node") or {}).get("restore") or {}
        if not order or answer.get("uid") != order["uid"]:
            return
        if answer["state"] == "Prepared" and order["state"] == "Preparing" and self.switches:
            self._api.merge(path, {"status": {"restore": {"state": "Switching"}}})
        elif answer["state"] in _ENDS:
            if answer["state"] != "Done" and "undoSnapshot" in order:
                self._api.delete(f"{SNAPSHOTS}/{order['undoSnapshot']}")
            self.ends[order["uid"]] = answer
            self._api.merge(path, {"status": {"restore": None}})

    def _path(self, branch: str) -> str:
        return f"{BRANCHES}/{self._world.name}-{branch}"
