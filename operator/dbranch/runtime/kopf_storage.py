"""kopf's record of each object (last handled state, progress of handlers), kept in memory.

A process that starts reconciles every object, so nothing has to outlive it. kopf's default, annotations on the
objects, costs one write for each change that was handled, which the API server sends to everybody who watches
(tried: half of all writes of a create, two of three of a switch).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import kopf

from dbranch.runtime.limited import LimitedDict

_MAX_RECORDS = 10_000
# Some 2 KB each.
_MAX_HANDLED = 40_000


class InMemoryDiffBaseStorage(kopf.DiffBaseStorage):
    """The last handled state of each object, by UID; handlers run for what differs from it.

    An object is new until this process has handled it, whatever finalizers it has: the controller puts the agent's on
    a branch that the agent has never seen.
    """

    def __init__(self, ignored_fields: Sequence[tuple[str, ...]] = ()) -> None:
        super().__init__(ignored_fields=ignored_fields)
        # One that is left out is handled once more.
        self._handled: LimitedDict[str, Any] = LimitedDict(_MAX_HANDLED)
        # By kind: the fields besides spec, labels and annotations that handlers watch.
        self._fields: dict[str, tuple[tuple[str, ...], ...]] = {}

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> Any:
        self._fields[str(body.get("kind"))] = tuple(extra_fields or ())
        return self._essence(body)

    def fetch(self, *, body: kopf.Body) -> Any:
        meta = body["metadata"]
        if meta.get("deletionTimestamp"):
            # The deletionTimestamp starts the delete handlers; no difference is needed.
            self._handled.pop(meta["uid"], None)
            return None
        return copy.deepcopy(self._handled.get(meta["uid"]))

    def _essence(self, body: kopf.Body) -> Any:
        """Return kopf's essence of the body, built from the parts that can be in it.

        kopf copies the whole body at every event, most of which are managed fields and status (measured: an eighth
        of the agent's time).
        """
        fields, meta, status = self._fields[str(body.get("kind"))], body["metadata"], body.get("status") or {}
        watched = {field[1] for field in fields if field[0] == "status"}
        kept: Any = {
            **body,
            "metadata": {key: meta[key] for key in ("labels", "annotations") if key in meta},
            "status": {key: value for key, value in status.items() if key in watched},
        }
        return super().build(body=kopf.Body(kept), extra_fields=fields)

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: Any) -> None:
        self._handled[body["metadata"]["uid"]] = copy.deepcopy(essence)


class InMemoryProgressStorage(kopf.AnnotationsProgressStorage):
    """Which handlers of an object are to be retried, and when; only what wakes kopf is written to the object."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix=prefix)
        self._records: dict[tuple[str, str], Any] = {}

    def fetch(self, *, key: Any, body: kopf.Body) -> Any:
        return self._records.get((body["metadata"]["uid"], key))

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        self._records[body["metadata"]["uid"], key] = record
        # Of an object that goes while its delete handler is to be retried, kopf purges nothing. Without its record a
        # handler is called too early once.
        while len(self._records) > _MAX_RECORDS:
            del self._records[next(iter(self._records))]

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        self._records.pop((body["metadata"]["uid"], key), None)
