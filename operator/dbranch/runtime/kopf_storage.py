"""What kopf remembers of each object, in this process only.

A start visits everything, so none of it has to outlive the process. On the objects, where kopf keeps it otherwise, it
costs a write for each change that was handled, which goes to everybody who watches (tried: half of all writes of a
create, two of three of a switch).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import kopf


class InMemoryDiffBaseStorage(kopf.DiffBaseStorage):
    """The state of each object that was handled last, by its UID: what differs from it is news."""

    def __init__(self, finalizer: str, ignored_fields: Sequence[tuple[str, ...]] = ()) -> None:
        super().__init__(ignored_fields=ignored_fields)
        self._finalizer = finalizer
        # None: seen first without the finalizer, so it is new, and stays so until it was handled.
        self._handled: dict[str, Any] = {}
        # By kind: the fields besides spec, labels and annotations that handlers ask for.
        self._fields: dict[str, tuple[tuple[str, ...], ...]] = {}

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> Any:
        self._fields[str(body.get("kind"))] = tuple(extra_fields or ())
        return self._essence(body)

    def fetch(self, *, body: kopf.Body) -> Any:
        meta, kind = body["metadata"], str(body.get("kind"))
        if meta.get("deletionTimestamp"):
            # The end is asked for by that, not by a difference.
            self._handled.pop(meta["uid"], None)
            return None
        if meta["uid"] not in self._handled:
            # What has the finalizer was handled by an earlier process: as it is now it is only resumed.
            old = self._finalizer in (meta.get("finalizers") or ()) and kind in self._fields
            self._handled[meta["uid"]] = self._essence(body) if old else None
        return copy.deepcopy(self._handled[meta["uid"]])

    def _essence(self, body: kopf.Body) -> Any:
        """kopf's, of what it keeps of the body: it copies the whole, of which managed fields and status are the
        greater part, at every event (measured: an eighth of the agent's time)."""
        fields, meta, status = self._fields[str(body.get("kind"))], body["metadata"], body.get("status") or {}
        asked = {field[1] for field in fields if field[0] == "status"}
        kept: Any = {
            **body,
            "metadata": {key: meta[key] for key in ("labels", "annotations") if key in meta},
            "status": {key: value for key, value in status.items() if key in asked},
        }
        return super().build(body=kopf.Body(kept), extra_fields=fields)

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: Any) -> None:
        self._handled[body["metadata"]["uid"]] = copy.deepcopy(essence)


class Progress(kopf.AnnotationsProgressStorage):
    """Which handlers of an object are to come back, and when. Only what wakes kopf for them is an annotation."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix=prefix)
        self._records: dict[tuple[str, str], Any] = {}

    def fetch(self, *, key: Any, body: kopf.Body) -> Any:
        return self._records.get((body["metadata"]["uid"], key))

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        self._records[body["metadata"]["uid"], key] = record

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        self._records.pop((body["metadata"]["uid"], key), None)
