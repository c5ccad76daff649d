"""How long to wait before something that failed is tried again."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from dbranch.runtime.limited import LimitedDict

# Enough for any limit, and no overflow.
_MOST_DOUBLINGS: Final = 30
# Failures of objects; one that is forgotten is only tried again sooner.
_MAX_REMEMBERED: Final = 10_000


def delay_after(failures: int, first: float, limit: float) -> float:
    """Return the seconds after which to try again after `failures` (1 or more) in a row: they double up to `limit`.

    >>> [delay_after(failures, first=2.0, limit=10.0) for failures in (1, 2, 3, 4)]
    [2.0, 4.0, 8.0, 10.0]
    """
    return float(min(first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), limit))


@dataclass(frozen=True)
class _Failure:
    version: object
    failures: int
    first: float
    until: float


class Backoff:
    """The delays of objects that fail: they double up to `limit` seconds, and begin anew for another version.

    `version` of a call is what changes when somebody asks for something else (a generation, say); `now` is a
    monotonic time in seconds. Kept in memory only: a process that starts tries everything at once.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._failures: LimitedDict[Hashable, _Failure] = LimitedDict(_MAX_REMEMBERED)

    def fail(self, key: Hashable, first: float, version: object, now: float) -> float:
        """Record a failure; return the seconds after which to try again, `first` after the first failure.

        A failure before the last delay has passed, in a reconcile that some event started, does not count again.

        >>> backoff = Backoff(limit=300.0)
        >>> [backoff.fail("x", 10.0, version=1, now=time) for time in (0.0, 10.0, 15.0, 30.0)]
        [10.0, 20.0, 15.0, 40.0]
        """
        failure = self._failures.get(key)
        if failure is None or failure.version != version:
            failures = 1
        elif now < failure.until:
            return failure.until - now
        else:
            failures, first = failure.failures + 1, failure.first
        delay = delay_after(failures, first, self._limit)
        self._failures[key] = _Failure(version, failures, first, now + delay)
        return delay

    def remaining(self, key: Hashable, version: object, now: float) -> float:
        """Return the seconds until the object is to be tried again; 0.0 if it may be tried now."""
        failure = self._failures.get(key)
        if failure is None or failure.version != version:
            return 0.0
        return max(0.0, failure.until - now)

    def succeed(self, key: Hashable) -> None:
        """Forget the failures of an object."""
        self._failures.pop(key, None)
