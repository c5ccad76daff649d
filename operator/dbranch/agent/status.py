"""Build what an agent writes into `status.node` of a DBProject or DBBranch. Pure."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, Final

from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import (
    Busy,
    CommandFailed,
    DataLost,
    DbranchError,
    InvalidInput,
    PodRejected,
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


def changed_fields(current: Mapping[str, Any], desired: Mapping[str, Any]) -> Json:
    """Return the fields of `desired` that differ from `current`, as a merge patch; None removes a field."""
    return {key: value for key, value in desired.items() if current.get(key) != value}


def size_fields(prefix: str, count: int | None) -> Json:
    """Return a byte count as the fields `<prefix>Bytes` and `<prefix>Size` (for people); {} for None.

    >>> size_fields("unique", 2**20)
    {'uniqueBytes': 1048576, 'uniqueSize': '1Mi'}
    """
    if count is None:
        return {}
    return {f"{prefix}Bytes": count, f"{prefix}Size": format_bytes(count)}


def drop_insignificant(current: Mapping[str, Any], desired: Json) -> Json:
    """Return `desired` without byte counts whose size for people stays the same: an idle agent writes nothing.

    Others use the node's disk, too, so its free bytes are dropped unless `free_bytes_differ`.
    """
    significant = dict(desired)
    current_free, desired_free = current.get("hostFreeBytes"), desired.get("hostFreeBytes")
    if (
        current_free is not None
        and desired_free is not None
        and not free_bytes_differ(current_free, desired_free)
    ):
        del significant["hostFreeBytes"]
        significant.pop("hostFreeSize", None)
    for key in desired:
        if key.endswith("Bytes"):
            size_key = key.removesuffix("Bytes") + "Size"
            if key in current and size_key in desired and current.get(size_key) == desired[size_key]:
                significant.pop(key, None)
    return significant


def failed_storage_finding(error: Exception, subject: str) -> Finding:
    """Return the storage finding of a branch for the error that its reconcile raised."""
    reason = Reason.SNAPSHOT_FAILED
    if isinstance(error, DataLost):
        reason = Reason.DATA_LOST
    elif isinstance(error, StorageUnclear):
        reason = Reason.STORAGE_UNCLEAR
    elif isinstance(error, SourceUnsafe):
        reason = Reason.SOURCE_UNSAFE
    elif isinstance(error, Busy):
        reason = Reason.SNAPSHOTTING
    elif isinstance(error, PodRejected):
        # Only initdb's pod is needed before there is data.
        reason = Reason.INITDB_FAILED
    return Finding(reason, error_message(error, subject))


def failed_postgres_finding(error: Exception, subject: str) -> Finding:
    """Return the Postgres finding of a stored branch for the error that its reconcile raised."""
    reason = Reason.WAITING_FOR_SLOT
    if isinstance(error, InvalidInput):
        reason = Reason.INVALID_PARAMETERS
    elif isinstance(error, PodRejected):
        reason = Reason.POD_REJECTED
    return Finding(reason, error_message(error, subject))


def held_deletion_finding(error: Busy, subject: str) -> Finding:
    """Return what is said of an object that is being deleted while something on the node holds it up."""
    return Finding(Reason.WAITING_FOR_AGENT, f"{subject} is not deleted yet: {error}")


def failed_pool_finding(error: Exception, project: str) -> Finding:
    """Return the storage finding of a project whose pool could not be attached."""
    reason = Reason.ATTACH_FAILED
    if isinstance(error, PoolLost):
        reason = Reason.POOL_LOST
    elif isinstance(error, PoolDamaged):
        reason = Reason.POOL_DAMAGED
    elif isinstance(error, StorageUnclear):
        reason = Reason.STORAGE_UNCLEAR
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        reason = Reason.NODE_DISK_LOW
    return Finding(reason, error_message(error, f"pool of project {project}"))


def error_message(error: Exception, subject: str) -> str:
    """Return an error as a condition's message about `subject`."""
    if isinstance(error, CommandFailed):
        return f"{subject}: {error.argv[0]} failed ({error.output or error.code}); it is tried again"
    if isinstance(error, DbranchError):
        return f"{subject}: {error}"
    return f"{subject}: {type(error).__name__}: {error}; it is tried again"
