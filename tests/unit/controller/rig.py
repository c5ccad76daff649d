"""The controller without kopf, over a fake API server: the tests say which object is reconciled when.

The cache is read from the API server at each reconcile, as kopf's indices follow it. kopf's own part, the finalizer
of projects, is played here. The agents and the proxies are the tests: `agent_…` and `proxy_…` write what those would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from tests.factories import (
    NAMESPACE,
    NODE,
    NODES_NAMESPACE,
    BranchBuilder,
    Json,
    ProjectBuilder,
    RestoreBuilder,
    SnapshotBuilder,
    agent_pod,
    branch,
    node,
    project,
    proxy_pod,
)
from tests.fakes.api import FakeApi

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.project import Project, parse_project
from dbranch.api.restore import Restore, parse_restore
from dbranch.api.snapshot import Snapshot
from dbranch.controller import nodes
from dbranch.controller.branch.reaper import BranchReaper
from dbranch.controller.branch.reconciler import BranchReconciler
from dbranch.controller.branch.sources import Sources
from dbranch.controller.cache import Cache
from dbranch.controller.limits import Limits
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.reconciler import ProjectReconciler
from dbranch.controller.proxy_pods import ProxyPod, proxy_pod_of
from dbranch.controller.restore.reconciler import RestoreReconciler
from dbranch.controller.restore_records import RestoreRecords
from dbranch.controller.snapshot.reconciler import SnapshotReconciler
from dbranch.controller.snapshot_records import SnapshotRecords, record_of
from dbranch.kube.client import Cluster, branch_path, path_of, project_path, restore_path, snapshot_path
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import DONE, Key

PROJECTS = path_of(names.API_VERSION, names.PROJECTS, NAMESPACE)
BRANCHES = path_of(names.API_VERSION, names.BRANCHES, NAMESPACE)
SNAPSHOTS = path_of(names.API_VERSION, names.SNAPSHOTS, NAMESPACE)
RESTORES = path_of(names.API_VERSION, names.RESTORES, NAMESPACE)
_COLLECTIONS = {
    names.PROJECT_KIND: PROJECTS,
    names.BRANCH_KIND: BRANCHES,
    names.SNAPSHOT_KIND: SNAPSHOTS,
    names.RESTORE_KIND: RESTORES,
}
PODS = path_of("v1", "pods", NAMESPACE)
AGENTS = path_of("v1", "pods", NODES_NAMESPACE)
NODES = path_of("v1", "nodes")
SECRETS = path_of("v1", "secrets", NAMESPACE)
RELEASE = Release("dbranch", NODES_NAMESPACE, "dbranch-server:test")
# A create or a switch is done after a few rounds; more means that two reconciles undo each other's work.
_MAX_ROUNDS = 20


def conditions_of(body: Json) -> dict[str, str]:
    """Return `{type: reason}` of the conditions in an object's status."""
    return {c["type"]: c["reason"] for c in (body.get("status") or {}).get("conditions") or ()}


def message_of(body: Json, condition_type: str) -> str:
    """Return the message of a condition."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return next(str(c["message"]) for c in conditions if c["type"] == condition_type)


class Rig:
    """A controller over a fake API server, with one node and its agent.

    `limits`: as the chart has them; `events`: (type, reason) as emitted, and `event_texts` their messages; `result`:
    of the last reconcile; `reaper_requests`, `branch_requests`: the reconciles that the reaper and the branches' have
    requested.
    """

    def __init__(self, **limits: str) -> None:
        self.limits = Limits(limits)
        self.api = FakeApi()
        self.events: list[tuple[str, str]] = []
        self.event_texts: list[str] = []
        self.result = DONE
        self.api.put(NODES, node())
        self.api.put(AGENTS, agent_pod())
        self.start()

    def start(self) -> None:
        """Start the controller's process (once more): what it remembers is gone."""
        cluster, locks, metrics = cast(Cluster, self.api), KeyedLocks(), ControllerMetrics()
        self.owned = OwnedObjects(cluster)
        self.projects = ProjectReconciler(
            cluster, RELEASE, self.owned, locks, metrics, self.emit, limits=self.limits
        )
        sources = Sources()
        self.branch_requests: list[Key] = []
        self.branches = BranchReconciler(
            *(cluster, RELEASE, self.owned, locks, metrics, self.emit, self.limits, sources, self.emit),
            request=self.branch_requests.append,
        )
        self.reaper_requests: list[Key] = []
        self.reaper = BranchReaper(
            cluster,
            lambda: self.cache().all_branches(),
            self.reaper_requests.append,
            metrics,
            emit_event=self.emit,
        )
        self.snapshots = SnapshotReconciler(
            cluster, locks, metrics, sources, SnapshotRecords(), self.limits, self.emit
        )
        self.known_restores = RestoreRecords()
        self.refused_snapshots = SnapshotRecords().refused
        self.restores = RestoreReconciler(cluster, locks, metrics, sources, self.known_restores, self.emit)

    # Objects.

    def put(self, *builders: ProjectBuilder | BranchBuilder | SnapshotBuilder | RestoreBuilder) -> None:
        """Create objects as they are."""
        for builder in builders:
            body = builder.body()
            self.api.put(_COLLECTIONS[body["kind"]], body)

    def project(self, name: str = "shop") -> Json:
        body = self.api.get(project_path(NAMESPACE, name))
        assert body is not None, f"project {name} does not exist"
        return body

    def branch(self, name: str = "main", of: str = "shop") -> Json:
        body = self.api.get(branch_path(NAMESPACE, f"{of}-{name}"))
        assert body is not None, f"branch {name} of {of} does not exist"
        return body

    def exists(self, path: str) -> bool:
        return self.api.get(path) is not None

    def existing(self, path: str) -> Json:
        body = self.api.get(path)
        assert body is not None, f"{path} does not exist"
        return body

    def secret(self, name: str, **data: str) -> None:
        """Create a Secret with base64 values."""
        self.api.put(SECRETS, {"kind": "Secret", "metadata": {"name": name}, "data": data})

    def change_project(self, name: str = "shop", **spec: Any) -> None:
        self.api.merge(project_path(NAMESPACE, name), {"spec": spec})

    def change_branch(self, name: str = "main", **spec: Any) -> None:
        self.api.merge(branch_path(NAMESPACE, f"shop-{name}"), {"spec": spec})

    # The controller.

    def cache(self) -> Cache:
        """Return the cache that kopf's indices would give now."""
        agents: dict[str, list[nodes.AgentPod]] = {}
        for body in self.api.find(AGENTS):
            agent = nodes.agent_pod(body)
            if agent:
                agents.setdefault(agent.node, []).append(agent)
        projects: dict[tuple[str, str], list[Project]] = {}
        for body in self.api.find(path_of(names.API_VERSION, names.PROJECTS)):
            parsed = parse_project(body)
            projects.setdefault((parsed.namespace, parsed.name), []).append(parsed)
        branches: dict[tuple[str, str], list[Branch]] = {}
        for body in self.api.find(path_of(names.API_VERSION, names.BRANCHES)):
            item = parse_branch(body)
            branches.setdefault((item.namespace, item.project), []).append(item)
        node_objects = {body["metadata"]["name"]: [nodes.node_object(body)] for body in self.api.find(NODES)}
        proxies: dict[str, list[ProxyPod]] = {}
        for body in self.api.find(PODS):
            proxy = proxy_pod_of(body)
            if proxy:
                proxies.setdefault(body["metadata"]["labels"][names.LABEL_PROJECT_UID], []).append(proxy)
        snapshots = SnapshotRecords()
        snapshots.refused = self.refused_snapshots
        for body in self.api.find(path_of(names.API_VERSION, names.SNAPSHOTS)):
            snapshots.put(record_of(body))
        for body in self.api.find(path_of(names.API_VERSION, names.RESTORES)):
            self.known_restores.put(parse_restore(body))
        existing = {(b["metadata"]["namespace"], b["metadata"]["name"]) for b in self.api.find(RESTORES)}
        self.known_restores.keep_only(existing)
        return Cache(node_objects, agents, projects, branches, proxies, snapshots, self.known_restores)

    def writes_of(self, call: Callable[[], object]) -> list[str]:
        """Return the writes that a call causes."""
        self.api.take_requests()
        call()
        return self.api.take_writes()

    def emit(
        self, item: Project | Branch | Snapshot | Restore, event_type: str, reason: str, message: str
    ) -> None:
        self.events.append((event_type, reason))
        self.event_texts.append(message)

    def reconcile_project(self, name: str = "shop", bypass_cache: bool = False) -> Json:
        """Reconcile the project; return it."""
        self._quietly(self._finalize, project_path(NAMESPACE, name), names.CONTROLLER_FINALIZER)
        self.result = self.projects.reconcile(NAMESPACE, name, self.cache(), bypass_cache)
        return self.project(name)

    def reconcile_branch(self, name: str = "main", of: str = "shop", bypass_cache: bool = False) -> Json:
        """Reconcile the branch; return it."""
        self.result = self.branches.reconcile(NAMESPACE, f"{of}-{name}", self.cache(), bypass_cache)
        return self.branch(name, of)

    def snapshot(self, name: str = "before") -> Json:
        body = self.api.get(snapshot_path(NAMESPACE, f"shop-{name}"))
        assert body is not None, f"snapshot {name} does not exist"
        return body

    def reconcile_snapshot(self, name: str = "before") -> Json | None:
        """Reconcile the snapshot; return it, None if it is gone."""
        self.result = self.snapshots.reconcile(NAMESPACE, f"shop-{name}", self.cache())
        return self.api.get(snapshot_path(NAMESPACE, f"shop-{name}"))

    def restore(self, name: str = "again") -> Json:
        body = self.api.get(restore_path(NAMESPACE, name))
        assert body is not None, f"restore {name} does not exist"
        return body

    def reconcile_restore(self, name: str = "again") -> Json | None:
        """Reconcile the restore; return it, None if it is gone."""
        self.result = self.restores.reconcile(NAMESPACE, name, self.cache())
        return self.api.get(restore_path(NAMESPACE, name))

    def remove_project(self, name: str = "shop") -> bool:
        """Reconcile the project, which is being deleted; return whether the controller has let go of it."""
        self.result = self.projects.reconcile(NAMESPACE, name, self.cache())
        body = self.api.get(project_path(NAMESPACE, name))
        return body is None or names.CONTROLLER_FINALIZER not in (body["metadata"].get("finalizers") or ())

    def remove_branch(self, name: str, of: str = "shop") -> bool:
        """Reconcile the branch, which is being deleted; return whether the controller has let go of it."""
        self.result = self.branches.reconcile(NAMESPACE, f"{of}-{name}", self.cache())
        body = self.api.get(branch_path(NAMESPACE, f"{of}-{name}"))
        return body is None or parse_branch(body).is_released

    def run(self) -> None:
        """Reconcile all objects until nothing is written any more."""
        for _ in range(_MAX_ROUNDS):
            before = len([request for request in self.api.requests if request.writes])
            for body in self.api.find(PROJECTS):
                name = body["metadata"]["name"]
                remove = body["metadata"].get("deletionTimestamp")
                (self.remove_project if remove else self.reconcile_project)(name)
            for body in self.api.find(BRANCHES):
                of = body["spec"]["project"]
                name = names.branch_name(of, body["metadata"]["name"])
                remove = body["metadata"].get("deletionTimestamp")
                (self.remove_branch if remove else self.reconcile_branch)(name, of)
            if len([request for request in self.api.requests if request.writes]) == before:
                return
        raise AssertionError(f"still writing after {_MAX_ROUNDS} rounds: {self.api.take_writes()[-10:]}")

    def _quietly(self, call: Callable[..., object], *args: Any) -> None:
        """Call it without a trace in the log of requests."""
        requests = list(self.api.requests)
        call(*args)
        self.api.requests[:] = requests

    def _finalize(self, path: str, finalizer: str) -> None:
        """Put a role's finalizer on an object, as its kopf does."""
        body = self.api.get(path)
        meta = body["metadata"] if body else {}
        finalizers = meta.get("finalizers") or []
        if body and finalizer not in finalizers and not meta.get("deletionTimestamp"):
            self.api.merge(path, {"metadata": {"finalizers": [*finalizers, finalizer]}})

    # The agent and the proxies.

    def agent_reports(self, body: ProjectBuilder | BranchBuilder) -> None:
        """Write the `status.node` of this builder's object to the object, as its agent does."""
        reported = body.body()
        path_to = project_path if reported["kind"] == names.PROJECT_KIND else branch_path
        path = path_to(NAMESPACE, reported["metadata"]["name"])
        self._quietly(self._finalize, path, names.AGENT_FINALIZER)
        self._quietly(self.api.merge, f"{path}/status", {"status": {"node": reported["status"]["node"]}})

    def agent_of(self, name: str = NODE, **changes: Any) -> None:
        """Replace the agent's pod on a node."""
        self.api.remove_pod(f"{AGENTS}/agent-{name}")
        self.api.put(AGENTS, agent_pod(name, **changes))

    def proxy(self, name: str = "p1", of: str = "shop", **changes: Any) -> None:
        """Replace a proxy's pod."""
        uid = self.project(of)["metadata"]["uid"]
        self.api.remove_pod(f"{PODS}/{name}")
        self.api.put(PODS, proxy_pod(name, of, project_uid=uid, **changes))

    def proxy_obeys(
        self,
        name: str = "p1",
        of: str = "shop",
        generation: int | None = None,
        is_old: bool = False,
        **fields: Any,
    ) -> None:
        """Write the proxy's entry, by default with the route's generation. `is_old`: it is of release 0.1.0."""
        body = self.project(of)
        if not is_old:
            fields.setdefault("features", [names.PROXY_FOLLOWS_BRANCHES])
        if generation is None:
            generation = body["status"]["route"]["generation"]
        entry = {"pod": name, "generation": generation, **fields}
        self._apply_entry(project_path, body, entry)

    def proxy_acknowledges(self, branch: str, pod: str = "p1", of: str = "shop") -> None:
        """Write the proxy's entry of a branch, as it does when that is Deleting."""
        body = self.branch(branch, of)
        entry = {"pod": pod, "generation": body["status"]["route"]["generation"]}
        self._apply_entry(branch_path, body, entry)

    def _apply_entry(self, path_to: Callable[..., str], body: Json, entry: Json) -> None:
        applied = {key: body[key] for key in ("apiVersion", "kind")}
        name = body["metadata"]["name"]
        applied |= {"metadata": {"name": name, "namespace": NAMESPACE}, "status": {"proxies": [entry]}}
        path = path_to(NAMESPACE, name, "status")
        self._quietly(self.api.apply, path, applied, names.PROXY_MANAGER_PREFIX + entry["pod"])

    def ready(self) -> Rig:
        """Bring up project `shop` with its root branch and one proxy; return the rig with an empty log."""
        self.put(project())
        self.run()
        self.agent_reports(project().up())
        self.agent_reports(branch().accepting())
        self.proxy()
        self.run()
        self.proxy_obeys()
        self.run()
        assert conditions_of(self.project())["Ready"] == "Available"
        assert conditions_of(self.branch())["Ready"] == "Available"
        self.api.take_requests()
        self.events.clear()
        return self

    def branch_up(self, name: str, address: str = "10.0.0.9", source: str = "main") -> None:
        """Create a branch and play its agent until it is Ready."""
        self.put(branch(name, source))
        self.run()
        self.agent_reports(branch(name).accepting(address))
        self.run()
        self.proxies_obey()
        self.run()
        assert conditions_of(self.branch(name))["Ready"] == "Available"

    def withdraw(self, name: str) -> None:
        """Write the route of a branch that is being deleted, and let the proxies obey it."""
        self._quietly(self.remove_branch, name)
        self.proxies_obey()

    def proxies_obey(self) -> None:
        """Let each proxy that has an entry acknowledge the route, and those of branches that wait for it."""
        for entry in (self.project().get("status") or {}).get("proxies") or ():
            is_old = names.PROXY_FOLLOWS_BRANCHES not in entry.get("features", ())
            self.proxy_obeys(entry["pod"], is_old=is_old)
            for body in [] if is_old else self.api.find(BRANCHES):
                route = (body.get("status") or {}).get("route") or {}
                if route.get("state") == "Deleting":
                    self.proxy_acknowledges(body["metadata"]["name"].removeprefix("shop-"), entry["pod"])
