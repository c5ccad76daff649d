"""What this process remembers of restores: how long something takes, and why one cannot be done.

Nothing on the disk depends on it: without it a preparation that failed is tried once more.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Final

from dbranch.agent.branch.applying import Applied
from dbranch.agent.branch.facts import Desired
from dbranch.agent.restore.facts import RestoreFacts
from dbranch.agent.status import error_message
from dbranch.agent.timing import (
    RESTORE_FAILING_SECONDS,
    RESTORE_PREPARATION_TIMEOUT_SECONDS,
    RESTORE_SWITCH_TIMEOUT_SECONDS,
)
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.errors import Busy
from dbranch.runtime.limited import LimitedDict

_MAX_REMEMBERED: Final = 1000
# How many restores a node prepares at once: each has a Postgres beside the one that serves.
_PLACES: Final = 2
# Of a Postgres, or of its pod, that will not start by itself.
_FAILING_REASONS: Final = frozenset(
    {
        Reason.CRASH_LOOPING,
        Reason.IMAGE_PULL_FAILED,
        Reason.INVALID_PARAMETERS,
        Reason.MOUNT_NOT_PROPAGATED,
        Reason.POD_REJECTED,
        Reason.START_BLOCKED,
    }
)


@dataclass
class _Progress:
    """Of one restore. Times are those of `time.monotonic()`. `restarts`: of its container when it was seen first."""

    restore_uid: str
    begun_at: float = field(default_factory=time.monotonic)
    failing_since: float | None = None
    switching_since: float | None = None
    restarts: int | None = None
    failure: Finding | None = None


class RestoreMemory:
    """Remembers restores by the branch's UID. Thread-safe for different branches."""

    def __init__(self) -> None:
        self._progress: LimitedDict[str, _Progress] = LimitedDict(_MAX_REMEMBERED)
        self._lock = threading.Lock()
        # UIDs of the branches whose data is being prepared, or whose old pod still ends.
        self._places: set[str] = set()

    def take_place(self, branch_uid: str, restore_uid: str, is_coming: bool) -> bool:
        """Take one of the node's places for a restore; return False if it has none. One `is_coming` goes on."""
        self._of(branch_uid, restore_uid)
        with self._lock:
            if branch_uid in self._places or is_coming or len(self._places) < _PLACES:
                self._places.add(branch_uid)
                return True
            return False

    def release(self, branch_uid: str) -> None:
        """Give the place back."""
        with self._lock:
            self._places.discard(branch_uid)

    def forget(self, branch_uid: str) -> None:
        """Forget the branch's restore."""
        self.release(branch_uid)
        self._progress.pop(branch_uid, None)

    def fail(self, branch_uid: str, restore_uid: str, failure: Finding) -> None:
        """Remember why the restore cannot be done."""
        progress = self._of(branch_uid, restore_uid)
        progress.failure = progress.failure or failure

    def failure(self, branch_uid: str, restore_uid: str) -> Finding | None:
        """Return why the restore cannot be done, if that is known."""
        return self._of(branch_uid, restore_uid).failure

    def note_progress(self, branch_uid: str) -> None:
        """Forget that a preparation failed: it is complete."""
        progress = self._progress.get(branch_uid)
        if progress:
            progress.failing_since = None

    def seconds(self, branch_uid: str) -> float:
        """Return for how long the restore has been seen."""
        progress = self._progress.get(branch_uid)
        return time.monotonic() - progress.begun_at if progress else 0.0

    def note_switching(self, branch_uid: str, restore_uid: str) -> None:
        """Remember since when the restore is to be switched."""
        progress = self._of(branch_uid, restore_uid)
        if progress.switching_since is None:
            progress.switching_since = time.monotonic()

    def pop_switching(self, branch_uid: str) -> float | None:
        """Return for how long it was switched; None the second time, or if this process has not seen its begin."""
        progress = self._progress.get(branch_uid)
        if progress is None or progress.switching_since is None:
            return None
        seconds = time.monotonic() - progress.switching_since
        progress.switching_since = None
        return seconds

    def judge(self, desired: Desired, applied: Applied, facts: RestoreFacts) -> Finding | None:
        """Return why the preparation is given up, if it has failed for long, or takes too long."""
        assert desired.restore is not None
        now, progress = time.monotonic(), self._of(desired.branch.uid, desired.restore.uid)
        if (
            progress.switching_since is not None
            and now - progress.switching_since > RESTORE_SWITCH_TIMEOUT_SECONDS
        ):
            return _failed(desired, "it could not be exchanged in time")
        finding = applied.plan.postgres
        cause = finding.message if finding else "it is not stored"
        if applied.error:
            cause = error_message(applied.error, desired.subject)
        pod = facts.beside.live_pod
        if pod and progress.restarts is None:
            progress.restarts = pod.restarts
        is_restarting = pod is not None and pod.restarts > (progress.restarts or 0)
        is_bad = finding is not None and finding.reason in _FAILING_REASONS
        is_accepting = applied.facts.server_version is not None
        is_failed = applied.error is not None and not isinstance(applied.error, Busy)
        if not (is_failed or is_bad or (is_restarting and not is_accepting)):
            progress.failing_since = None
        elif progress.failing_since is None:
            progress.failing_since = now
        elif now - progress.failing_since > RESTORE_FAILING_SECONDS:
            return _failed(desired, cause)
        if not applied.plan.complete and now - progress.begun_at > RESTORE_PREPARATION_TIMEOUT_SECONDS:
            return _failed(desired, cause)
        return None

    def judge_switch(self, desired: Desired, error: Exception) -> Finding | None:
        """Return why the switch is taken back, if it has taken too long."""
        assert desired.restore is not None
        progress = self._of(desired.branch.uid, desired.restore.uid)
        since = time.monotonic() if progress.switching_since is None else progress.switching_since
        if time.monotonic() - since <= RESTORE_SWITCH_TIMEOUT_SECONDS:
            return None
        return _failed(desired, error_message(error, desired.subject))

    def _of(self, branch_uid: str, restore_uid: str) -> _Progress:
        progress = self._progress.get(branch_uid)
        if progress is None or progress.restore_uid != restore_uid:
            progress = self._progress[branch_uid] = _Progress(restore_uid)
        return progress


def _failed(desired: Desired, cause: str) -> Finding:
    text = f"the restore of {desired.subject} was given up: {cause}"
    effect = "; its data serves on; make another DBRestore"
    room = MESSAGE_LIMIT - len(effect)
    text = text if len(text) <= room else f"{text[: room - 1]}…"
    return Finding(Reason.START_FAILED, f"{text}{effect}")
