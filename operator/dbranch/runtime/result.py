"""What a reconcile is called with, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Key(NamedTuple):
    """An object that is reconciled: its kind, namespace and name."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Result:
    """When an object is to be reconciled if no event comes before.

    `requeue_after`: seconds; None: at the next resync, if there is one. `unfinished`: something is missing that no
    event may announce, so the delay grows from `requeue_after` to `longest` (None: five minutes). `gone`: never,
    since the object does not exist, or only an event can change what is to be done for it.
    """

    requeue_after: float | None = None
    unfinished: bool = False
    gone: bool = False
    longest: float | None = None


DONE, GONE = Result(), Result(gone=True)
# The object exists, and is not reconciled before an event asks for it.
AT_REST = GONE
