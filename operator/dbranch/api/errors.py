"""The exceptions that cross a layer.

DbranchError
├── InvalidInput        what the user said cannot be done as it stands
├── CommandFailed       a command of the node failed (argv, exit code, what it printed)
├── Busy                something else holds what is needed; try again
├── Unsafe              going on could lose or leak data; a person has to look
│   ├── PoolLost        a pool that was there is missing, or another one is in its place
│   ├── PoolDamaged     the pool's image holds no filesystem any more
│   ├── DataLost        a branch that was there has no subvolume
│   └── SourceUnsafe    the source keeps data where a snapshot does not reach
├── SlotTaken           a waiting slot has another branch by now
├── NameTaken           an object of somebody else has the name that is needed
├── NotAccepting        Postgres does not answer (yet)
├── ClusterUnreachable  the API server did not answer
└── ApiError             the API server said no
"""

from __future__ import annotations

from collections.abc import Sequence


class DbranchError(Exception):
    """The base of dbranch's own exceptions; its text is made for users."""


class InvalidInput(DbranchError):
    """What the user said cannot be done as it stands; the text says what would do."""


class Busy(DbranchError):
    """Something else holds what is needed (a mount, a lock, a device); the same call may succeed later."""


class Unsafe(DbranchError):
    """Going on could lose or leak data: nothing was done, and nothing is retried without a change."""


class PoolLost(Unsafe):
    """A pool that was made is missing or another one is in its place; it is never made again."""


class PoolDamaged(Unsafe):
    """The pool's image is there and holds no filesystem that can be used."""


class DataLost(Unsafe):
    """A branch that was made has no subvolume; it is never made again."""


class SourceUnsafe(Unsafe):
    """The source keeps data outside its subvolume, so a snapshot would not be whole; the text names the path."""


class SlotTaken(DbranchError):
    """A waiting slot has got another branch, or is gone: look again."""


class NameTaken(DbranchError):
    """An object of somebody else has the name that is needed; it is left alone."""


class NotAccepting(DbranchError):
    """Postgres does not answer on its socket (yet)."""


class ClusterUnreachable(DbranchError):
    """The API server did not answer."""


class ApiError(DbranchError):
    """The API server said no: `status` is the HTTP status, `reason` its one word, the text its message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(message)


class CommandFailed(DbranchError):
    """A command of the node ended with another code than 0.

    `argv` is what ran, `code` its exit code (negative: the signal; None: it ran out of time),
    `output` what it printed on standard error, or else on standard output, stripped.
    """

    def __init__(self, argv: Sequence[str], code: int | None, output: str) -> None:
        self.argv, self.code, self.output = tuple(argv), code, output
        how = "ran out of time" if code is None else f"exit code {code}"
        super().__init__(f"{' '.join(argv)}: {how}: {output or 'no output'}")
