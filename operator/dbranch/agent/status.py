"""What an agent writes: `status.node` of a branch and of a project. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import (
    Busy,
    CommandFailed,
    DataLost,
    DbranchError,
    InvalidInput,
    PoolDamaged,
    PoolLost,
    SourceUnsafe,
    StorageUnclear,
)
from dbranch.api.quantity import format_bytes

Json = dict[str, Any]

# The part by which the free bytes of the node's disk have to differ to be written again.
_FREE_BYTES_TOLERANCE: Final = 0.05


def free_bytes_differ(old: int, new: int) -> bool:
    """Return True if the free bytes of the node's disk have changed by more than 5 %: others use the disk, too."""
    return abs(new - old) > old * _FREE_BYTES_TOLERANCE


def changes(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> Json:
    """The part of `wanted` that is not so yet, as a merge patch; None takes a field away."""
    return {key: value for key, value in wanted.items() if now.get(key) != value}


def sizes(prefix: str, count: int | None) -> Json:
    """`…Bytes` and the same for people, `…Size`."""
    if count is None:
        return {}
    return {f"{prefix}Bytes": count, f"{prefix}Size": format_bytes(count)}


def told(now: Mapping[str, Any], wanted: Json) -> Json:
    """Byte counts that read the same for people are left as they were: an idle system writes nothing.

    The node's disk is others' too, so what is free on it is told when it has changed by much.
    """
    kept = dict(wanted)
    was, free = now.get("hostFreeBytes"), wanted.get("hostFreeBytes")
    if was is not None and free is not None and not free_bytes_differ(was, free):
        del kept["hostFreeBytes"]
        kept.pop("hostFreeSize", None)
    for key in wanted:
        if key.endswith("Bytes"):
            shown = key.removesuffix("Bytes") + "Size"
            if key in now and shown in wanted and now.get(shown) == wanted[shown]:
                kept.pop(key, None)
    return kept


def failed_storage_finding(error: Exception, who: str) -> Finding:
    """The storage step of a branch whose work failed."""
    reason = Reason.SNAPSHOT_FAILED
    if isinstance(error, DataLost):
        reason = Reason.DATA_LOST
    elif isinstance(error, StorageUnclear):
        reason = Reason.STORAGE_UNCLEAR
    elif isinstance(error, SourceUnsafe):
        reason = Reason.SOURCE_UNSAFE
    elif isinstance(error, Busy):
        reason = Reason.SNAPSHOTTING
    return Finding(reason, sentence(error, who))


def failed_postgres_finding(error: Exception, who: str) -> Finding:
    """The Postgres step of a stored branch whose work failed."""
    invalid = isinstance(error, InvalidInput)
    return Finding(Reason.INVALID_PARAMETERS if invalid else Reason.WAITING_FOR_SLOT, sentence(error, who))


def failed_pool_finding(error: Exception, project: str) -> Finding:
    """The storage step of a project whose pool could not be brought up."""
    reason = Reason.ATTACH_FAILED
    if isinstance(error, PoolLost):
        reason = Reason.POOL_LOST
    elif isinstance(error, PoolDamaged):
        reason = Reason.POOL_DAMAGED
    elif isinstance(error, OSError) and error.errno == 28:
        reason = Reason.NODE_DISK_LOW
    return Finding(reason, sentence(error, f"pool of project {project}"))


def sentence(error: Exception, who: str) -> str:
    """An error as a message of a condition."""
    if isinstance(error, CommandFailed):
        return f"{who}: {error.argv[0]} failed ({error.output or error.code}); it is tried again"
    if isinstance(error, DbranchError):
        return f"{who}: {error}"
    return f"{who}: {type(error).__name__}: {error}; it is tried again"
