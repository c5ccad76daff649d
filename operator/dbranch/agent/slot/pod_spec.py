"""The manifests of the pods that an agent creates: warm pods, pods of branches, and the initdb pod. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.slot.image_ref import digest_of, pinned
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import (
    INITDB_GRACE_SECONDS,
    POSTGRES_GRACE_SECONDS,
    READINESS_PERIOD_SECONDS,
    READINESS_TIMEOUT_SECONDS,
)
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.parameters import NEWEST_MAJOR, OLDEST_MAJOR
from dbranch.api.project import Project
from dbranch.api.resources import resources_with_defaults

# PID 1 drops a signal that arrives during its exec of Postgres, so the signal is repeated until the process is gone.
_PRE_STOP: Final = "while kill -INT 1 2>/dev/null; do sleep 0.2; done"
# A slot without a branch is ready to be claimed; a slot with a branch is ready when its Postgres answers.
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


# At the end of the class hash of root branches.
_ROOT_SUFFIX: Final = "-root"
# Of `/tmp`. In memory, since the kernel enforces the size of nothing else.
_TMP_SIZE: Final = "64Mi"
# Where the official images declare a VOLUME (up to PostgreSQL 17, and from 18 on): the container runtime would make a
# directory of the node's disk for it, which is writable, and which nobody counts.
_IMAGE_VOLUMES: Final = ("/var/lib/postgresql", "/var/lib/postgresql/data")
_IMAGE_VOLUME_SIZE: Final = "1Mi"


@dataclass(frozen=True)
class SlotClass:
    """What makes two slots interchangeable: their pods have the same image, user ID, resources and pull secrets.

    `image`: as the spec has it. `image_id`: what that was when the project ran it first, empty before that.
    `is_root`: those of root branches have a priority of their own.
    """

    image: str
    run_as_user: int
    resources: Mapping[str, Any]
    image_pull_secrets: tuple[str, ...] = ()
    image_id: str = ""
    is_root: bool = False

    @property
    def pod_image(self) -> str:
        """The image of the class's pods: by its digest, if it is known and can be pulled so."""
        return pinned(self.image, self.image_id)

    @property
    def class_hash(self) -> str:
        """The value of the label LABEL_CLASS on the class's pods."""
        return self._hash_of(self.pod_image)

    @property
    def hashes(self) -> tuple[str, ...]:
        """The labels of the pods that may be of this class: also of those from before the digest was known."""
        return tuple(dict.fromkeys((self.class_hash, self._hash_of(self.image))))

    def includes(self, pod: PodFacts) -> bool:
        """True if the pod is of this class. One that was created by the tag is if it runs this very image."""
        if pod.class_hash == self.class_hash:
            return True
        return pod.class_hash == self._hash_of(self.image) and self._is_image_id(pod.image_id)

    def includes_apart_from_priority(self, pod: PodFacts) -> bool:
        """True if the pod is of this class but for its priority, which one of release 0.1.0 does not have."""
        return any(replace(self, is_root=is_root).includes(pod) for is_root in (False, True))

    def has_image_of(self, pod: PodFacts) -> bool:
        """True if the pod has this class's image, whatever else differs."""
        return pod.image == self.pod_image or (pod.image == self.image and self._is_image_id(pod.image_id))

    def _is_image_id(self, image_id: str | None) -> bool:
        return not image_id or digest_of(image_id) == digest_of(self.image_id)

    def _hash_of(self, image: str) -> str:
        shared = _hash(image, self.run_as_user, self.resources, self.image_pull_secrets)
        return shared + _ROOT_SUFFIX if self.is_root else shared


def slot_class_of(project: Project, branch: Branch | None = None) -> SlotClass:
    """Return the class of a branch's slots; without a branch, that of a branch with no resources of its own."""
    postgres = project.postgres
    own_resources = branch.resources if branch else None
    return SlotClass(
        postgres.image,
        postgres.run_as_user,
        own_resources or postgres.resources,
        # Of the project's own: two of one name in two namespaces are not the same, nor are their slots.
        tuple(names.pull_secret_name(project.uid, name) for name in postgres.image_pull_secrets),
        # An image that the spec has changed to is recorded anew when it runs first.
        (project.node.image_id or "") if project.node.image == postgres.image else "",
        branch is not None and branch.is_root,
    )


def template_hash(context: NodeContext, layout: Layout, script: str) -> str:
    """Return the hash of everything in a slot's pod that its class does not determine; a new release changes it."""
    return _hash(_slot_spec(context, layout, SlotClass("", 1, {}), "any", script))


def _hash(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def warm_pod(
    context: NodeContext, layout: Layout, slot_class: SlotClass, slot: str, script: str
) -> dict[str, Any]:
    """Return the manifest of a pod without a branch; a `claim_patch` gives it to one."""
    annotations = {names.TEMPLATE_HASH: template_hash(context, layout, script)}
    spec = _slot_spec(context, layout, slot_class, slot, script)
    return _pod(context, slot, _slot_labels(context, slot_class, slot), annotations, spec)


def branch_pod(
    context: NodeContext,
    layout: Layout,
    project: Project,
    branch: Branch,
    slot: str,
    script: str,
    restore_uid: str | None = None,
) -> dict[str, Any]:
    """Return the manifest of a branch's pod. It waits until the branch is bound in its slot, then runs Postgres.

    `restore_uid`: of the DBRestore whose data it is for, beside the branch's own.
    """
    pod = warm_pod(context, layout, slot_class_of(project, branch), slot, script)
    pod["metadata"]["labels"] |= branch_labels(project, branch)
    pod["metadata"]["annotations"] |= _annotations(branch, restore_uid)
    return pod


def claim_patch(
    project: Project, branch: Branch, pod_uid: str, restore_uid: str | None = None
) -> list[dict[str, Any]]:
    """Return the JSON patch that gives the free pod with this UID to the branch, as `branch_pod` makes one.

    It fails on a pod that is claimed or being deleted.
    """
    labels, annotations = "/metadata/labels", "/metadata/annotations"
    tests = {
        "/metadata/uid": pod_uid,
        "/metadata/deletionTimestamp": None,
        f"{labels}/{_escaped(names.LABEL_BRANCH_UID)}": None,
    }
    adds = {f"{labels}/{_escaped(key)}": value for key, value in branch_labels(project, branch).items()}
    claimed = _annotations(branch, restore_uid)
    adds |= {f"{annotations}/{_escaped(key)}": value for key, value in claimed.items()}
    return [
        *({"op": "test", "path": path, "value": value} for path, value in tests.items()),
        *({"op": "add", "path": path, "value": value} for path, value in adds.items()),
    ]


def _escaped(key: str) -> str:
    """Return a key as a reference token of a JSON pointer (RFC 6901).

    >>> _escaped("dbranch.io/branch")
    'dbranch.io~1branch'
    """
    return key.replace("~", "~0").replace("/", "~1")


def _slot_spec(
    context: NodeContext, layout: Layout, slot_class: SlotClass, slot: str, script: str
) -> dict[str, Any]:
    container = {
        "name": "postgres",
        "image": slot_class.pod_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        # For clients in the pod, and for Postgres as the client of itself.
        "env": [{"name": "PGHOST", "value": "/slot/run"}],
        "resources": resources_with_defaults(slot_class.resources, context.pods.resources),
        "securityContext": _CONFINED,
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", _PRE_STOP]}}},
        "readinessProbe": {
            "exec": {"command": ["sh", "-c", _READY]},
            "timeoutSeconds": READINESS_TIMEOUT_SECONDS,
            "periodSeconds": READINESS_PERIOD_SECONDS,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*_mounts(), {"name": "shm", "mountPath": "/dev/shm"}],
    }
    limits = slot_class.resources.get("limits") or {}
    shared_memory = limits.get("memory") or context.pods.shared_memory
    volumes = [*_volumes(layout, slot), _in_memory("shm", shared_memory)]
    return _spec(context, slot_class, "Always", POSTGRES_GRACE_SECONDS, container, volumes)


def initdb_pod(
    context: NodeContext, layout: Layout, project: Project, branch: Branch, script: str
) -> dict[str, Any]:
    """Return the manifest of the one-shot pod that runs initdb for the root branch, in the area bound to its slot."""
    slot, initdb = names.initdb_pod_name(project.uid), project.postgres.initdb
    slot_class = slot_class_of(project, branch)
    env = {
        "DBRANCH_USER": project.postgres.user,
        "DBRANCH_DATABASE": project.postgres.database,
        "DBRANCH_OLDEST_MAJOR": str(OLDEST_MAJOR),
        "DBRANCH_NEWEST_MAJOR": str(NEWEST_MAJOR),
        "DBRANCH_LOCALE": initdb.locale or "",
        "DBRANCH_ENCODING": initdb.encoding or "",
        "DBRANCH_PROVIDER": str(initdb.provider or ""),
    }
    container = {
        "name": "initdb",
        "image": slot_class.pod_image,
        "imagePullPolicy": "IfNotPresent",
        # What follows the script's name are its arguments.
        "command": ["sh", "-c", script, "initdb", *initdb.args],
        "env": [{"name": name, "value": value} for name, value in env.items()],
        # Those of the branch: what the node refuses shows before there is data.
        "resources": resources_with_defaults(slot_class.resources, context.pods.resources),
        "securityContext": _CONFINED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*_mounts(), {"name": "verifier", "mountPath": "/verifier", "readOnly": True}],
    }
    secret = {
        "secretName": names.verifier_secret_name(project.uid),
        "defaultMode": 0o444,
        # Not those of the branches, which the image has no business with. The pod waits until the Secret has these.
        "items": [{"key": key, "path": key} for key in _initdb_verifiers(project)],
    }
    volumes = [*_volumes(layout, slot), {"name": "verifier", "secret": secret}]
    labels = _slot_labels(context, slot_class, slot) | branch_labels(project, branch)
    spec = _spec(context, slot_class, "Never", INITDB_GRACE_SECONDS, container, volumes)
    return _pod(context, slot, labels, restart_annotation(branch), spec)


def _initdb_verifiers(project: Project) -> tuple[str, ...]:
    """Return the keys of the verifiers that `initdb.sh` sets: the superuser's, too, if that is known now."""
    return ("verifier",) if project.superuser in (None, project.postgres.user) else ("verifier", "superuser")


def _slot_labels(context: NodeContext, slot_class: SlotClass, slot: str) -> dict[str, str]:
    return names.labels(
        names.COMPONENT_POSTGRES,
        context.release,
        **{names.LABEL_SLOT: slot, names.LABEL_CLASS: slot_class.class_hash},
    )


_CONFINED: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def _mounts() -> list[dict[str, Any]]:
    return [
        {"name": "slot", "mountPath": "/slot", "mountPropagation": "HostToContainer"},
        {"name": "tmp", "mountPath": "/tmp"},
        *({"name": "image-volume", "mountPath": path} for path in _IMAGE_VOLUMES),
    ]


def _volumes(layout: Layout, slot: str) -> list[dict[str, Any]]:
    return [
        {"name": "slot", "hostPath": {"path": str(layout.slot(slot)), "type": "Directory"}},
        _in_memory("tmp", _TMP_SIZE),
        _in_memory("image-volume", _IMAGE_VOLUME_SIZE),
    ]


def _in_memory(name: str, size: str) -> dict[str, Any]:
    """Return an empty directory in memory: what is in it counts as the container's memory. `size` "": no limit."""
    limit = {"sizeLimit": size} if size else {}
    return {"name": name, "emptyDir": {"medium": "Memory", **limit}}


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
            # Owned by its Node: `kubectl drain` refuses a pod without a controller.
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
    slot_class: SlotClass,
    restart: str,
    grace: int,
    container: dict[str, Any],
    volumes: list[dict[str, Any]],
) -> dict[str, Any]:
    tolerations = [
        {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute"}
        for state in ("not-ready", "unreachable")
    ]
    priority = context.pods.root_priority if slot_class.is_root else context.pods.copy_priority
    return {
        **({"priorityClassName": priority} if priority else {}),
        "nodeName": context.node,
        "serviceAccountName": names.POSTGRES_SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": grace,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": slot_class.run_as_user,
            "runAsGroup": slot_class.run_as_user,
            # Not those of the image's /etc/group, such as root's. A node that cannot do it would refuse the pod.
            **({"supplementalGroupsPolicy": "Strict"} if context.strict_groups else {}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": tolerations,
        "imagePullSecrets": [{"name": name} for name in slot_class.image_pull_secrets],
        "containers": [container],
        "volumes": volumes,
    }


def restart_annotation(branch: Branch) -> dict[str, str]:
    """Return the annotation of the restart that was requested last; the pod that serves it carries it, too."""
    restarted_at = branch.annotations.get(names.RESTARTED_AT)
    return {names.RESTARTED_AT: restarted_at} if restarted_at else {}


def _annotations(branch: Branch, restore_uid: str | None) -> dict[str, str]:
    restore = {names.POD_RESTORE: restore_uid} if restore_uid else {}
    return restart_annotation(branch) | restore


def branch_labels(project: Project, branch: Branch) -> dict[str, str]:
    """Return the labels by which the agent selects a branch's pod and the NetworkPolicy admits its namespace."""
    return {
        names.LABEL_NAMESPACE: project.namespace,
        names.LABEL_PROJECT: project.name,
        names.LABEL_BRANCH: branch.name,
        names.LABEL_PROJECT_UID: project.uid,
        names.LABEL_BRANCH_UID: branch.uid,
    }
