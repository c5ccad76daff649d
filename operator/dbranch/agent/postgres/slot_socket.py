"""Connecting to a slot's socket, in a directory of the tenant's: to the very file that was checked."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct

from dbranch.agent.layout import Layout
from dbranch.agent.linux.files import opened_directory
from dbranch.agent.linux.syscalls import openat2
from dbranch.api.errors import NotAccepting


def connect_slot(layout: Layout, slot: str, port: int, seconds: float) -> socket.socket:
    """Connect to the socket of this port in the slot's `run`; wait at most `seconds` for the server's backlog.

    Postgres sees this process' user, who connects, whoever uses the connection. Raises NotAccepting if there is no
    socket or nobody listens.
    """
    name = f".s.PGSQL.{port}"
    try:
        with opened_directory(layout.slot(slot), "run") as run:
            # By name it could become another file, or a link to another project's socket, at any moment.
            checked = openat2(run, name, os.O_PATH | os.O_NOFOLLOW)
        try:
            if not stat.S_ISSOCK(os.fstat(checked).st_mode):
                raise NotAccepting(f"{name} in slot {slot} is not a socket", no_server=True)
            return _connect(f"/proc/self/fd/{checked}", seconds)
        finally:
            os.close(checked)
    except OSError as error:
        # A full backlog is a server's that is slow.
        no_server = error.errno in (errno.ENOENT, errno.ECONNREFUSED)
        text = f"slot {slot} has no socket that accepts ({error.strerror})"
        raise NotAccepting(text, no_server=no_server) from error


def _connect(path: str, seconds: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Python's own time limit does not cover a full backlog: the kernel's does.
        whole = int(seconds)
        limit = struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.connect(path)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 0))
    except BaseException:
        sock.close()
        raise
    return sock
