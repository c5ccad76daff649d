"""SQL sessions of the agent over a slot's socket, opened so that no symbolic link can lead elsewhere."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from dbranch.agent.layout import PGDATA, Layout
from dbranch.agent.linux.files import opened_directory, read_beneath
from dbranch.agent.linux.inotify import InotifyWatch
from dbranch.agent.linux.syscalls import openat2
from dbranch.agent.timing import (
    RELOAD_FIRST_POLL_SECONDS,
    RELOAD_LONGEST_POLL_SECONDS,
    RELOAD_TIMEOUT_SECONDS,
    SQL_TIMEOUT_SECONDS,
    SQL_WATCHDOG_EXTRA_SECONDS,
    START_TRY_SECONDS,
)
from dbranch.api.errors import NotAccepting


@dataclass(frozen=True)
class Endpoint:
    """How to reach a branch's Postgres: its slot, the port in the socket's name, the superuser, the major version."""

    slot: str
    port: int
    user: str
    major: int


class _Shared(threading.local):
    """The connections that the sessions of a thread share, by endpoint; None outside of `shared_connections`."""

    connections: dict[Endpoint, psycopg.Connection[Any]] | None = None


_shared = _Shared()


@contextmanager
def shared_connections() -> Iterator[None]:
    """Within the context this thread's sessions use one connection per Postgres: each costs milliseconds."""
    connections = _shared.connections = {}
    try:
        yield
    finally:
        _shared.connections = None
        for connection in connections.values():
            connection.close()


@contextmanager
def connect(
    layout: Layout, endpoint: Endpoint, database: str = "postgres", seconds: float = SQL_TIMEOUT_SECONDS
) -> Iterator[psycopg.Connection[Any]]:
    """Open a session in autocommit; the whole session may take `seconds`.

    Raises NotAccepting if no server accepts connections (yet).
    """
    is_default = (database, seconds) == ("postgres", SQL_TIMEOUT_SECONDS)
    shared = _shared.connections if is_default else None
    # Taken out of those that are shared: a session within a session has a connection of its own.
    connection = shared.pop(endpoint, None) if shared else None
    if connection is None:
        connection = _connect(layout, endpoint, database, seconds)
    # A stopped server does not enforce its own time limits.
    watchdog = threading.Timer(seconds + SQL_WATCHDOG_EXTRA_SECONDS, _shut_down, args=[connection])
    watchdog.daemon = True
    watchdog.start()
    finished = False
    try:
        yield connection
        finished = True
    finally:
        watchdog.cancel()
        if finished and shared is not None and endpoint not in shared:
            shared[endpoint] = connection
        else:
            connection.close()


def _connect(layout: Layout, endpoint: Endpoint, database: str, seconds: float) -> psycopg.Connection[Any]:
    with _socket_directory(layout, endpoint) as run:
        milliseconds = max(1, int(seconds * 1000))
        options = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
        if endpoint.major >= 17:
            options += " -c event_triggers=off"
        try:
            return psycopg.connect(
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
            raise NotAccepting(f"Postgres in slot {endpoint.slot}: {_one_line(error)}") from error


def _shut_down(session: psycopg.Connection[Any]) -> None:
    """Shut the session's socket down, so that a blocked call on the session fails."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(session.fileno())) as sock:
        sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def _socket_directory(layout: Layout, endpoint: Endpoint) -> Iterator[int]:
    """Open the tenant's `run` directory. Raises NotAccepting unless it holds a socket for this port."""
    try:
        with opened_directory(layout.slot(endpoint.slot), "run") as run:
            name = f".s.PGSQL.{endpoint.port}"
            handle = openat2(run, name, os.O_PATH | os.O_NOFOLLOW)
            try:
                is_socket = stat.S_ISSOCK(os.fstat(handle).st_mode)
            finally:
                os.close(handle)
            if not is_socket:
                raise NotAccepting(f"{name} in slot {endpoint.slot} is not a socket")
            yield run
    except OSError as error:
        raise NotAccepting(f"slot {endpoint.slot} has no socket ({error.strerror})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def await_accepting(layout: Layout, endpoint: Endpoint, seconds: float) -> str | None:
    """Block until Postgres accepts connections; return its `server_version` ("17.6"), or None after `seconds`.

    The postmaster writes into its PID file when it is ready, and inotify reports the write. The tenant may write
    there, too, so that is only a reason to try; every START_TRY_SECONDS it is tried anyway.
    """
    deadline = time.monotonic() + seconds
    tried_at = 0.0
    try:
        with (
            opened_directory(layout.data(endpoint.slot), PGDATA) as pgdata,
            InotifyWatch(pgdata) as changes,
        ):
            while True:
                now = time.monotonic()
                overdue = now - tried_at > START_TRY_SECONDS
                if _pid_file_says_ready(pgdata) or overdue:
                    version = read_server_version(layout, endpoint)
                    if version:
                        return version
                if overdue:
                    tried_at = now
                if now > deadline:
                    return None
                changes.wait(min(START_TRY_SECONDS, deadline - now))
    except OSError:
        # No branch is bound in the slot (any more).
        time.sleep(min(START_TRY_SECONDS, max(0.0, deadline - time.monotonic())))
        return None


def _pid_file_says_ready(pgdata: int) -> bool:
    """True if the last line of postmaster.pid says that the server accepts connections."""
    lines = (read_beneath(pgdata, "postmaster.pid", limit=1024) or "").splitlines()
    return bool(lines) and lines[-1].strip() == "ready"


def read_server_version(layout: Layout, endpoint: Endpoint) -> str | None:
    """Return the `server_version`, or None if Postgres does not accept connections."""
    try:
        with connect(layout, endpoint) as session:
            return _version_of(session)
    except (NotAccepting, psycopg.Error):
        return None


def checkpoint(layout: Layout, endpoint: Endpoint, seconds: float) -> bool:
    """Run CHECKPOINT, best effort; return False if it did not finish within `seconds`."""
    try:
        with connect(layout, endpoint, seconds=seconds) as session:
            session.execute("checkpoint")
    except (NotAccepting, psycopg.Error):
        return False
    return True


def reload(layout: Layout, endpoint: Endpoint) -> bool:
    """Make Postgres read its settings files again; return True once it has: later connections meet the new ones.

    Returns False if that is not seen within RELOAD_TIMEOUT_SECONDS: it does not take a postgresql.conf with a name
    that it does not know. Raises NotAccepting if it does not run.
    """
    with connect(layout, endpoint) as session:
        # The postmaster reads them, and passes the signal on to this session only then.
        row = session.execute("select pg_conf_load_time(), pg_reload_conf()").fetchone()
        loaded_at, deadline = row and row[0], time.monotonic() + RELOAD_TIMEOUT_SECONDS
        delay = RELOAD_FIRST_POLL_SECONDS
        while time.monotonic() < deadline:
            time.sleep(delay)
            row = session.execute("select pg_conf_load_time()").fetchone()
            if row and row[0] != loaded_at:
                return True
            delay = min(2 * delay, RELOAD_LONGEST_POLL_SECONDS)
    return False


def has_rejected_settings(layout: Layout, endpoint: Endpoint) -> bool:
    """Return True if Postgres finds something in its postgresql.conf that it does not take."""
    query = "select exists (select from pg_file_settings where error is not null)"
    with connect(layout, endpoint) as session:
        row = session.execute(query).fetchone()
    return bool(row and row[0])


@dataclass(frozen=True)
class ServerFacts:
    """What a Postgres says of itself.

    `version`: None if it does not accept connections; `starting`: it rejects them; `missing_role`: because it has no
    role of the endpoint's user. `pending_settings`: the names of
    the settings that need a restart. `loaded_at`: when it read its settings files last, as `time.time()` counts.
    """

    version: str | None = None
    starting: bool = False
    pending_settings: tuple[str, ...] = ()
    loaded_at: float = 0.0
    missing_role: bool = False


def observe_server(layout: Layout, endpoint: Endpoint) -> ServerFacts:
    """Ask the Postgres in a slot, in one session."""
    query = (
        "select extract(epoch from pg_conf_load_time())::float8,"
        " array(select name from pg_settings where pending_restart order by name)"
    )
    try:
        with connect(layout, endpoint) as session:
            version = _version_of(session)
            row = session.execute(query).fetchone()
    except NotAccepting as error:
        # A server that answers, and does not let the agent in, is starting or ending.
        missing_role = f'role "{endpoint.user}" does not exist' in str(error)
        return ServerFacts(starting="FATAL" in str(error), missing_role=missing_role)
    except psycopg.Error:
        return ServerFacts()
    if row is None:
        return ServerFacts(version)
    return ServerFacts(version, False, tuple(str(name) for name in row[1]), float(row[0]))


def _version_of(session: psycopg.Connection[Any]) -> str | None:
    # The server sends it while the session starts: no query is needed.
    version = session.info.parameter_status("server_version")
    # Debian appends its package: "17.6 (Debian 17.6-1.pgdg13+1)".
    return version.split()[0] if version else None
