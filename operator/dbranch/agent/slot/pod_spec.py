"""The pods that an agent makes: one that waits in a slot for its branch, and the one that runs initdb. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project

# Seconds: a fast shutdown writes a checkpoint first.
GRACE: Final = 300
# Seconds in which the readiness probe answers; it waits inside, so that the first one says yes.
_PROBE: Final = 10
# Seconds between two: each is a process that the node starts, and with two hundred pods a period of ten took two
# processors (tried). Nothing waits for it but who looks at the pod.
_AGAIN: Final = 120

# PID 1 drops a signal that comes while it becomes Postgres, so it is sent until the process is gone.
_PRE_STOP: Final = "while kill -INT 1 2>/dev/null; do sleep 0.2; done"
# A slot that waits is ready to be taken; one with a branch is ready when its Postgres answers.
_READY: Final = """
[ -e /slot/data/port ] || exit 0
for _ in $(seq 80); do
  port=$(cat /slot/data/port 2>/dev/null) && {
    if command -v pg_isready >/dev/null; then pg_isready -q -h /slot/run -p "$port" && exit 0
    else [ -S "/slot/run/.s.PGSQL.$port" ] && exit 0; fi; }
  sleep 0.1
done
exit 1
"""


@dataclass(frozen=True)
class SlotClass:
    """What a slot's pod is made of: slots of one class are interchangeable."""

    image: str
    run_as_user: int
    resources: Mapping[str, Any]
    image_pull_secrets: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """The class in a word, as its label has it."""
        return _word(self.image, self.run_as_user, self.resources, self.image_pull_secrets)


def slot_class_of(project: Project, branch: Branch | None = None) -> SlotClass:
    """The class of a branch's slots; without one, that of a branch with no resources of its own."""
    postgres = project.postgres
    own = branch.resources if branch else None
    return SlotClass(
        postgres.image, postgres.run_as_user, own or postgres.resources, postgres.image_pull_secrets
    )


def slot_class(project: Project, branch: Branch) -> str:
    """The class of a branch's slots in a word."""
    return slot_class_of(project, branch).word


def template_hash(context: NodeContext, layout: Layout, script: str) -> str:
    """Everything else that a slot's pod is made of, in a word: it changes with the release."""
    return _word(_slot_spec(context, layout, SlotClass("", 1, {}), "any", script))


def _word(*made_of: Any) -> str:
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def warm_pod(context: NodeContext, layout: Layout, kind: SlotClass, slot: str, script: str) -> dict[str, Any]:
    """A pod that waits in its slot and is no branch's yet; a `claim` makes it one's."""
    labels = names.labels(
        names.COMPONENT_POSTGRES, context.release, **{names.LABEL_SLOT: slot, names.LABEL_CLASS: kind.word}
    )
    marks = {names.TEMPLATE_HASH: template_hash(context, layout, script)}
    return _pod(context, slot, labels, marks, _slot_spec(context, layout, kind, slot, script))


def branch_pod(
    context: NodeContext, layout: Layout, project: Project, branch: Branch, slot: str, script: str
) -> dict[str, Any]:
    """The pod of a branch. It waits in its slot until the branch is bound there, then becomes Postgres."""
    pod = warm_pod(context, layout, slot_class_of(project, branch), slot, script)
    pod["metadata"]["labels"] |= branch_labels(project, branch)
    pod["metadata"]["annotations"] |= restart_annotation(branch)
    return pod


def claim_patch(project: Project, branch: Branch, uid: str) -> list[dict[str, Any]]:
    """The JSON patch by which the waiting pod with this UID becomes the branch's; it fails on one that is taken."""
    labels, marks = "/metadata/labels", "/metadata/annotations"
    tests = {"/metadata/uid": uid, f"{labels}/{_escaped(names.LABEL_BRANCH_UID)}": None}
    adds = {f"{labels}/{_escaped(key)}": value for key, value in branch_labels(project, branch).items()}
    adds |= {f"{marks}/{_escaped(key)}": value for key, value in restart_annotation(branch).items()}
    return [
        *({"op": "test", "path": path, "value": value} for path, value in tests.items()),
        *({"op": "add", "path": path, "value": value} for path, value in adds.items()),
    ]


def _escaped(key: str) -> str:
    """A key as a step of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def _slot_spec(
    context: NodeContext, layout: Layout, kind: SlotClass, slot: str, script: str
) -> dict[str, Any]:
    container = {
        "name": "postgres",
        "image": kind.image,
        "command": ["sh", "-c", script],
        "resources": dict(kind.resources),
        "securityContext": _CONFINED,
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", _PRE_STOP]}}},
        "readinessProbe": {
            "exec": {"command": ["sh", "-c", _READY]},
            "timeoutSeconds": _PROBE,
            "periodSeconds": _AGAIN,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*_mounts(), {"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes = [*_volumes(layout, slot), {"name": "shm", "emptyDir": {"medium": "Memory"}}]
    return _spec(context, kind, "Always", GRACE, container, volumes)


def initdb_pod(
    context: NodeContext, layout: Layout, project: Project, branch: Branch, script: str
) -> dict[str, Any]:
    """The one-shot pod that makes the root branch's database in the area bound to its slot."""
    slot = names.initdb_pod_name(project.uid)
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
    secret = {"secretName": names.verifier_secret_name(project.uid), "defaultMode": 0o444}
    volumes = [*_volumes(layout, slot), {"name": "verifier", "secret": secret}]
    kind = slot_class_of(project, branch)
    labels = names.labels(
        names.COMPONENT_POSTGRES, context.release, **{names.LABEL_SLOT: slot, names.LABEL_CLASS: kind.word}
    )
    spec = _spec(context, kind, "Never", 5, container, volumes)
    return _pod(context, slot, labels | branch_labels(project, branch), restart_annotation(branch), spec)


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
    context: NodeContext, slot: str, labels: dict[str, str], annotations: dict[str, str], spec: dict[str, Any]
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": slot,
            "namespace": context.namespace,
            "labels": labels,
            "annotations": annotations,
            # OwnedObjects by its Node, or `kubectl drain` would refuse a pod that nobody makes again elsewhere.
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "name": context.node,
                    "uid": context.node_uid,
                    "controller": True,
                }
            ],
        },
        "spec": spec,
    }


def _spec(
    context: NodeContext,
    kind: SlotClass,
    restart: str,
    grace: int,
    container: dict[str, Any],
    volumes: list[dict[str, Any]],
) -> dict[str, Any]:
    away = [
        {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute"}
        for state in ("not-ready", "unreachable")
    ]
    return {
        "nodeName": context.node,
        "serviceAccountName": names.POSTGRES_SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": grace,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": kind.run_as_user,
            "runAsGroup": kind.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": away,
        "imagePullSecrets": [{"name": name} for name in kind.image_pull_secrets],
        "containers": [container],
        "volumes": volumes,
    }


def restart_annotation(branch: Branch) -> dict[str, str]:
    """The annotation of the restart that was asked for last; its pod carries it on."""
    asked = branch.annotations.get(names.RESTARTED_AT)
    return {names.RESTARTED_AT: asked} if asked else {}


def branch_labels(project: Project, branch: Branch) -> dict[str, str]:
    """The labels that make a pod a branch's: by them it is found again, and reached from its namespace alone."""
    return {
        names.LABEL_NAMESPACE: project.namespace,
        names.LABEL_PROJECT: project.name,
        names.LABEL_BRANCH: branch.name,
        names.LABEL_PROJECT_UID: project.uid,
        names.LABEL_BRANCH_UID: branch.uid,
    }
