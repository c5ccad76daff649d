"""What the controller remembers of every DBRestore."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

from dbranch.api.conditions import Finding
from dbranch.api.restore import Restore
from dbranch.api.versions import is_newer
from dbranch.runtime.limited import LimitedDict

# Namespace and name of an object.
ObjectKey = tuple[str, str]
# Branches whose last refresh was refused are remembered until so many others were.
MAX_REFUSED = 1000


class RestoreRecords:
    """All restores, without their labels, annotations and conditions. Thread-safe.

    `refused`: by branch UID, what to report of the last run of its refresh where the API server refused it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.refused: LimitedDict[str, Finding] = LimitedDict(MAX_REFUSED)
        self._records: dict[ObjectKey, Restore] = {}

    def put(self, restore: Restore) -> Restore | None:
        """Remember it, unless a later version of the object is known; return what was known before."""
        key = restore.namespace, restore.object_name
        with self._lock:
            old = self._records.get(key)
            if old is None or not _is_older(restore, old):
                self._records[key] = replace(restore, status={}, labels={}, annotations={})
            return old

    def forget(self, namespace: str, name: str) -> Restore | None:
        """Forget one that is gone; return it."""
        with self._lock:
            return self._records.pop((namespace, name), None)

    def keep_only(self, keys: Iterable[ObjectKey]) -> list[Restore]:
        """Forget all others, which went while nobody watched; return those."""
        kept = set(keys)
        with self._lock:
            gone = [restore for key, restore in self._records.items() if key not in kept]
            self._records = {key: restore for key, restore in self._records.items() if key in kept}
        return gone

    def all(self) -> list[Restore]:
        with self._lock:
            return list(self._records.values())

    def unfinished(self) -> list[Restore]:
        return [restore for restore in self.all() if not restore.finished]

    def of_branch(self, namespace: str, project: str, branch: str) -> list[Restore]:
        """Return those of a branch, by its name."""
        key = namespace, project, branch
        return [r for r in self.all() if (r.namespace, r.project, r.branch) == key]

    def of_uid(self, uid: str | None) -> Restore | None:
        """Return the DBRestore with this UID, if it exists."""
        return next((restore for restore in self.all() if restore.uid == uid), None)

    def is_unfinished(self, uid: str | None) -> bool:
        """Return True if the DBRestore with this UID is known, and waits or runs."""
        return any(restore.uid == uid for restore in self.unfinished())

    def count(self, phase: str) -> int:
        """Return how many are in a phase. One that nobody has seen yet is Pending."""
        return sum((restore.phase or "Pending") == phase for restore in self.all())


def _is_older(restore: Restore, remembered: Restore) -> bool:
    """True if it is an earlier version of the same object: a watch delivers what was read from an answer again."""
    return restore.uid == remembered.uid and is_newer(remembered.resource_version, restore.resource_version)
