"""The pods that an agent makes: one that waits in a slot for its branch, and the one that runs initdb. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from dbranch import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.plan.layout import Layout

# Seconds: a fast shutdown writes a checkpoint first.
GRACE: Final = 300
# Seconds in which the readiness probe answers; it waits inside, so that the first one says yes.
_PROBE: Final = 10

# PID 1 drops a signal that comes while it becomes Postgres, so it is sent until the process is gone.
_PRE_STOP: Final = "while kill -INT 1 2>/dev/null; do sleep 0.2; done"
_READY: Final = """
for _ in $(seq 80); do
  port=$(cat /slot/data/port 2>/dev/null) && {
    if command -v pg_isready >/dev/null; then pg_isready -q -h /slot/run -p "$port" && exit 0
    else [ -S "/slot/run/.s.PGSQL.$port" ] && exit 0; fi; }
  sleep 0.1
done
exit 1
"""


@dataclass(frozen=True)
class Home:
    """Where an agent makes its pods: its node (name and UID), the nodes' namespace, the release."""

    node: str
    node_uid: str
    namespace: str
    release: str


def slot_class(project: Project, branch: Branch) -> str:
    """What a pod is made of, in a word: slots of one class are interchangeable."""
    postgres = project.postgres
    made_of = (
        postgres.image,
        postgres.run_as_user,
        branch.resources or postgres.resources,
        postgres.image_pull_secrets,
    )
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def slot_pod(
    home: Home, layout: Layout, project: Project, branch: Branch, slot: str, script: str
) -> dict[str, Any]:
    """The pod of a branch. It waits in its slot until the branch is bound there, then becomes Postgres."""
    container = {
        "name": "postgres",
        "image": project.postgres.image,
        "command": ["sh", "-c", script],
        "resources": dict(branch.resources or project.postgres.resources),
        "securityContext": _CONFINED,
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", _PRE_STOP]}}},
        "readinessProbe": {
            "exec": {"command": ["sh", "-c", _READY]},
            "timeoutSeconds": _PROBE,
            "periodSeconds": _PROBE,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*_mounts(), {"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes = [*_volumes(layout, slot), {"name": "shm", "emptyDir": {"medium": "Memory"}}]
    return _pod(home, project, branch, slot, "Always", GRACE, container, volumes)


def initdb_pod(home: Home, layout: Layout, project: Project, branch: Branch, script: str) -> dict[str, Any]:
    """The one-shot pod that makes the root branch's database in the area bound to its slot."""
    slot = names.initdb_pod(project.uid)
    container = {
        "name": "initdb",
        "image": project.postgres.image,
        "command": ["sh", "-c", script],
        "env": [
            {"name": "DBRANCH_USER", "value": project.postgres.user},
            {"name": "DBRANCH_DATABASE", "value": project.postgres.database},
        ],
        "securityContext": _CONFINED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*_mounts(), {"name": "verifier", "mountPath": "/verifier", "readOnly": True}],
    }
    secret = {"secretName": names.verifier_secret(project.uid), "defaultMode": 0o444}
    volumes = [*_volumes(layout, slot), {"name": "verifier", "secret": secret}]
    return _pod(home, project, branch, slot, "Never", 5, container, volumes)


_CONFINED: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def _mounts() -> list[dict[str, Any]]:
    return [
        {"name": "slot", "mountPath": "/slot", "mountPropagation": "HostToContainer"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]


def _volumes(layout: Layout, slot: str) -> list[dict[str, Any]]:
    return [
        {"name": "slot", "hostPath": {"path": str(layout.slot(slot)), "type": "Directory"}},
        {"name": "tmp", "emptyDir": {}},
    ]


def _pod(
    home: Home,
    project: Project,
    branch: Branch,
    slot: str,
    restart: str,
    grace: int,
    container: dict[str, Any],
    volumes: list[dict[str, Any]],
) -> dict[str, Any]:
    user = project.postgres.run_as_user
    away = [
        {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute"}
        for state in ("not-ready", "unreachable")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": slot,
            "namespace": home.namespace,
            "labels": pod_labels(home.release, project, branch, slot),
            "annotations": restart_asked(branch),
            # Owned by its Node, or `kubectl drain` would refuse a pod that nobody makes again elsewhere.
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "name": home.node,
                    "uid": home.node_uid,
                    "controller": True,
                }
            ],
        },
        "spec": {
            "nodeName": home.node,
            "serviceAccountName": names.POSTGRES_SERVICE_ACCOUNT,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": grace,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": user,
                "runAsGroup": user,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "tolerations": away,
            "imagePullSecrets": [{"name": name} for name in project.postgres.image_pull_secrets],
            "containers": [container],
            "volumes": volumes,
        },
    }


def restart_asked(branch: Branch) -> dict[str, str]:
    """The annotation of the restart that was asked for last; its pod carries it on."""
    asked = branch.annotations.get(names.RESTARTED_AT)
    return {names.RESTARTED_AT: asked} if asked else {}


def pod_labels(release: str, project: Project, branch: Branch, slot: str) -> dict[str, str]:
    """The labels of a branch's pod: by them it is found again, and its owner is told of its events."""
    return names.labels(
        names.COMPONENT_POSTGRES,
        release,
        **{
            names.LABEL_NAMESPACE: project.namespace,
            names.LABEL_PROJECT: project.name,
            names.LABEL_BRANCH: branch.branch,
            names.LABEL_PROJECT_UID: project.uid,
            names.LABEL_BRANCH_UID: branch.uid,
            names.LABEL_SLOT: slot,
            names.LABEL_CLASS: slot_class(project, branch),
        },
    )
