"""The agent's side of the process that forks its sessions: it is started once, and again if it has ended."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import dbranch
from dbranch.agent.linux.command import Process, start
from dbranch.agent.postgres.unprivileged.main import READY, REQUEST_LIMIT
from dbranch.agent.timing import (
    SQL_PROCESS_ANSWER_SECONDS,
    SQL_PROCESS_IDLE_SECONDS,
    SQL_PROCESS_START_SECONDS,
)
from dbranch.api.errors import NotAccepting

# Processes that are kept for another session, some two megabytes each.
_IDLE_LIMIT: Final = 8
_CODE: Final = (
    "import sys; sys.path.append(sys.argv[2]);"
    " from dbranch.agent.postgres.unprivileged.main import main; main()"
)


class SessionProcesses:
    """Starts the processes of sessions, the next one before it is needed. Thread-safe.

    A process whose session has ended well is kept for a while for the next session with the same Postgres, and for
    no other: it has seen what that one sent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: Process | None = None
        self._spare: socket.socket | None = None
        # By Postgres, in the order in which their sessions ended: when, and the socket.
        self._idle: dict[Hashable, tuple[float, socket.socket]] = {}

    def open(self, postgres: Hashable, server: socket.socket, request: dict[str, Any]) -> socket.socket:
        """Give a process the connected socket `server` and the session's request; return the socket of its frames.

        `postgres` is what the process is kept for. `server` can be closed then. Raises NotAccepting if no process can
        be started.
        """
        data = json.dumps(request).encode()
        if len(data) > REQUEST_LIMIT:
            raise NotAccepting(f"a session's request of {len(data)} bytes is too long")
        with self._lock:
            _, idle = self._idle.pop(postgres, (0.0, None))
            if idle and _hand_over(idle, data, server):
                return idle
            spare, self._spare = self._spare, None
            if spare and _hand_over(spare, data, server):
                return spare
            try:
                forked = self._fork()
            except OSError as error:
                self._stop()
                raise NotAccepting(f"the process of SQL sessions does not answer ({error})") from error
        if not _hand_over(forked, data, server):
            raise NotAccepting("the process of an SQL session ended at its start")
        return forked

    def release(self, postgres: Hashable, frames: socket.socket, ended_well: bool) -> None:
        """Keep a session's process for the next one, or end it by closing its socket; prepare the next process."""
        with self._lock:
            now = time.monotonic()
            if ended_well and postgres not in self._idle:
                self._idle[postgres] = now, frames
            else:
                frames.close()
            for key, (since, sock) in tuple(self._idle.items()):
                if now - since > SQL_PROCESS_IDLE_SECONDS or len(self._idle) > _IDLE_LIMIT:
                    del self._idle[key]
                    sock.close()
            if self._spare is None:
                # The next session tries again, and says so.
                with suppress(OSError, NotAccepting):
                    self._spare = self._fork()

    def ensure_started(self) -> int:
        """Start the process that forks sessions, unless it runs; return its process ID."""
        with self._lock:
            self._ensure_started()
            assert self._process
            return self._process.pid

    def _fork(self) -> socket.socket:
        """Request a process for a session; return the socket to it. Raises OSError if that fails twice."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                socket.send_fds(self._ensure_started(), [b"fork"], [theirs.fileno()])
            except OSError:
                # It has ended, or hangs.
                self._stop()
                socket.send_fds(self._ensure_started(), [b"fork"], [theirs.fileno()])
        return ours

    def _ensure_started(self) -> socket.socket:
        if self._control and self._process and self._process.poll() is None:
            return self._control
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            argv = (sys.executable, "-I", "-S", "-B", "-c", _CODE, number, Path(dbranch.__path__[0]).parent)
            self._process = start(argv, [number])
        self._control = ours
        ours.settimeout(SQL_PROCESS_START_SECONDS)
        try:
            answer = ours.recv(1024)
        except OSError as error:
            answer = str(error).encode()
        if answer != READY:
            self._stop()
            text = answer.decode(errors="replace") or "it ended at its start"
            raise NotAccepting(f"the process of SQL sessions cannot be started: {text}")
        ours.settimeout(SQL_PROCESS_ANSWER_SECONDS)
        return ours

    def _stop(self) -> None:
        if self._control:
            self._control.close()
        if self._process:
            with suppress(OSError):
                self._process.kill()
            self._process.wait()
        self._control = self._process = None


def _hand_over(frames: socket.socket, data: bytes, server: socket.socket) -> bool:
    """Send a session's request and its connection to its process; return False if that has ended."""
    try:
        frames.settimeout(SQL_PROCESS_ANSWER_SECONDS)
        socket.send_fds(frames, [data], [server.fileno()])
    except OSError:
        frames.close()
        return False
    return True


session_processes: Final = SessionProcesses()
