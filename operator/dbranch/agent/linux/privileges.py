"""Giving up privileges: capabilities, user, limits of memory. What is given up here never comes back.

Sources: capabilities(7), capset(2), prctl(2), linux/capability.h. It is the calling thread that gives up, and what it
starts later, so call it before any other thread exists.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Collection, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522


class Capability(IntEnum):
    """The capabilities that dbranch uses, by their number in linux/capability.h."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    FOWNER = 3
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    LINUX_IMMUTABLE = 9
    SYS_ADMIN = 21
    MKNOD = 27


# Mounts, btrfs and loop devices; files of the tenants' users; immutable directories; and what the start of a process
# without any needs, and its end.
AGENT_CAPABILITIES: Final = frozenset(Capability)


def drop_capabilities(kept: Collection[int] = ()) -> int:
    """Give up all capabilities but `kept` in every set, also for the programs that this process starts.

    Returns how many it had and has no longer. Raises OSError if the kernel refuses.
    """
    before = _permitted()
    mask = before & sum(1 << number for number in kept)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if not mask >> number & 1 and _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _prctl(_PR_CAPBSET_DROP, number)
    halves = mask & 0xFFFFFFFF, mask >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable: of the low half, then of the high half.
    sets = (ctypes.c_uint32 * 6)(halves[0], halves[0], 0, halves[1], halves[1], 0)
    _check(_libc.capset(header, sets))
    return (before & ~mask).bit_count()


def _permitted() -> int:
    status = Path("/proc/thread-self/status").read_text()
    return int(status.partition("CapPrm:")[2].split()[0], 16)


def become_nobody(user_id: int, limits: Mapping[int, int]) -> None:
    """Become this user, in no other group, without capabilities and without a way back to any.

    `limits` are resource limits, soft and hard (`resource.RLIMIT_*`). Other processes of the user can neither trace
    this one nor read its memory. Raises OSError if the kernel refuses.
    """
    # The bounding set needs a capability, so it comes before the user.
    drop_capabilities({Capability.SETUID, Capability.SETGID, Capability.SETPCAP})
    os.setgroups([])
    os.setresgid(user_id, user_id, user_id)
    for number in (Capability.SETUID, Capability.SETGID, Capability.SETPCAP):
        _prctl(_PR_CAPBSET_DROP, number)
    os.setresuid(user_id, user_id, user_id)
    drop_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _prctl(option: int, first: int, second: int = 0) -> None:
    unsigned = ctypes.c_ulong
    _check(_libc.prctl(option, unsigned(first), unsigned(second), unsigned(0), unsigned(0)))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
