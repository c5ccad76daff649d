"""Word of changes in a directory (inotify(7)), so that nobody has to look again and again."""

from __future__ import annotations

import ctypes
import os
import select
import time
from types import TracebackType
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
# Something was made, moved here or written to.
_CHANGES: Final = 0x100 | 0x080 | 0x002
# Seconds between two looks where the kernel gives no word (its limit of instances is reached).
_LOOK: Final = 0.02


class InotifyWatch:
    """Changes in the open `directories`, from now on. A file in one is found under any of its mounts."""

    def __init__(self, *directories: int) -> None:
        self._handle = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._works = self._handle >= 0 and all(
            _libc.inotify_add_watch(self._handle, f"/proc/self/fd/{fd}".encode(), ctypes.c_uint32(_CHANGES))
            >= 0
            for fd in directories
        )

    def wait(self, seconds: float) -> None:
        """Until something has changed since the last wait, so long at most."""
        if not self._works:
            time.sleep(min(seconds, _LOOK))
            return
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        if poll.poll(max(0.0, seconds) * 1000):
            os.read(self._handle, 65536)

    def __enter__(self) -> InotifyWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle >= 0:
            os.close(self._handle)
