"""Which branch may not write any more while the node's disk is almost full, and which one may again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from dbranch.agent.pool.space import Watermarks
from dbranch.agent.volume.brake import Brake

# Below this a branch is not called a writer: its Postgres writes a little by itself.
_MINIMUM_BYTES_PER_SECOND: Final = 64 * 2**10
# Who grows less than this part of the fastest is not compared with it.
_COMPARABLE_PART: Final = 0.5


@dataclass(frozen=True)
class Writer:
    """A branch with a running Postgres, and the bytes of the disk by which it has grown in a second."""

    uid: str
    is_root: bool
    bytes_per_second: float


@dataclass(frozen=True)
class BrakeChange:
    """The brake that a branch gets; None lifts the one that it has."""

    uid: str
    brake: Brake | None


def plan_brake(
    watermarks: Watermarks, free: int, writers: Iterable[Writer], brakes: Mapping[str, Brake]
) -> BrakeChange | None:
    """Plan the next change, one at a time: what it does is seen before the next one. None: nothing is to be done.

    Below the watermark `brake` the fastest writer gets read-only transactions, below `stop` it is stopped if it goes
    on in spite of them. Of those that write about as fast a copy comes before a root. Each is lifted two watermarks
    above the one that it came at, so that what a lift lets in does not bring it back at once.

    `free`: bytes of the node's disk. `brakes`: by the branch's UID, those in force.
    """
    if free < watermarks.brake:
        unrestrained = [writer for writer in writers if writer.uid not in brakes]
        restrained = [writer for writer in writers if brakes.get(writer.uid) is Brake.READ_ONLY]
        if free < watermarks.stop and (defiant := _fastest(restrained)):
            return BrakeChange(defiant.uid, Brake.STOPPED)
        fastest = _fastest(unrestrained)
        return BrakeChange(fastest.uid, Brake.READ_ONLY) if fastest else None
    stopped = sorted(uid for uid, brake in brakes.items() if brake is Brake.STOPPED)
    if stopped and free >= watermarks.warn:
        return BrakeChange(stopped[0], Brake.READ_ONLY)
    if brakes and free >= watermarks.refuse:
        return BrakeChange(min(brakes), None)
    return None


def _fastest(writers: Iterable[Writer]) -> Writer | None:
    """Return the one to be restrained first."""
    writing = [writer for writer in writers if writer.bytes_per_second >= _MINIMUM_BYTES_PER_SECOND]
    top = max((writer.bytes_per_second for writer in writing), default=0.0)
    comparable = [writer for writer in writing if writer.bytes_per_second >= _COMPARABLE_PART * top]
    return min(
        comparable, key=lambda writer: (writer.is_root, -writer.bytes_per_second, writer.uid), default=None
    )
