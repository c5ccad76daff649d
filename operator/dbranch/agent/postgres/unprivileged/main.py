"""The process that the agent starts once: it gives up all privileges, and then forks one process a session.

It has no memory of the agent's, no environment, and no file but the socket to the agent. What a tenant sent is read
by the processes that it forks, never by itself.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import sys
from typing import Final

from dbranch.agent.linux.privileges import become_nobody
from dbranch.agent.postgres.unprivileged.session import run_session

# Of nobody else, neither in this image nor in the images of Postgres.
USER_ID: Final = 65530
# Of a session's request, in bytes: one message of the socket.
REQUEST_LIMIT: Final = 8192
READY: Final = b"ready"
_LIMITS: Final = {
    resource.RLIMIT_AS: 128 * 2**20,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_NOFILE: 16,
}


def main() -> None:
    """Serve the agent behind the descriptor that is the first argument, until it ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    null = os.open(os.devnull, os.O_RDWR)
    try:
        become_nobody(USER_ID, _LIMITS)
    except OSError as error:
        control.send(f"it cannot give up its privileges: {error}".encode())
        sys.exit(1)
    # The kernel reaps the sessions.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # What is here now is shared with all sessions: a collection would copy it.
    gc.disable()
    gc.freeze()
    control.send(READY)
    while True:
        data, handles, _, _ = socket.recv_fds(control, 16, 1)
        if not data:
            return
        if handles and os.fork() == 0:
            _run_child(control, null, handles[0])
        for handle in handles:
            os.close(handle)


def _run_child(control: socket.socket, null: int, handle: int) -> None:
    """Run sessions until one fails or the agent closes its socket; never return, whatever happens."""
    try:
        control.close()
        for standard in range(3):
            os.dup2(null, standard)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        agent = socket.socket(fileno=handle)
        goes_on = True
        while goes_on:
            signal.alarm(0)
            data, connection, _, _ = socket.recv_fds(agent, REQUEST_LIMIT, 1)
            if not connection:
                return
            with socket.socket(fileno=connection[0]) as server:
                goes_on = run_session(server, agent, json.loads(data))
    finally:
        os._exit(0)
