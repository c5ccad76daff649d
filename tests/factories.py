"""Builders of dbranch's objects, nodes and pods: as the API server returns them, and parsed.

    project("shop").bound("n1").up().routed("main", 3)       # .body() or .parsed()

A builder never changes: each method returns another one. An unknown UID is the object's name with `-uid`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Condition, Finding, Reason
from dbranch.api.project import Project, parse_project
from dbranch.api.restore import Restore, parse_restore
from dbranch.api.snapshot import Snapshot, parse_snapshot

Json = dict[str, Any]
NAMESPACE = "team"
NODES_NAMESPACE = "dbranch-nodes"
NODE = "n1"
GIB = 2**30
SNAPSHOT_TIME = "2026-01-01T00:00:00Z"


def ago(seconds: float = 0.0) -> str:
    """Return the RFC 3339 timestamp of so many seconds ago."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def merged(old: Any, new: Any) -> Any:
    """Return `old` with the members of `new`, to any depth."""
    if isinstance(old, dict) and isinstance(new, Mapping):
        return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}
    return copy.deepcopy(new)


@dataclass(frozen=True)
class _Object:
    """An object under construction."""

    _body: Json

    def body(self) -> Json:
        """Return the object as JSON."""
        return copy.deepcopy(self._body)

    def changed(self, **members: Any) -> Self:
        """Return it with these members of the top level (`metadata`, `spec`, `status`) merged in."""
        return type(self)(merged(self._body, members))

    def spec(self, **fields: Any) -> Self:
        return self.changed(spec=fields)

    def status(self, **fields: Any) -> Self:
        return self.changed(status=fields)

    def node(self, **fields: Any) -> Self:
        """Return it with these fields of `status.node`, which the agent writes."""
        return self.status(node=fields)

    def annotated(self, **annotations: str) -> Self:
        return self.changed(metadata={"annotations": annotations})

    def bound(self, node: str = NODE) -> Self:
        """Return it bound to a node, whose agent has put its finalizer on it."""
        return self.status(nodeName=node).finalizers(names.CONTROLLER_FINALIZER, names.AGENT_FINALIZER)

    def finalizers(self, *finalizers: str) -> Self:
        return self.changed(metadata={"finalizers": list(finalizers)})

    def deleting(self, seconds: float = 0.0) -> Self:
        """Return it deleted so many seconds ago, held by its finalizers."""
        return self.changed(metadata={"deletionTimestamp": ago(seconds)})

    def reported(self, condition_type: Condition, reason: Reason, message: str = "") -> Self:
        """Return it with one more condition in its status."""
        conditions = [*((self._body.get("status") or {}).get("conditions") or ())]
        finding = Finding(reason, message)
        conditions.append(
            {
                "type": condition_type.value,
                "status": finding.status.value,
                "reason": reason.value,
                "message": message,
                "lastTransitionTime": SNAPSHOT_TIME,
            }
        )
        return self.status(conditions=conditions)


class ProjectBuilder(_Object):
    """A DBProject under construction."""

    def up(self) -> Self:
        """Return it as its agent reports it: the pool mounted, the database initialized."""
        return self.node(
            initialized=True,
            superuser=names.SUPERUSER,
            poolUUID="pool",
            storage=Finding(Reason.POOL_MOUNTED, "mounted").as_dict(),
        )

    def routed(self, branch: str, generation: int = 1) -> Self:
        return self.status(route={"generation": generation, "branch": branch})

    def acknowledged(self, pod: str, generation: int, draining: int = 0) -> Self:
        """Return it with an entry of a proxy pod in `status.proxies`."""
        entries = [*((self._body.get("status") or {}).get("proxies") or ())]
        return self.status(proxies=[*entries, {"pod": pod, "generation": generation, "draining": draining}])

    def parsed(self) -> Project:
        return parse_project(self._body)


class BranchBuilder(_Object):
    """A DBBranch under construction."""

    def bound(self, node: str = NODE) -> Self:
        """Return it bound to a node, with its agent's finalizer."""
        return self.status(nodeName=node).finalizers(names.AGENT_FINALIZER)

    def released(self) -> Self:
        """Return it, which is being deleted, as the controller has let go of it."""
        return self.status(release=self._body["metadata"]["deletionTimestamp"])

    def of(self, source_uid: str) -> Self:
        """Return it bound to this very source."""
        return self.status(sourceUID=source_uid)

    def stored(self) -> Self:
        """Return it as its agent reports it: a subvolume, no Postgres yet."""
        return self.node(snapshotTime=SNAPSHOT_TIME, storage=Finding(Reason.STORED, "stored").as_dict())

    def accepting(self, address: str = "10.0.0.1", port: int = 20001) -> Self:
        """Return it as its agent reports it: stored, and Postgres accepts at this address."""
        postgres = Finding(Reason.ACCEPTING, "accepts").as_dict()
        return self.stored().node(postgres=postgres, address=address, port=port)

    def restoring(self, source_uid: str, state: str = "Preparing", **fields: Any) -> Self:
        """Return it with a restore `again` from the branch with this UID, as the controller orders it."""
        source = {"kind": "Branch", "name": "main", "uid": source_uid}
        order = {"name": "again", "uid": "again-uid", "state": state, "source": source, "undo": "Discard"}
        return self.status(restore={**order, **fields})

    def answered(self, state: str, uid: str = "again-uid", **fields: Any) -> Self:
        """Return it with its agent's answer to a restore."""
        return self.node(restore={"uid": uid, "state": state, **fields})

    def parsed(self) -> Branch:
        return parse_branch(self._body)


class SnapshotBuilder(_Object):
    """A DBSnapshot under construction."""

    def taken_of(self, branch_uid: str, at: str = SNAPSHOT_TIME) -> Self:
        """Return it bound to this very branch, and stored, as its agent reports it."""
        bound = self.bound().finalizers(names.AGENT_FINALIZER).status(branchUID=branch_uid)
        return bound.node(snapshotTime=at, uniqueBytes=0, storage=Finding(Reason.STORED, "stored").as_dict())

    def parsed(self) -> Snapshot:
        return parse_snapshot(self._body)


class RestoreBuilder(_Object):
    """A DBRestore under construction."""

    def parsed(self) -> Restore:
        return parse_restore(self._body)


def restore(name: str = "again", of: str = "feature-x", **spec: Any) -> RestoreBuilder:
    """Return a DBRestore of the branch `of` of project shop, as a user creates it."""
    return RestoreBuilder(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.RESTORE_KIND,
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": f"{name}-uid",
                "generation": 1,
                "creationTimestamp": ago(),
            },
            "spec": {"project": "shop", "branch": of, **spec},
        }
    )


def snapshot(name: str = "before", of: str = "main", **spec: Any) -> SnapshotBuilder:
    """Return a DBSnapshot of the branch `of` of project shop, as a user applies it."""
    return SnapshotBuilder(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.SNAPSHOT_KIND,
            "metadata": {
                "name": f"shop-{name}",
                "namespace": NAMESPACE,
                "uid": f"shop-{name}-uid",
                "generation": 1,
            },
            "spec": {"project": "shop", "branch": of, **spec},
        }
    )


def project(name: str = "shop", namespace: str = NAMESPACE) -> ProjectBuilder:
    """Return a DBProject as a user applies it and the controller's kopf has seen it."""
    return ProjectBuilder(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.PROJECT_KIND,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"{name}-uid",
                "generation": 1,
                "finalizers": [names.CONTROLLER_FINALIZER],
            },
            "spec": {},
        }
    )


def branch(
    name: str = "main", source: str | None = None, of: str = "shop", namespace: str = NAMESPACE
) -> BranchBuilder:
    """Return a DBBranch of the project `of`; every branch but `main` has a source, `main` if none is given."""
    source = source or (None if name == names.ROOT_BRANCH else names.ROOT_BRANCH)
    object_name = names.branch_object_name(of, name)
    return BranchBuilder(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.BRANCH_KIND,
            "metadata": {
                "name": object_name,
                "namespace": namespace,
                "uid": f"{object_name}-uid",
                "generation": 1,
            },
            "spec": {"project": of, **({"source": source} if source else {})},
        }
    )


def _ready(is_ready: bool) -> list[Json]:
    return [{"type": "Ready", "status": "True" if is_ready else "False"}]


def node(name: str = NODE, ready: bool = True, labels: Mapping[str, str] | None = None, **spec: Any) -> Json:
    """Return a Node."""
    return {
        "metadata": {"name": name, "uid": f"{name}-uid", "labels": dict(labels or {})},
        "spec": spec,
        "status": {"conditions": _ready(ready)},
    }


def agent_pod(
    on: str = NODE,
    ready: bool = True,
    free_bytes: int = 100 * GIB,
    retained: str = "",
    features: str = ",".join(names.FEATURES),
) -> Json:
    """Return the agent's pod on a node."""
    annotations = {
        names.AGENT_HOST_FREE: str(free_bytes),
        names.AGENT_RETAINED: retained,
        names.AGENT_FEATURES: features,
    }
    return {
        "metadata": {
            "name": f"agent-{on}",
            "namespace": NODES_NAMESPACE,
            "uid": f"agent-{on}-uid",
            "labels": names.labels(names.COMPONENT_AGENT, "dbranch"),
            "annotations": annotations,
        },
        "spec": {"nodeName": on},
        "status": {"phase": "Running", "conditions": _ready(ready)},
    }


def proxy_pod(
    name: str = "p1",
    of: str = "shop",
    ready: bool = True,
    phase: str = "Running",
    deleted: bool = False,
    namespace: str = NAMESPACE,
    project_uid: str | None = None,
) -> Json:
    """Return a proxy's pod of the project `of`."""
    labels = {names.LABEL_PROJECT: of, names.LABEL_PROJECT_UID: project_uid or f"{of}-uid"}
    meta: Json = {
        "name": name,
        "namespace": namespace,
        "uid": f"{name}-uid",
        "labels": names.labels(names.COMPONENT_PROXY, "dbranch", **labels),
    }
    if deleted:
        meta["deletionTimestamp"] = ago()
    return {
        "metadata": meta,
        "spec": {"nodeName": NODE},
        "status": {"phase": phase, "conditions": _ready(ready)},
    }
