"""The cluster that the outputs of docs/cli.md are of: three nodes, and the project `shop` of the namespace team-a."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fakes.api import FakeApi
from tests.fakes.connection import FakeConnection, stop_clock

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.api.orphans import Orphan, OrphanKind, render_published
from dbranch_cli import connection, doctor, durations, expiry, formatting, lifecycle, report

NOW = datetime(2030, 1, 13, 12, 0, 0, tzinfo=UTC)
TEAM = "team-a"
DAYS_12, HOURS_3, MINUTES_14 = "2030-01-01T11:00:00Z", "2030-01-13T08:30:00Z", "2030-01-13T11:45:30Z"
IN_3_DAYS = "2030-01-16T11:45:30Z"
PULL = "cannot pull postgres:17 (403); Postgres is not started; check postgres.imagePullSecrets"
IMAGE = "dbranch-server:0.1.0"
ORPHANS = (
    Orphan(
        OrphanKind.POOL,
        "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d",
        "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d",
        TEAM,
        "shop",
        size="4.1Gi",
        why="it was retained by deletionPolicy Retain",
    ),
    Orphan(
        OrphanKind.BRANCH,
        "5e6f7a8b-9c0d-4e1f-8a2b-3c4d5e6f7a8b",
        "1f2e3d4c-5b6a-4978-8695-a4b3c2d1e0f9",
        "team-b",
        "blog",
        "pr-7",
        size="12Mi",
        why="its DBBranch is gone, and nobody asked for the removal of the data",
    ),
)


def condition(condition_type: str, status: str, reason: str, message: str, since: str) -> dict[str, Any]:
    return {
        "type": condition_type,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since,
        "observedGeneration": 1,
    }


def ready(since: str) -> dict[str, Any]:
    return condition("Ready", "True", "Available", "", since)


def put_example(api: FakeApi) -> None:
    """Put the objects into the API server."""
    put_project(api)
    put_branch(api, "main", "", DAYS_12, node={"logicalSize": "41Gi", "uniqueSize": "39Gi"})
    put_branch(api, "feature-x", "main", HOURS_3, node={"logicalSize": "41Gi", "uniqueSize": "37Mi"})
    failed = condition("Ready", "False", "ImagePullFailed", PULL, MINUTES_14)
    put_branch(api, "pr-118", "main", MINUTES_14, conditions=[failed], ttl="72h", expirationTime=IN_3_DAYS)
    put_restore(api)
    put_installation(api)


def put_restore(api: FakeApi) -> None:
    """Put the restore of feature-x, and the copy of what it had before."""
    group = f"/apis/{names.API_VERSION}/namespaces/{TEAM}"
    spec = {"project": "shop", "branch": "feature-x"}
    copy = "shop-feature-x-undo-k3v7q"
    restored = condition("Complete", "True", "Restored", "branch feature-x has the data of main", MINUTES_14)
    status = {"phase": "Complete", "source": "main", "completionTime": MINUTES_14, "undoSnapshot": copy}
    api.put(
        f"{group}/{names.RESTORES}",
        {
            "apiVersion": names.API_VERSION,
            "kind": names.RESTORE_KIND,
            "metadata": {"name": "shop-feature-x-1", "creationTimestamp": MINUTES_14},
            "spec": {**spec, "ttlAfterFinished": "24h"},
            "status": {"conditions": [restored], **status},
        },
    )
    api.put(
        f"{group}/{names.SNAPSHOTS}",
        {
            "apiVersion": names.API_VERSION,
            "kind": names.SNAPSHOT_KIND,
            "metadata": {"name": copy, "creationTimestamp": MINUTES_14},
            "spec": {**spec, "ttl": "24h", "origin": {"reason": "Restore"}},
            "status": {
                "conditions": [ready(MINUTES_14)],
                "nodeName": "n1",
                "expirationTime": "2030-01-14T11:45:30Z",
                "node": {"snapshotTime": MINUTES_14, "logicalSize": "41Gi", "uniqueSize": "37Mi"},
            },
        },
    )


def put_project(api: FakeApi) -> None:
    collection = f"/apis/{names.API_VERSION}/namespaces/{TEAM}/{names.PROJECTS}"
    draining = [{"branch": "main", "draining": 2}]
    proxies = [{"pod": "shop-proxy-1", "sessions": 14, "draining": 2, "branches": draining}]
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.PROJECT_KIND,
        "metadata": {"name": "shop", "creationTimestamp": DAYS_12},
        "spec": {
            "activeBranch": "feature-x",
            "postgres": {"image": "postgres:17"},
            "storage": {"size": "60Gi"},
        },
        "status": {
            "conditions": [ready(DAYS_12)],
            "nodeName": "n1",
            "branches": 3,
            "route": {"branch": "feature-x", "generation": 2},
            "proxies": proxies,
            "host": "shop.team-a.svc",
            "node": {"postgresVersion": "17.6", "usedSize": "39.1Gi", "hostFreeSize": "31Gi"},
        },
    }
    api.put(collection, body)


def put_branch(api: FakeApi, name: str, source: str, created: str, **status: Any) -> None:
    collection = f"/apis/{names.API_VERSION}/namespaces/{TEAM}/{names.BRANCHES}"
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.BRANCH_KIND,
        "metadata": {"name": f"shop-{name}", "creationTimestamp": created},
        "spec": {"project": "shop", **({"source": source} if source else {})},
        "status": {"conditions": [ready(created)], "nodeName": "n1", **status},
    }
    api.put(collection, body)


def put_installation(api: FakeApi) -> None:
    """Put the controller, the agents on three nodes, and the project's proxy; policies may not be listed."""

    def labels(component: str) -> dict[str, str]:
        return {names.LABEL_NAME: "dbranch", names.LABEL_COMPONENT: component}

    def put_workload(plural: str, namespace: str, component: str, **status: int) -> None:
        spec = {"replicas": 1, "template": {"spec": {"containers": [{"image": IMAGE}]}}}
        meta = {"name": f"dbranch-{component}", "labels": labels(component)}
        body = {"metadata": meta, "spec": spec, "status": status}
        api.put(f"/apis/apps/v1/namespaces/{namespace}/{plural}", body)

    def put_pod(namespace: str, name: str, component: str, node: str, **annotations: str) -> None:
        api.put(
            f"/api/v1/namespaces/{namespace}/pods",
            {
                "metadata": {"name": name, "labels": labels(component), "annotations": annotations},
                "spec": {"nodeName": node, "containers": [{"name": component, "image": IMAGE}]},
                "status": {
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": component, "ready": True, "restartCount": 0}],
                },
            },
        )

    put_workload("deployments", "dbranch-system", "controller", readyReplicas=1)
    put_workload("daemonsets", "dbranch-nodes", "agent", desiredNumberScheduled=3, numberReady=3)
    put_pod("dbranch-system", "dbranch-controller-7d9f", "controller", "n1")
    put_pod(TEAM, "shop-proxy-1", "proxy", "n1")
    for index in (1, 2, 3):
        orphans = render_published(ORPHANS[index - 1 : index], {})
        annotations = {names.AGENT_ORPHANS: orphans} if orphans else {}
        put_pod("dbranch-nodes", f"dbranch-agent-{index}", "agent", f"n{index}", **annotations)
        api.put("/api/v1/nodes", {"metadata": {"name": f"n{index}"}, "status": {}})
    api.refuse(
        "find", "validatingadmission", ApiError(403, "Forbidden", "validatingadmissionpolicies is forbidden")
    )


def log_path(namespace: str, pod: str, container: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{pod}/log?container={container}"


def logs(text: str) -> dict[str, str]:
    """Return the logs of the pods of dbranch, each with this text."""
    pods = [("dbranch-system", "dbranch-controller-7d9f", "controller"), (TEAM, "shop-proxy-1", "proxy")]
    pods += [("dbranch-nodes", f"dbranch-agent-{index}", "agent") for index in (1, 2, 3)]
    return {log_path(*pod): text for pod in pods}


def use_example(monkeypatch: pytest.MonkeyPatch, directory: Path, texts: dict[str, str]) -> FakeApi:
    """Let this process's command line find the example cluster, at NOW; return its API server."""
    api = FakeApi()
    api.clock = lambda: NOW
    put_example(api)
    named = {"cluster": "c", "user": "u", "namespace": TEAM}
    kubeconfig = {
        "current-context": "k3s",
        "clusters": [{"name": "c", "cluster": {"server": FakeConnection.server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "k3s", "context": named}],
    }
    (directory / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    (directory / "config.yaml").write_text(f"current: {{k3s: {{{TEAM}: shop}}}}\n")
    monkeypatch.setenv("KUBECONFIG", str(directory / "kubeconfig"))
    monkeypatch.setenv("DBRANCH_CONFIG", str(directory / "config.yaml"))
    for variable in ("DBRANCH_PROJECT", "DBRANCH_NODES_NAMESPACE"):
        monkeypatch.delenv(variable, raising=False)
    (directory / "work").mkdir()
    monkeypatch.chdir(directory / "work")
    monkeypatch.setattr(connection, "Connection", lambda _: FakeConnection(api, texts))
    monkeypatch.setattr(doctor, "client_version", lambda: "0.1.0")
    monkeypatch.setattr(platform, "platform", lambda: "Linux-6.12")
    monkeypatch.setattr(platform, "python_version", lambda: "3.13.1")
    stop_clock(monkeypatch, NOW, durations, expiry, formatting, doctor, lifecycle, report)
    return api
