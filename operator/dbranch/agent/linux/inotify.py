"""Notifications of changes in a directory (inotify(7)), instead of polling."""

from __future__ import annotations

import ctypes
import os
import select
import time
from types import TracebackType
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
# IN_CREATE, IN_MOVED_TO, IN_MODIFY.
_EVENT_MASK: Final = 0x100 | 0x080 | 0x002
# Between two polls if the kernel offers no inotify instance (the user's limit is reached).
_POLL_SECONDS: Final = 0.02


class InotifyWatch:
    """Changes in the open `directories`, from now on; changes of a file are seen under any of its mounts."""

    def __init__(self, *directories: int) -> None:
        self._handle = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._works = self._handle >= 0 and all(
            _libc.inotify_add_watch(
                self._handle, f"/proc/self/fd/{fd}".encode(), ctypes.c_uint32(_EVENT_MASK)
            )
            >= 0
            for fd in directories
        )

    def wait(self, timeout: float) -> None:
        """Wait until something has changed since the last wait, for at most `timeout` seconds."""
        if not self._works:
            time.sleep(min(timeout, _POLL_SECONDS))
            return
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        if poll.poll(max(0.0, timeout) * 1000):
            os.read(self._handle, 65536)

    def __enter__(self) -> InotifyWatch:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle >= 0:
            os.close(self._handle)
