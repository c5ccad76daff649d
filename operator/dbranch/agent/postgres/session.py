"""The agent's SQL: sessions over a slot's socket, opened so that no link can lead elsewhere."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from dbranch.agent.layout import PGDATA, Layout
from dbranch.agent.linux.files import opened_directory, read_beneath
from dbranch.agent.linux.inotify import InotifyWatch
from dbranch.agent.linux.syscalls import openat2
from dbranch.api.errors import NotAccepting

# Seconds after which a server is tried though nothing said that it is ready.
_TRY: Final = 0.25
# Seconds that a server has beyond its own time limit.
_PATIENCE: Final = 1.0


@dataclass(frozen=True)
class Endpoint:
    """A branch's Postgres: its slot, its port (in the socket's name), the superuser, the major version."""

    slot: str
    port: int
    user: str
    major: int


@contextmanager
def connect(
    layout: Layout, endpoint: Endpoint, database: str = "postgres", seconds: float = 5.0
) -> Iterator[psycopg.Connection[Any]]:
    """A session in autocommit; all of it within `seconds`. NotAccepting where there is no server (yet)."""
    with _socket_directory(layout, endpoint) as run:
        milliseconds = max(1, int(seconds * 1000))
        options = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
        if endpoint.major >= 17:
            options += " -c event_triggers=off"
        try:
            session = psycopg.connect(
                host=f"/proc/self/fd/{run}",
                port=endpoint.port,
                user=endpoint.user,
                dbname=database,
                application_name="dbranch-agent",
                connect_timeout=max(2, int(seconds)),
                options=options,
                autocommit=True,
            )
        except psycopg.OperationalError as error:
            raise NotAccepting(f"Postgres in slot {endpoint.slot}: {_line(error)}") from error
        # The server's own time limits are worth nothing where the server stands still.
        watchdog = threading.Timer(seconds + _PATIENCE, _cut, args=[session])
        watchdog.daemon = True
        watchdog.start()
        try:
            yield session
        finally:
            watchdog.cancel()
            session.close()


def _cut(session: psycopg.Connection[Any]) -> None:
    """Ends a session from this side: who waits for it gets an error."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(session.fileno())) as sock:
        sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def _socket_directory(layout: Layout, endpoint: Endpoint) -> Iterator[int]:
    """The tenant's `run`, with a real socket of this port in it. NotAccepting where it is not (yet)."""
    try:
        with opened_directory(layout.slot(endpoint.slot), "run") as run:
            name = f".s.PGSQL.{endpoint.port}"
            handle = openat2(run, name, os.O_PATH | os.O_NOFOLLOW)
            try:
                is_socket = stat.S_ISSOCK(os.fstat(handle).st_mode)
            finally:
                os.close(handle)
            if not is_socket:
                raise NotAccepting(f"{name} in slot {endpoint.slot} is no socket")
            yield run
    except OSError as error:
        raise NotAccepting(f"slot {endpoint.slot} has no socket ({error.strerror})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def await_accepting(layout: Layout, endpoint: Endpoint, seconds: float) -> str | None:
    """Blocks until Postgres accepts; its `server_version` ("17.6"), or None after `seconds`. For a thread.

    The postmaster writes into its PID file that it is ready, and the kernel tells of the write. A tenant may write
    there too, so it is only a reason to try; now and then it is tried without one.
    """
    end = time.monotonic() + seconds
    tried = 0.0
    try:
        with (
            opened_directory(layout.data(endpoint.slot), PGDATA) as pgdata,
            InotifyWatch(pgdata) as notices,
        ):
            while True:
                now = time.monotonic()
                if (_says_ready(pgdata) or now - tried > _TRY) and (version := accepting(layout, endpoint)):
                    return version
                tried = now if now - tried > _TRY else tried
                if now > end:
                    return None
                notices.wait(min(_TRY, end - now))
    except OSError:
        # Nothing is bound there (any more).
        time.sleep(min(_TRY, max(0.0, end - time.monotonic())))
        return None


def _says_ready(pgdata: int) -> bool:
    """Whether the last line of the PID file says that the server takes sessions."""
    lines = (read_beneath(pgdata, "postmaster.pid", limit=1024) or "").splitlines()
    return bool(lines) and lines[-1].strip() == "ready"


def accepting(layout: Layout, endpoint: Endpoint) -> str | None:
    """One try: the `server_version`, or None where it does not accept."""
    try:
        with connect(layout, endpoint) as session:
            # The server says it with its first words.
            version = session.info.parameter_status("server_version")
    except (NotAccepting, psycopg.Error):
        return None
    # Debian and others append their own build: "17.6 (Debian 17.6-1.pgdg13+1)".
    return version.split()[0] if version else None


def checkpoint(layout: Layout, endpoint: Endpoint, seconds: float) -> bool:
    """A CHECKPOINT, best effort: False where it could not be had within `seconds`."""
    try:
        with connect(layout, endpoint, seconds=seconds) as session:
            session.execute("checkpoint")
    except (NotAccepting, psycopg.Error):
        return False
    return True


def reload(layout: Layout, endpoint: Endpoint) -> None:
    """Settings files read again."""
    with connect(layout, endpoint) as session:
        session.execute("select pg_reload_conf()")


def restart_pending(layout: Layout, endpoint: Endpoint) -> tuple[str, ...]:
    """The names of settings that wait for a restart; none where it does not accept."""
    query = "select name from pg_settings where pending_restart order by name"
    try:
        with connect(layout, endpoint) as session:
            return tuple(str(row[0]) for row in session.execute(query).fetchall())
    except (NotAccepting, psycopg.Error):
        return ()
