"""What `dbranch doctor` finds, from the API server's JSON. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, Final

from dbranch.api import names
from dbranch.api.catalog import CATALOG
from dbranch.api.conditions import Condition, Reason, find_condition, is_condition_true
from dbranch.api.enums import ConditionStatus
from dbranch.api.orphans import Orphan, OrphanKind
from dbranch_cli.formatting import format_age, format_count
from dbranch_cli.objects import branch_name_of
from dbranch_cli.view import problem_of

Json = Mapping[str, Any]

_OLDEST_KUBERNETES: Final = (1, 32)
# What this command line reads and writes; a test holds it against crds/.
SPEC_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    names.PROJECT_KIND: frozenset(
        {
            "activeBranch",
            "branchDefaults",
            "branchPolicy",
            "deletionPolicy",
            "postgres",
            "protection",
            "proxy",
            "state",
            "storage",
            "undo",
        }
    ),
    names.BRANCH_KIND: frozenset(
        {
            "expirationTime",
            "postgres",
            "project",
            "protectedUntil",
            "protection",
            "refresh",
            "snapshots",
            "source",
            "sourceSnapshot",
            "state",
            "ttl",
            "undo",
        }
    ),
    names.SNAPSHOT_KIND: frozenset({"branch", "origin", "project", "protection", "ttl"}),
    names.RESTORE_KIND: frozenset(
        {"branch", "project", "source", "sourceSnapshot", "startingDeadline", "ttlAfterFinished", "undo"}
    ),
}
_SUMMARIES: Final = (Condition.READY, Condition.RECONCILING, Condition.STALLED)
# For so long an object without a report, or one that is being deleted, is nothing unusual.
_GRACE_PERIOD: Final = timedelta(minutes=1)
# So long a restore that has failed is worth a word; it may stay as a record for ever.
_FAILURE_PERIOD: Final = timedelta(days=1)


class Severity(IntEnum):
    """How bad a finding is: UNKNOWN if it could not be looked at, ERROR if it does not heal by itself."""

    OK = 0
    UNKNOWN = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was looked at, what is the case, and what to do about it ("": nothing)."""

    severity: Severity
    check: str
    message: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return what `-o json` prints."""
        return {
            "severity": self.severity.name.lower(),
            "check": self.check,
            "message": self.message,
            "remedy": self.remedy,
        }


def diagnose_server(version: Json, server: str) -> Finding:
    """Judge the answer of `/version`."""
    parsed = re.match(r"v?(\d+)\.(\d+)", str(version.get("gitVersion", "")))
    message = f"{version.get('gitVersion')} at {server}"
    if parsed and (int(parsed[1]), int(parsed[2])) < _OLDEST_KUBERNETES:
        needed = ".".join(map(str, _OLDEST_KUBERNETES))
        return Finding(Severity.ERROR, "API server", message, f"Upgrade the cluster to {needed} or later.")
    return Finding(Severity.OK, "API server", message)


def diagnose_schema(document: Json, client_version: str) -> Finding:
    """Compare the fields of the cluster's CRDs, from its OpenAPI v3 document, with those of this command line."""
    served: dict[str, frozenset[str]] = {}
    for schema in (document.get("components") or {}).get("schemas", {}).values():
        for kind in schema.get("x-kubernetes-group-version-kind") or ():
            spec = (schema.get("properties") or {}).get("spec") or {}
            if kind.get("kind") in SPEC_FIELDS and "properties" in spec:
                served[kind["kind"]] = frozenset(spec["properties"])
    missing = [
        f"{kind}.spec.{field}"
        for kind, fields in SPEC_FIELDS.items()
        for field in sorted(fields - served.get(kind, frozenset()))
    ]
    if missing:
        text = f"older than this command line ({client_version}): it is without {', '.join(missing)}"
        return Finding(
            Severity.ERROR,
            "CRDs",
            text,
            "Apply crds/ of this release; `helm upgrade` does with crds.install.",
        )
    unknown = [
        f"{kind}.spec.{field}"
        for kind, fields in served.items()
        for field in sorted(fields - SPEC_FIELDS[kind])
    ]
    if unknown:
        text = f"newer than this command line ({client_version}): it does not know {', '.join(unknown)}"
        return Finding(Severity.WARNING, "CRDs", text, "Upgrade the command line.")
    return Finding(
        Severity.OK, "CRDs", f"{names.API_VERSION}, as this command line ({client_version}) knows it"
    )


def diagnose_controller(deployments: Sequence[Json]) -> Finding:
    """Judge the Deployments of controllers in all namespaces."""
    if not deployments:
        remedy = "Install the chart: helm install dbranch helm/dbranch."
        return Finding(Severity.ERROR, "controller", "there is no Deployment of it in any namespace", remedy)
    where = [_place(body) for body in deployments]
    if len(deployments) > 1:
        text = f"installed {len(deployments)} times: {', '.join(where)}; both decide"
        return Finding(
            Severity.ERROR, "controller", text, "Uninstall all but one: the API group is cluster-wide."
        )
    body, status = deployments[0], deployments[0].get("status") or {}
    desired, ready = int(body["spec"].get("replicas", 1)), int(status.get("readyReplicas", 0))
    text = f"{where[0]}: {ready} of {desired} ready, {_image_of(body)}"
    if desired == 0:
        return Finding(Severity.WARNING, "controller", text, "Nothing is decided until it is scaled to 1.")
    if ready < desired:
        return Finding(Severity.ERROR, "controller", text, f"See kubectl describe and logs of {where[0]}.")
    return Finding(Severity.OK, "controller", text)


def diagnose_agents(
    daemon_sets: Sequence[Json], pods: Sequence[Json], controllers: Sequence[Json]
) -> Iterator[Finding]:
    """Judge the agents: their DaemonSet, pods that are not ready, whether their release is the controller's."""
    if not daemon_sets:
        remedy = "Install the chart; see nodesNamespace in its values."
        yield Finding(Severity.ERROR, "agents", "there is no DaemonSet of them in any namespace", remedy)
        return
    for body in daemon_sets:
        status = body.get("status") or {}
        desired, ready = int(status.get("desiredNumberScheduled", 0)), int(status.get("numberReady", 0))
        text = f"{_place(body)}: {ready} of {format_count(desired, 'node')} ready, {_image_of(body)}"
        if desired == 0:
            remedy = "No node fits agent.nodeSelector and agent.tolerations of the chart's values."
            yield Finding(Severity.ERROR, "agents", text, remedy)
        else:
            severity = Severity.OK if ready == desired else Severity.WARNING
            yield Finding(severity, "agents", text)
        other = [c for c in controllers if _image_of(c) != _image_of(body)]
        if other:
            text = f"{_image_of(body)}, but the controller has {_image_of(other[0])}"
            yield Finding(
                Severity.WARNING, "versions", text, "An upgrade is under way, or ended half: run it again."
            )
    for pod in pods:
        ready_condition = find_condition(pod.get("status"), Condition.READY) or {}
        if ready_condition.get("status") != ConditionStatus.TRUE and not pod["metadata"].get(
            "deletionTimestamp"
        ):
            node = (pod.get("spec") or {}).get("nodeName", "no node")
            why = ready_condition.get("message") or "no report"
            text = f"{pod['metadata']['name']} on {node} is not ready: {why}"
            yield Finding(Severity.ERROR, "agents", text, f"See its log: {_place(pod)}.")


def diagnose_policies(policies: Sequence[Json], bindings: Sequence[Json]) -> Finding:
    """Judge the admission policies of the chart, without which active branches can be deleted."""
    bound = {str((body.get("spec") or {}).get("policyName")) for body in bindings}
    existing = [body["metadata"]["name"] for body in policies]
    unbound = [name for name in existing if name not in bound]
    if not existing or unbound:
        text = (
            f"not bound: {', '.join(unbound)}"
            if unbound
            else "there is none: what must not be deleted can be"
        )
        return Finding(Severity.ERROR, "policies", text, "Run helm upgrade again; the chart makes them.")
    return Finding(Severity.OK, "policies", f"{len(existing)}, each bound")


def diagnose_orphans(orphans: Sequence[Orphan]) -> Iterator[Finding]:
    """Judge the orphans: data on the nodes that no object names. Deleted projects that are kept are expected."""
    kept = [orphan for orphan in orphans if orphan.kind is OrphanKind.PROJECT]
    count = len(orphans) - len(kept)
    if count:
        text = f"{format_count(count, 'orphan')}: data that no object names, which takes space"
        yield Finding(Severity.WARNING, "orphans", text, "See dbranch orphan list.")
    else:
        yield Finding(Severity.OK, "orphans", "none")
    if kept:
        listed = ", ".join(f"{orphan.namespace}/{orphan.project} ({orphan.size})" for orphan in kept)
        text = f"{format_count(len(kept), 'project')} kept on the nodes for a time: {listed}"
        yield Finding(Severity.OK, "deleted projects", text)


def diagnose_objects(bodies: Sequence[Json], now: datetime) -> Iterator[Finding]:
    """Judge dbranch's objects: what hangs, what is reported, what a condition warns of."""
    for body in bodies:
        yield from _diagnose_object(body, now)


def _diagnose_object(body: Json, now: datetime) -> Iterator[Finding]:
    meta, status = body["metadata"], body.get("status") or {}
    check = _subject(body)
    if meta.get("deletionTimestamp"):
        blocked = find_condition(status, Condition.DELETION_BLOCKED)
        if blocked:
            yield _finding(check, blocked, Severity.WARNING, now)
        elif now - _time(meta["deletionTimestamp"]) > _GRACE_PERIOD:
            waits = ", ".join(meta.get("finalizers") or ())
            text = (
                f"it has been deleted {format_age(meta['deletionTimestamp'], now)} ago and waits for {waits}"
            )
            remedy = "See the log of the controller, or for dbranch.io/agent of the agent on its node."
            yield Finding(Severity.WARNING, check, text, remedy)
        return
    age = now - _time(meta["creationTimestamp"])
    if not status.get("conditions"):
        if age > _GRACE_PERIOD:
            text = f"nothing is reported {format_age(meta['creationTimestamp'], now)} after its creation"
            yield Finding(
                Severity.ERROR, check, text, "The controller does not run, or cannot write: see its log."
            )
        return
    if body["kind"] == names.RESTORE_KIND:
        yield from _diagnose_restore(body, check, now)
        return
    ready = find_condition(status, Condition.READY) or {}
    seen = int(ready.get("observedGeneration", meta.get("generation", 1)))
    if seen < int(meta.get("generation", 1)) and age > _GRACE_PERIOD:
        text = f"the report is of generation {seen}, the spec of {meta['generation']}"
        yield Finding(Severity.WARNING, check, text, "If that stays so, see the controller's log.")
    if problem_of(body):
        stalled = is_condition_true(status, Condition.STALLED)
        if (
            not stalled
            and now - _time(ready.get("lastTransitionTime") or meta["creationTimestamp"]) < _GRACE_PERIOD
        ):
            return
        yield _finding(check, ready, Severity.ERROR if stalled else Severity.WARNING, now)
        return
    for condition in status["conditions"]:
        entry = CATALOG.get(_reason(condition))
        if condition["type"] in _SUMMARIES or condition["status"] != ConditionStatus.TRUE:
            continue
        if entry and entry.remedy:
            yield _finding(check, condition, Severity.WARNING, now)


def _diagnose_restore(body: Json, check: str, now: datetime) -> Iterator[Finding]:
    """Judge a DBRestore with conditions: it hangs at a step, or has failed of late."""
    for condition_type, begin, end in (
        (Condition.FAILED, timedelta(0), _FAILURE_PERIOD),
        (Condition.RECONCILING, _GRACE_PERIOD, timedelta.max),
    ):
        condition = find_condition(body["status"], condition_type) or {}
        if condition.get("status") != ConditionStatus.TRUE:
            continue
        age = now - _time(condition.get("lastTransitionTime") or body["metadata"]["creationTimestamp"])
        if begin <= age < end:
            yield _finding(check, condition, Severity.WARNING, now)


def _finding(check: str, condition: Json, severity: Severity, now: datetime) -> Finding:
    entry = CATALOG.get(_reason(condition))
    since = format_age(condition.get("lastTransitionTime"), now)
    text = f"{condition['reason']} for {since}: {condition.get('message') or 'no message'}"
    return Finding(severity, check, text, entry.remedy if entry else "")


def _reason(condition: Json) -> Reason:
    return Reason(condition["reason"])


def _subject(body: Json) -> str:
    meta = body["metadata"]
    if body["kind"] == names.BRANCH_KIND:
        return f"branch {meta['namespace']}/{body['spec']['project']}/{branch_name_of(body)}"
    if body["kind"] == names.SNAPSHOT_KIND:
        return f"snapshot {meta['namespace']}/{meta['name']}"
    if body["kind"] == names.RESTORE_KIND:
        return f"restore {meta['namespace']}/{meta['name']}"
    return f"project {meta['namespace']}/{meta['name']}"


def _place(body: Json) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


def _image_of(body: Json) -> str:
    return str(body["spec"]["template"]["spec"]["containers"][0]["image"])


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
