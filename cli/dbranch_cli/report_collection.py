"""What `dbranch report` reads from the API server, as texts without secrets."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from dbranch.api import names
from dbranch.api.errors import ApiError, DbranchError
from dbranch_cli.doctor import client_version, examine, finding_lines
from dbranch_cli.invocation import Invocation
from dbranch_cli.objects import Body
from dbranch_cli.redaction import redact_object, redact_text, redact_value
from dbranch_cli.report_facts import (
    as_yaml,
    component_of,
    event_facts,
    node_facts,
    pod_facts,
    workload_facts,
)

# Not Postgres: it logs statements, rows of the application.
_LOGGED: Final = ("controller", names.COMPONENT_AGENT, names.COMPONENT_PROXY)
_SILENCE_SECONDS: Final = 60.0
_LOG_BYTES: Final = 1 << 20


@dataclass
class Collection:
    """The files of the archive, by name, and a sentence for each thing that could not be read."""

    files: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


class Collector:
    """The requests of one report."""

    def __init__(
        self, invocation: Invocation, all_namespaces: bool, lines: int, nodes_namespace: str
    ) -> None:
        self._invocation, self._all = invocation, all_namespaces
        self._connection = invocation.store.connection
        self._lines, self._nodes_namespace = lines, nodes_namespace
        self._scope = "" if all_namespaces else f"/namespaces/{invocation.namespace}"
        self._collected = Collection()

    def collect(self) -> Collection:
        """Return what could be read. Raises ClusterUnreachable if the API server does not answer at the beginning."""
        versions = self._versions()
        self._add("versions.yaml", lambda: versions)
        self._add(
            "doctor.txt",
            lambda: "\n".join(finding_lines(examine(self._invocation, self._all))) + "\n",
        )
        for plural in (names.PROJECTS, names.BRANCHES, names.SNAPSHOTS, names.RESTORES):
            path = f"/apis/{names.API_VERSION}{self._scope}/{plural}"
            self._add(f"{plural}.yaml", partial(self._objects, path))
        self._add("events.yaml", self._events)
        self._add("workloads.yaml", self._workloads)
        self._add("nodes.yaml", lambda: [node_facts(n) for n in self._list("/api/v1/nodes")])
        pods = self._pods()
        self._add("pods.yaml", lambda: [pod_facts(pod) for pod in pods])
        if self._lines:
            for pod in pods:
                if component_of(pod) in _LOGGED:
                    self._add_logs(pod)
        return self._collected

    def _add(self, name: str, read: Callable[[], Any]) -> None:
        """Add a file: a text, or anything else as YAML. Say why it is missing, if it cannot be read."""
        try:
            content = read()
            text = redact_text(content) if isinstance(content, str) else as_yaml(redact_value(content))
            self._collected.files[name] = text
        except DbranchError as error:
            self._collected.left_out.append(f"{name}: {redact_text(str(error))}")

    def _list(self, path: str, **params: str) -> list[Body]:
        items: list[Body] = self._connection.get(path, **params)["items"]
        return items

    def _versions(self) -> dict[str, Any]:
        return {
            "commandLine": client_version(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "apiServer": self._connection.get("/version").get("gitVersion"),
            "namespace": self._invocation.namespace,
        }

    def _objects(self, path: str) -> list[Body]:
        return [redact_object(body) for body in self._list(path)]

    def _events(self) -> list[dict[str, Any]]:
        """Return the Events of dbranch's objects, and those of its pods."""
        kinds = (names.PROJECT_KIND, names.BRANCH_KIND, names.SNAPSHOT_KIND, names.RESTORE_KIND)
        scopes = [self._scope] if self._all else [self._scope, f"/namespaces/{self._nodes_namespace}"]
        events = []
        for scope in dict.fromkeys(scopes):
            try:
                listed = self._list(f"/api/v1{scope}/events")
            except ApiError as error:
                if scope == self._scope:
                    raise
                self._collected.left_out.append(f"Events of pods: {error}")
                continue
            events += [
                event
                for event in listed
                if scope != self._scope or event["involvedObject"].get("kind") in kinds
            ]
        return [event_facts(event) for event in events]

    def _workloads(self) -> list[dict[str, Any]]:
        """Return the Deployments and DaemonSets of dbranch, without their pods' environments."""
        label = {"labelSelector": f"{names.LABEL_NAME}=dbranch"}
        facts = []
        for plural in ("deployments", "daemonsets"):
            facts += [
                {"kind": plural, **workload_facts(b)} for b in self._list(f"/apis/apps/v1/{plural}", **label)
            ]
        return facts

    def _pods(self) -> list[Body]:
        """Return the pods of dbranch in all namespaces; as far as they can be listed, if not all can."""
        label = {"labelSelector": f"{names.LABEL_NAME}=dbranch"}
        try:
            return self._list("/api/v1/pods", **label)
        except ApiError as error:
            self._collected.left_out.append(f"pods of all namespaces: {error}")
        pods = []
        for namespace in dict.fromkeys((self._invocation.namespace, self._nodes_namespace)):
            try:
                pods += self._list(f"/api/v1/namespaces/{namespace}/pods", **label)
            except ApiError as error:
                self._collected.left_out.append(f"pods of namespace {namespace}: {error}")
        return pods

    def _add_logs(self, pod: Body) -> None:
        """Add the log of each of a pod's containers, and that of its last run if it was restarted."""
        meta = pod["metadata"]
        for status in (pod.get("status") or {}).get("containerStatuses") or ():
            runs = (False, True) if int(status.get("restartCount", 0)) else (False,)
            for previous in runs:
                suffix = ".previous.log" if previous else ".log"
                name = f"logs/{meta['namespace']}/{meta['name']}.{status['name']}{suffix}"
                self._add(name, partial(self._log, meta, status["name"], previous))

    def _log(self, meta: Mapping[str, Any], container: str, previous: bool) -> str:
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/log"
        params = {
            "container": container,
            "tailLines": str(self._lines),
            "limitBytes": str(_LOG_BYTES),
            "timestamps": "true",
        }
        if previous:
            params["previous"] = "true"
        return "".join(f"{line}\n" for line in self._connection.lines(path, params, _SILENCE_SECONDS))
