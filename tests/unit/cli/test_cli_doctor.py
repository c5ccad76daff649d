"""`dbranch doctor`: what it finds, what to do about it, and its exit code."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.api.orphans import Orphan, OrphanKind, render_published
from dbranch_cli import doctor as module
from dbranch_cli.diagnosis import (
    SPEC_FIELDS,
    Severity,
    diagnose_agents,
    diagnose_controller,
    diagnose_objects,
    diagnose_policies,
    diagnose_schema,
    diagnose_server,
)
from dbranch_cli.invocation import Invocation
from dbranch_cli.main import cli
from dbranch_cli.objects import Store

CRDS = Path(__file__).parents[3] / "crds"
NOW = datetime(2030, 1, 13, 12, 0, 0, tzinfo=UTC)
_SNAPSHOTS = f"/apis/{names.API_VERSION}/namespaces/team/dbsnapshots"
_RESTORES = f"/apis/{names.API_VERSION}/namespaces/team/dbrestores"
OLD, NEW = "2030-01-13T11:00:00Z", "2030-01-13T11:59:50Z"


def schema(**fields: set[str]) -> dict[str, Any]:
    return {
        "components": {
            "schemas": {
                f"io.dbranch.v1alpha1.{kind}": {
                    "x-kubernetes-group-version-kind": [{"group": names.GROUP, "kind": kind}],
                    "properties": {"spec": {"properties": {field: {} for field in names_of_fields}}},
                }
                for kind, names_of_fields in fields.items()
            }
        }
    }


SCHEMA = schema(**{kind: set(fields) for kind, fields in SPEC_FIELDS.items()})


def workload(
    name: str, namespace: str, image: str = "dbranch-server:1", replicas: int = 1, **status: int
) -> Any:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"image": image}]}}},
        "status": status,
    }


CONTROLLER = workload("dbranch-controller", "dbranch-system", readyReplicas=1)
AGENTS = workload("dbranch-agent", "dbranch-nodes", desiredNumberScheduled=2, numberReady=2)


def project(reason: str, status: str = "False", message: str = "why", created: str = OLD, **meta: Any) -> Any:
    conditions = [
        {"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": OLD}
    ]
    return {
        "kind": "DBProject",
        "metadata": {
            "name": "shop",
            "namespace": "team",
            "creationTimestamp": created,
            "generation": 1,
            **meta,
        },
        "spec": {},
        "status": {"conditions": conditions},
    }


def findings_of(body: Any) -> list[tuple[Severity, str, str]]:
    return [(f.severity, f.message, f.remedy) for f in diagnose_objects([body], NOW)]


def test_the_fields_that_are_compared_are_those_of_the_crds() -> None:
    for file in CRDS.iterdir():
        crd = yaml.safe_load(file.read_text())["spec"]
        properties = crd["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        assert SPEC_FIELDS[crd["names"]["kind"]] == set(properties["spec"]["properties"]), file


def test_older_and_newer_crds() -> None:
    assert diagnose_schema(SCHEMA, "1.0").severity is Severity.OK
    older = schema(DBProject=set(SPEC_FIELDS["DBProject"]), DBBranch=set(SPEC_FIELDS["DBBranch"]) - {"state"})
    finding = diagnose_schema(older, "1.0")
    assert finding.severity is Severity.ERROR and "is without DBBranch.spec.state" in finding.message
    fields = {kind: set(fields) for kind, fields in SPEC_FIELDS.items()}
    newer = schema(**{**fields, "DBProject": fields["DBProject"] | {"upstream"}})
    finding = diagnose_schema(newer, "1.0")
    assert finding.severity is Severity.WARNING and "DBProject.spec.upstream" in finding.message
    assert diagnose_schema({}, "1.0").severity is Severity.ERROR


def test_the_version_of_kubernetes() -> None:
    assert diagnose_server({"gitVersion": "v1.34.3+k3s1"}, "u").severity is Severity.OK
    assert diagnose_server({"gitVersion": "v1.31.9"}, "u").severity is Severity.ERROR


def test_controllers() -> None:
    assert diagnose_controller([CONTROLLER]).severity is Severity.OK
    assert "install" in diagnose_controller([]).remedy.lower()
    assert diagnose_controller([CONTROLLER, CONTROLLER]).severity is Severity.ERROR
    down = diagnose_controller([workload("c", "n")])
    assert down.severity is Severity.ERROR and "0 of 1 ready" in down.message
    assert diagnose_controller([workload("c", "n", replicas=0)]).severity is Severity.WARNING


def test_agents() -> None:
    assert [f.severity for f in diagnose_agents([AGENTS], [], [CONTROLLER])] == [Severity.OK]
    assert [f.severity for f in diagnose_agents([], [], [])] == [Severity.ERROR]
    nowhere = workload("a", "n", desiredNumberScheduled=0)
    assert "nodeSelector" in next(iter(diagnose_agents([nowhere], [], []))).remedy
    other = workload("c", "n", image="dbranch-server:2", readyReplicas=1)
    assert [f.check for f in diagnose_agents([AGENTS], [], [other])] == ["agents", "versions"]
    condition = {"type": "Ready", "status": "False", "message": "containers with unready status: [agent]"}
    pod = {
        "metadata": {"name": "a-1", "namespace": "n"},
        "spec": {"nodeName": "n1"},
        "status": {"conditions": [condition]},
    }
    last = list(diagnose_agents([AGENTS], [pod], [CONTROLLER]))[-1]
    assert last.severity is Severity.ERROR and "a-1 on n1 is not ready: containers with" in last.message


def test_policies() -> None:
    policy, binding = {"metadata": {"name": "dbranch-x"}}, {"spec": {"policyName": "dbranch-x"}}
    assert diagnose_policies([policy], [binding]).severity is Severity.OK
    assert diagnose_policies([policy], []).severity is Severity.ERROR
    assert diagnose_policies([], []).severity is Severity.ERROR


def test_an_object_that_hangs_is_reported_with_what_to_do() -> None:
    severity, message, remedy = findings_of(project("AttachFailed", message="no loop device"))[0]
    assert (severity, message) == (Severity.WARNING, "AttachFailed for 1h: no loop device") and remedy
    stalled = project("PoolLost")
    stalled["status"]["conditions"].append({"type": "Stalled", "status": "True", "reason": "PoolLost"})
    assert findings_of(stalled)[0][0] is Severity.ERROR


def test_what_is_under_way_or_stopped_is_no_finding() -> None:
    assert findings_of(project("Available", "True")) == findings_of(project("Stopped")) == []
    young = project("CreatingPool", created=NEW)
    young["status"]["conditions"][0]["lastTransitionTime"] = NEW
    assert findings_of(young) == []


def test_what_nobody_reports() -> None:
    silent = project("Available", "True")
    silent["status"] = {}
    assert "nothing is reported" in findings_of(silent)[0][1]
    silent["metadata"]["creationTimestamp"] = NEW
    assert findings_of(silent) == []
    behind = project("Available", "True", generation=4)
    behind["status"]["conditions"][0]["observedGeneration"] = 3
    assert "generation 3, the spec of 4" in findings_of(behind)[0][1]


def test_deletions_that_hang() -> None:
    deleted = project("Deleting", deletionTimestamp=OLD, finalizers=[names.AGENT_FINALIZER])
    assert "waits for dbranch.io/agent" in findings_of(deleted)[0][1]
    blocked = {
        "type": "DeletionBlocked",
        "status": "True",
        "reason": "Protected",
        "message": "it is protected",
    }
    deleted["status"]["conditions"].append(blocked)
    assert "it is protected" in findings_of(deleted)[0][1]
    assert findings_of(project("Deleting", deletionTimestamp=NEW)) == []


def test_a_warning_of_a_condition_that_is_true() -> None:
    body = project("Available", "True")
    low = {
        "type": "StorageReady",
        "status": "True",
        "reason": "PoolLow",
        "message": "5% free",
        "lastTransitionTime": OLD,
    }
    body["status"]["conditions"].append(low)
    severity, message, remedy = findings_of(body)[0]
    assert severity is Severity.WARNING and message == "PoolLow for 1h: 5% free" and remedy


class FakeConnection:
    """A cluster's answers by path; an exception is raised."""

    server = "https://api"

    def __init__(self, **projects: Any) -> None:
        orphan = Orphan(OrphanKind.POOL, "u", "u", "team", "shop", size="1Gi", why="retained")
        annotations = {names.AGENT_ORPHANS: render_published((orphan,), {})}
        self.answers: dict[str, Any] = {
            "/version": {"gitVersion": "v1.34.3"},
            f"/apis/{names.API_VERSION}/namespaces/team/dbprojects": {"items": list(projects.values())},
            f"/apis/{names.API_VERSION}/namespaces/team/dbbranches": {"items": []},
            _SNAPSHOTS: {"items": []},
            _RESTORES: {"items": []},
            "/openapi/v3/apis/dbranch.io/v1alpha1": SCHEMA,
            "/apis/apps/v1/deployments": {"items": [CONTROLLER]},
            "/apis/apps/v1/daemonsets": {"items": [AGENTS]},
            "/api/v1/pods": {
                "items": [
                    {
                        "metadata": {"name": "a", "namespace": "n", "annotations": annotations},
                        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
                    }
                ]
            },
            module._POLICIES: {"items": [{"metadata": {"name": "p"}}]},
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings": {
                "items": [{"spec": {"policyName": "p"}}]
            },
        }

    def get(self, path: str, **_: str) -> Any:
        answer = self.answers[path]
        if isinstance(answer, Exception):
            raise answer
        return answer


def run(monkeypatch: pytest.MonkeyPatch, connection: FakeConnection, *arguments: str) -> Result:
    monkeypatch.setattr(Invocation, "store", Store(connection, "team"))  # type: ignore[arg-type]
    monkeypatch.setattr(Invocation, "namespace", "team")
    return CliRunner().invoke(cli, ["doctor", *arguments])


def test_the_whole_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, FakeConnection())
    assert done.exit_code == 1 and "warning  orphans: 1 orphan" in done.stdout
    assert "ok       objects: 0 projects, 0 branches: nothing to report" in done.stdout
    stalled = project("PoolLost")
    stalled["status"]["conditions"].append({"type": "Stalled", "status": "True", "reason": "PoolLost"})
    done = run(monkeypatch, FakeConnection(shop=stalled), "-o", "json")
    findings = json.loads(done.stdout)["findings"]
    assert done.exit_code == 7 and findings[-1]["check"] == "project team/shop"
    assert run(monkeypatch, FakeConnection(shop=stalled), "-o", "name").stdout.splitlines() == [
        "orphans",
        "project team/shop",
    ]


def test_snapshots_are_examined_once_their_crd_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakeConnection()
    connection.answers[_SNAPSHOTS] = ApiError(404, "NotFound", "no such resource")
    assert "objects: 0 projects, 0 branches: nothing" in run(monkeypatch, connection).stdout
    whole = project("Available", "True", name="shop-before")
    connection.answers[_SNAPSHOTS] = {"items": [{**whole, "kind": "DBSnapshot"}]}
    assert "0 branches, 1 snapshot: nothing to report" in run(monkeypatch, connection).stdout
    lost = project("SnapshotLost", name="shop-before")
    lost["status"]["conditions"].append({"type": "Stalled", "status": "True", "reason": "SnapshotLost"})
    connection.answers[_SNAPSHOTS] = {"items": [{**lost, "kind": "DBSnapshot"}]}
    done = run(monkeypatch, connection)
    assert done.exit_code == 7 and "error    snapshot team/shop-before: SnapshotLost" in done.stdout


def restore_with(condition: str, reason: str, since: str) -> dict[str, Any]:
    made = {
        "type": condition,
        "status": "True",
        "reason": reason,
        "message": "m",
        "lastTransitionTime": since,
    }
    meta = {"name": "shop-x-1", "namespace": "team", "creationTimestamp": "2030-01-01T00:00:00Z"}
    spec = {"project": "shop", "branch": "x"}
    return {"kind": "DBRestore", "metadata": meta, "spec": spec, "status": {"conditions": [made]}}


@pytest.mark.parametrize(
    ("condition", "reason", "hours_ago", "is_reported"),
    [
        ("Complete", "Restored", 1.0, False),
        ("Complete", "AlreadyApplied", 1.0, False),
        ("Reconciling", "ProjectStopped", 1.0, True),
        ("Reconciling", "Cleaning", 0.001, False),
        ("Failed", "PoolFull", 1.0, True),
        ("Failed", "PoolFull", 30.0, False),
    ],
)
def test_a_restore_that_hangs_or_has_failed_of_late_is_reported(
    condition: str, reason: str, hours_ago: float, is_reported: bool
) -> None:
    """A record of one that failed long ago may stay for ever."""
    now = datetime(2030, 1, 10, tzinfo=UTC)
    since = (now - timedelta(hours=hours_ago)).isoformat()
    findings = list(diagnose_objects([restore_with(condition, reason, since)], now))
    assert [finding.check for finding in findings] == (["restore team/shop-x-1"] if is_reported else [])
    assert all(finding.severity == Severity.WARNING for finding in findings)


def test_restores_are_examined_once_their_crd_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakeConnection()
    connection.answers[_RESTORES] = ApiError(404, "NotFound", "no such resource")
    assert "objects: 0 projects, 0 branches: nothing" in run(monkeypatch, connection).stdout
    done = restore_with("Complete", "Restored", "2030-01-01T00:00:00Z")
    connection.answers[_RESTORES] = {"items": [done]}
    assert "0 branches, 1 restore: nothing to report" in run(monkeypatch, connection).stdout


def test_what_a_user_may_not_see_is_said_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakeConnection()
    forbidden = ApiError(403, "Forbidden", "no")
    for path in list(connection.answers)[6:]:
        connection.answers[path] = forbidden
    done = run(monkeypatch, connection)
    assert done.exit_code == 0
    assert "unknown  controller: not looked at: you may not list deployments in all namespaces" in done.stdout
    assert (
        "unknown  agents: not looked at" in done.stdout and "unknown  policies: not looked at" in done.stdout
    )


def test_a_cluster_without_dbranch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakeConnection()
    connection.answers[f"/apis/{names.API_VERSION}/namespaces/team/dbprojects"] = ApiError(
        404, "NotInstalled", "dbranch is not installed in this cluster"
    )
    done = run(monkeypatch, connection)
    assert isinstance(done.exception, ApiError) and done.exception.reason == "NotInstalled"
