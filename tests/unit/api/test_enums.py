"""The enums of the code against those of the CRDs' schemas."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbranch.api import enums
from dbranch.api.project import parse_project
from dbranch.proxy.project import read_project
from dbranch.proxy.routes import Wait, decide

CRDS = Path(__file__).parents[3] / "crds"
# Path of a field below the schema (`[]`: of a list's items) -> the enum that the code has of it.
PROJECT: dict[str, type[StrEnum]] = {
    "spec.state": enums.State,
    "spec.protection": enums.Protection,
    "spec.deletionPolicy": enums.DeletionPolicy,
    "spec.postgres.initdb.provider": enums.LocaleProvider,
    "spec.proxy.serviceType": enums.ServiceType,
    "spec.proxy.service.externalTrafficPolicy": enums.ExternalTrafficPolicy,
    "spec.proxy.onSwitch": enums.OnSwitch,
    "spec.proxy.proxyProtocol": enums.ProxyProtocol,
    "spec.proxy.tls.mode": enums.TlsMode,
    "status.routes[].state": enums.TargetState,
    "status.conditions[].status": enums.ConditionStatus,
}
BRANCH: dict[str, type[StrEnum]] = {
    "spec.snapshots[].state": enums.ScheduleState,
    "spec.refresh.state": enums.ScheduleState,
    "spec.refresh.whenInUse": enums.WhenInUse,
    "spec.state": enums.State,
    "spec.protection": enums.Protection,
    "spec.undo": enums.Undo,
    "status.route.state": enums.TargetState,
    "status.restore.state": enums.RestoreState,
    "status.restore.source.kind": enums.RestoreSourceKind,
    "status.restore.undo": enums.Undo,
    "status.node.restore.state": enums.NodeRestoreState,
    "status.conditions[].status": enums.ConditionStatus,
}

SNAPSHOT: dict[str, type[StrEnum]] = {
    "spec.protection": enums.Protection,
    "spec.origin.reason": enums.SnapshotReason,
    "status.conditions[].status": enums.ConditionStatus,
}

RESTORE: dict[str, type[StrEnum]] = {
    "spec.undo": enums.Undo,
    "status.conditions[].status": enums.ConditionStatus,
}


def enums_of(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, set[str]]]:
    """Yield each field of a schema that has an enum, by its path, with the values."""
    if "enum" in schema:
        yield path, set(schema["enum"])
    for name, field in schema.get("properties", {}).items():
        yield from enums_of(field, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from enums_of(schema["items"], f"{path}[]")


@pytest.mark.parametrize(
    ("file", "expected"),
    [("dbprojects", PROJECT), ("dbbranches", BRANCH), ("dbsnapshots", SNAPSHOT), ("dbrestores", RESTORE)],
)
def test_each_enum_of_a_crd_is_one_of_the_code(file: str, expected: dict[str, type[StrEnum]]) -> None:
    crd = yaml.safe_load((CRDS / f"{file}.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert dict(enums_of(schema)) == {path: set(map(str, values)) for path, values in expected.items()}


def test_no_enum_of_the_code_is_missing_in_the_crds() -> None:
    defined = {item for item in vars(enums).values() if isinstance(item, type) and issubclass(item, StrEnum)}
    of_crds = {*PROJECT.values(), *BRANCH.values(), *SNAPSHOT.values(), *RESTORE.values()}
    # Phases are display: a schema that lists them would refuse those of a newer release.
    assert defined - {StrEnum, enums.OpenEnum} == of_crds | {enums.RestorePhase}


def test_values_of_a_newer_release_stop_no_reader() -> None:
    body = {
        "metadata": {"name": "shop"},
        "spec": {
            "state": "Paused",
            "proxy": {"onSwitch": "Migrate", "tls": {"secretName": "s", "mode": "Mutual"}},
        },
        "status": {
            "routes": [{"branch": "main", "state": "Suspended"}],
            "node": {"storage": {"reason": "PoolMoved", "message": "the pool moved"}},
        },
    }
    project = parse_project(body)
    assert not project.running
    assert [target.state for target in project.routes] == ["Suspended"]
    assert project.routes[0].state not in set(enums.TargetState)
    assert (
        project.node.storage and project.node.storage.reason == "PoolMoved" and not project.node.storage.done
    )
    assert isinstance(decide(read_project(body).table, "main"), Wait)
