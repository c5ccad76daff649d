"""The exceptions that cross a layer.

DbranchError
├── InvalidInput        a value that the user gave cannot be used
├── CommandFailed       a command on the node failed (argv, exit code, output)
├── Busy                a lock, mount or device is in use; a retry may succeed
├── Unsafe              going on could lose or leak data; a person has to decide
│   ├── PoolLost        a pool is missing, or another filesystem is in its place
│   ├── PoolDamaged     the pool's image holds no usable filesystem
│   ├── DataLost        a branch's subvolume is missing
│   ├── StorageUnclear  a subvolume was written by a newer release
│   └── SourceUnsafe    the source keeps data outside its subvolume
├── PodRejected         the API server rejects a pod that is needed
├── SlotTaken           a warm slot was claimed by another branch
├── NameTaken           an object that is not ours has the name that is needed
├── BeingDeleted        an object that is being deleted has the name that is needed
├── NotAccepting        Postgres does not accept connections (yet)
├── SqlFailed           a statement of the agent failed, or its session
├── ClusterUnreachable  the API server did not answer
└── ApiError            the API server rejected the request
    └── ObjectRefused   it rejected an object that the controller applies
"""

from __future__ import annotations

from collections.abc import Sequence


class DbranchError(Exception):
    """The base of dbranch's own exceptions; the text is written for users."""


class InvalidInput(DbranchError):
    """A value that the user gave cannot be used; the text says which values can."""


class Busy(DbranchError):
    """A mount, a lock or a device is in use by something else; the same call may succeed later."""


class Unsafe(DbranchError):
    """Going on could lose or leak data: nothing was done, and a retry without a change fails again."""


class PoolLost(Unsafe):
    """A pool that existed is missing, or another filesystem is in its place; it is never created again."""


class PoolDamaged(Unsafe):
    """The pool's image file exists and holds no usable filesystem."""


class DataLost(Unsafe):
    """The subvolume of a branch that was stored is missing; it is never created again."""


class StorageUnclear(Unsafe):
    """A subvolume was written by a newer release: this one neither uses nor destroys what it cannot understand."""


class SourceUnsafe(Unsafe):
    """The source keeps data outside its subvolume, so a snapshot would be incomplete; the text names the path."""


class PodRejected(DbranchError):
    """The API server rejects a pod for what it asks for (its resources, a quota, a policy); the text says why."""


class SlotTaken(DbranchError):
    """A warm slot was claimed by another branch or is gone: observe the slots again."""


class NameTaken(DbranchError):
    """An object that is not ours has the name that is needed; it is left alone."""


class BeingDeleted(DbranchError):
    """An object that is being deleted has the name that is needed; it is waited for."""


class NotAccepting(DbranchError):
    """Postgres does not accept connections on its socket (yet).

    `sqlstate`: of the error with which a server rejected the session; empty if no server answered. `no_server`: it
    is known that none listens. `routine`: the function of the server's source that rejected it.
    """

    def __init__(self, message: str, sqlstate: str = "", no_server: bool = False, routine: str = "") -> None:
        self.sqlstate, self.no_server, self.routine = sqlstate, no_server, routine
        super().__init__(message)


class SqlFailed(DbranchError):
    """A statement of the agent failed, or the session did before it was done.

    `sqlstate`: of the server's error; empty if the session ended, took too long or was no Postgres'. `routine`: the
    function of its source that reported it, if that ended the session.
    """

    def __init__(self, message: str, sqlstate: str = "", routine: str = "") -> None:
        self.sqlstate, self.routine = sqlstate, routine
        super().__init__(message)


class ClusterUnreachable(DbranchError):
    """The API server did not answer."""


class ApiError(DbranchError):
    """The API server rejected a request: HTTP `status`, `reason` (as in `AlreadyExists`), and the message as text."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(message)


class ObjectRefused(ApiError):
    """The API server (a quota, an admission webhook, a policy, its validation) rejected an object.

    `subject`: what was refused, as in "Service shop-x cannot be created"; the text is the server's sentence.
    """

    def __init__(self, subject: str, cause: ApiError) -> None:
        self.subject = subject
        super().__init__(cause.status, cause.reason, str(cause))


class NamespaceEnding(ObjectRefused):
    """Nothing can be made in a namespace that is being deleted."""


class CommandFailed(DbranchError):
    """A command on the node failed.

    `code` is its exit code (negative: killed by that signal; None: timed out), `output` what it printed on
    standard error, or else on standard output, stripped.
    """

    def __init__(self, argv: Sequence[str], code: int | None, output: str) -> None:
        self.argv, self.code, self.output = tuple(argv), code, output
        how = "timed out" if code is None else f"exit code {code}"
        super().__init__(f"{' '.join(argv)}: {how}: {output or 'no output'}")
