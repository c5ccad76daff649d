"""The facts of Events, nodes, pods and workloads that a bug report holds: no environments, no arguments. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch_cli.objects import event_time

Json = Mapping[str, Any]

_NODE_INFO: Final = (
    "architecture",
    "containerRuntimeVersion",
    "kernelVersion",
    "kubeletVersion",
    "operatingSystem",
    "osImage",
)
_CONDITION: Final = ("type", "status", "reason", "message", "lastTransitionTime")


def as_yaml(value: Any) -> str:
    """Return a value as YAML, in the order of its keys."""
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=118))


def component_of(pod: Json) -> str:
    """Return the component of dbranch that a pod is of: controller, agent, proxy, postgres."""
    return str((pod["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT, ""))


def event_facts(event: Json) -> dict[str, Any]:
    """Return when, about which object, and what an Event says."""
    involved = event.get("involvedObject") or {}
    subject = "/".join(str(involved.get(key) or "-") for key in ("kind", "namespace", "name"))
    facts = {"time": event_time(event), "object": subject}
    return facts | _picked(event, ("type", "reason", "message", "count"))


def node_facts(node: Json) -> dict[str, Any]:
    """Return a node's versions, sizes, taints and conditions."""
    status = node.get("status") or {}
    return {
        "name": node["metadata"]["name"],
        **_picked(status.get("nodeInfo") or {}, _NODE_INFO),
        "capacity": dict(status.get("capacity") or {}),
        "allocatable": dict(status.get("allocatable") or {}),
        "taints": list((node.get("spec") or {}).get("taints") or ()),
        "unschedulable": bool((node.get("spec") or {}).get("unschedulable")),
        "conditions": _conditions(status),
    }


def pod_facts(pod: Json) -> dict[str, Any]:
    """Return a pod's labels, node, images and states, and what an agent publishes on its own pod."""
    meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    published = {
        k: v for k, v in (meta.get("annotations") or {}).items() if k.partition("/")[0] in _OWN_GROUPS
    }
    return {
        "name": meta["name"],
        "namespace": meta["namespace"],
        **_picked(meta, ("creationTimestamp", "deletionTimestamp", "finalizers", "labels")),
        "annotations": published,
        "node": spec.get("nodeName"),
        "images": [container.get("image") for container in spec.get("containers") or ()],
        "resources": [container.get("resources") for container in spec.get("containers") or ()],
        **_picked(status, ("phase", "reason", "message")),
        "conditions": _conditions(status),
        "containers": [
            _picked(container, ("name", "ready", "restartCount", "imageID", "state", "lastState"))
            for container in status.get("containerStatuses") or ()
        ],
    }


_OWN_GROUPS: Final = (names.GROUP, names.AGENT_PREFIX, names.CONTROLLER_PREFIX)


def workload_facts(body: Json) -> dict[str, Any]:
    """Return a Deployment's or DaemonSet's images and state."""
    meta, status = body["metadata"], body.get("status") or {}
    template = body["spec"]["template"]["spec"]
    return {
        "name": meta["name"],
        "namespace": meta["namespace"],
        **_picked(meta, ("creationTimestamp", "generation", "labels")),
        "images": [container.get("image") for container in template["containers"]],
        "status": {key: value for key, value in status.items() if key != "conditions"},
        "conditions": _conditions(status),
    }


def _conditions(status: Json) -> list[dict[str, Any]]:
    return [_picked(condition, _CONDITION) for condition in status.get("conditions") or ()]


def _picked(body: Json, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: body[key] for key in keys if body.get(key) not in (None, "")}
