"""What an object is named by: its key in the work queue, and the reference of an Event about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.api.restore import Restore
from dbranch.api.snapshot import Snapshot
from dbranch.runtime.result import Key

_KINDS: Final[Mapping[type, str]] = {
    Project: names.PROJECT_KIND,
    Branch: names.BRANCH_KIND,
    Snapshot: names.SNAPSHOT_KIND,
    Restore: names.RESTORE_KIND,
}


def key_of(item: Project | Branch | Snapshot | Restore) -> Key:
    """Return the key of an object: its kind, namespace and name."""
    name = item.name if isinstance(item, Project) else item.object_name
    return Key(_KINDS[type(item)], item.namespace, name)


def reference_of(item: Project | Branch | Snapshot | Restore) -> dict[str, Any]:
    """Return as much of the object's body as an Event about it needs."""
    key = key_of(item)
    return {
        "apiVersion": names.API_VERSION,
        "kind": key.kind,
        "metadata": {"namespace": key.namespace, "name": key.name, "uid": item.uid},
    }
