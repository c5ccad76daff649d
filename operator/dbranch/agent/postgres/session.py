"""SQL sessions of the agent over a slot's socket. The agent only connects: a process without privileges speaks.

Every error of a server or a session leaves this module as NotAccepting or SqlFailed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from dbranch.agent.layout import PGDATA, Layout
from dbranch.agent.linux.files import opened_directory, read_beneath
from dbranch.agent.linux.inotify import InotifyWatch
from dbranch.agent.postgres.quoting import fill
from dbranch.agent.postgres.slot_socket import connect_slot
from dbranch.agent.postgres.spawn import session_processes
from dbranch.agent.postgres.unprivileged.frames import FrameError, receive_frame, send_frame
from dbranch.agent.timing import (
    RELOAD_FIRST_POLL_SECONDS,
    RELOAD_LONGEST_POLL_SECONDS,
    RELOAD_TIMEOUT_SECONDS,
    SQL_TIMEOUT_SECONDS,
    SQL_WATCHDOG_EXTRA_SECONDS,
    START_TRY_LIMIT_SECONDS,
    START_TRY_SECONDS,
)
from dbranch.api.conditions import printable
from dbranch.api.errors import NotAccepting, SqlFailed
from dbranch.runtime.limited import LimitedDict

# Of the agent's sessions.
APPLICATION_NAME: Final = "dbranch-agent"
# Characters of a server's text in a message.
_TEXT_LIMIT: Final = 200
# What a tenant may have set otherwise for the database or the role.
_OPTIONS: Final = {
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": "0",
    "search_path": "pg_catalog",
    "role": "none",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "synchronous_commit": "on",
}
_OPTIONS_SINCE: Final = (
    (14, {"idle_session_timeout": "0"}),
    (17, {"transaction_timeout": "0", "event_triggers": "off"}),
)

# For what concerns the whole server: the first that there is. The SQLSTATEs if there is none, or it is closed.
_DATABASES: Final = ("postgres", "template1")
_WITHOUT_DATABASE: Final = ("3D000", "55000")
_MAX_REMEMBERED: Final = 1000

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Endpoint:
    """How to reach a branch's Postgres: its slot, the port in the socket's name, the superuser, the major version.

    `database`: the application's, in which the agent works if there is no other.
    """

    slot: str
    port: int
    user: str
    major: int
    database: str = ""


class Session:
    """A session in autocommit, in a process of its own. Not thread-safe.

    `server_version`: what the server says of itself, None if it says nothing. `deadline` (`time.monotonic()`): when
    the session ends, whatever it does.
    """

    def __init__(self, layout: Layout, endpoint: Endpoint, database: str, seconds: float) -> None:
        # Its start is no part of the session's time.
        session_processes.ensure_started()
        self._endpoint, self.deadline, self.failed = endpoint, _deadline(seconds), False
        request = {
            "seconds": seconds + SQL_WATCHDOG_EXTRA_SECONDS,
            "parameters": {
                "user": endpoint.user,
                "database": database,
                "application_name": APPLICATION_NAME,
                "client_encoding": "SQL_ASCII",
                "options": startup_options(endpoint.major, seconds),
            },
        }
        with connect_slot(layout, endpoint.slot, endpoint.port, seconds) as server:
            self._frames = session_processes.open(endpoint, server, request)
        try:
            started = self._receive("started")
        except SqlFailed as error:
            self.close()
            raise NotAccepting(str(error), error.sqlstate, routine=error.routine) from error
        version = started.get("server_version") if isinstance(started, dict) else None
        self.server_version = _clean(version) if version else None

    def execute(self, sql: str, params: Sequence[str] = (), columns: int | None = None) -> list[Row]:
        """Run SQL and return the rows of its last statement that has any; each `%s` is the next of `params`.

        Booleans, integers and floats are Python's, everything else is text. Raises SqlFailed, also if `columns` is
        given and a row has another number of them: it need not be a Postgres that answers.
        """
        try:
            self._frames.settimeout(self._remaining())
            send_frame(self._frames, {"sql": fill(sql, params), "seconds": self._remaining()})
        except (FrameError, OSError) as error:
            raise self._failure(f"the session failed ({error})") from error
        rows = self._receive("rows")
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise self._failure("the session answered something else than rows")
        if columns is not None and any(len(row) != columns for row in rows):
            raise self._failure(f"an answer without {columns} columns")
        return [tuple(row) for row in rows]

    def value(self, sql: str, params: Sequence[str] = ()) -> Any:
        """Run a query of one value, and return it. Raises SqlFailed, also if there is none."""
        rows = self.execute(sql, params, columns=1)
        if not rows:
            raise self._failure("an answer without a row")
        return rows[0][0]

    def close(self) -> None:
        """End the session, and its process if it failed."""
        if not self.failed:
            try:
                self._frames.settimeout(self._remaining())
                send_frame(self._frames, {})
            except OSError:
                self.failed = True
        session_processes.release(self._endpoint, self._frames, not self.failed)
        self.failed = True

    def _receive(self, key: str) -> Any:
        try:
            answer = receive_frame(self._frames, self.deadline)
        except TimeoutError as error:
            raise self._failure("the session took too long") from error
        except (FrameError, OSError) as error:
            raise self._failure(f"{error}") from error
        if key in answer:
            return answer[key]
        sqlstate = _clean(answer.get("sqlstate", ""))
        if "failed" in answer:
            raise self._failure(_clean(answer["failed"]), sqlstate, _clean(answer.get("routine", "")))
        raise self._error(_clean(answer.get("message", "")), sqlstate)

    def _failure(self, text: str, sqlstate: str = "", routine: str = "") -> SqlFailed:
        self.failed = True
        return self._error(text, sqlstate, routine)

    def _error(self, text: str, sqlstate: str, routine: str = "") -> SqlFailed:
        return SqlFailed(f"Postgres in slot {self._endpoint.slot}: {text}", sqlstate, routine)

    def _remaining(self) -> float:
        return max(0.001, self.deadline - time.monotonic())


def _deadline(seconds: float) -> float:
    # The server enforces its own time limit before.
    return time.monotonic() + seconds + SQL_WATCHDOG_EXTRA_SECONDS


def _clean(text: object) -> str:
    """Return a text of a tenant's server as one printable line, cut."""
    return printable(" ".join(str(text)[:_TEXT_LIMIT].split()))


def startup_options(major: int, seconds: float) -> str:
    """Return the `options` of a startup packet: time limits, and what a tenant must not choose for the agent.

    >>> startup_options(13, 0.5).split()[-4:]
    ['-c', 'statement_timeout=500', '-c', 'lock_timeout=500']
    """
    milliseconds = str(max(1, int(seconds * 1000)))
    options = dict(_OPTIONS)
    for since, more_options in _OPTIONS_SINCE:
        options |= more_options if major >= since else {}
    options |= {"statement_timeout": milliseconds, "lock_timeout": milliseconds}
    return " ".join(f"-c {name}={value}" for name, value in options.items())


class _Shared(threading.local):
    """The sessions that a thread shares, by endpoint; None outside of `shared_connections`."""

    sessions: dict[Endpoint, Session] | None = None


_shared = _Shared()
# The database that was the first to admit a session, by Postgres, where it is another one than the first.
_databases: LimitedDict[Endpoint, str] = LimitedDict(_MAX_REMEMBERED)


@contextmanager
def shared_connections() -> Iterator[None]:
    """Within the context this thread uses one session per Postgres: each costs milliseconds."""
    sessions = _shared.sessions = {}
    try:
        yield
    finally:
        _shared.sessions = None
        for session in sessions.values():
            session.close()


@contextmanager
def connect(
    layout: Layout, endpoint: Endpoint, database: str | None = None, seconds: float = SQL_TIMEOUT_SECONDS
) -> Iterator[Session]:
    """Open a session in autocommit; all that is done in the context may take `seconds`.

    `database` None: any, for what concerns the whole server. Raises NotAccepting if no server accepts connections
    (yet).
    """
    is_default = (database, seconds) == (None, SQL_TIMEOUT_SECONDS)
    shared = _shared.sessions if is_default else None
    # Taken out of those that are shared: a session within a session has a connection of its own.
    session = shared.pop(endpoint, None) if shared else None
    if session is None:
        session = (
            Session(layout, endpoint, database, seconds)
            if database
            else _connect_anywhere(layout, endpoint, seconds)
        )
    else:
        session.deadline = _deadline(seconds)
    finished = False
    try:
        yield session
        finished = not session.failed
    finally:
        if finished and shared is not None and endpoint not in shared:
            shared[endpoint] = session
        else:
            session.close()


def _connect_anywhere(layout: Layout, endpoint: Endpoint, seconds: float) -> Session:
    """Open a session in a database that exists and admits it: a tenant may drop or close any."""
    remembered = _databases.get(endpoint, _DATABASES[0])
    candidates = [name for name in dict.fromkeys((remembered, *_DATABASES, endpoint.database)) if name]
    for database in candidates:
        try:
            session = Session(layout, endpoint, database, seconds)
        except NotAccepting as error:
            if error.sqlstate not in _WITHOUT_DATABASE or database == candidates[-1]:
                raise
            continue
        if database != remembered:
            _databases[endpoint] = database
        return session
    raise AssertionError("no database was tried")


def await_accepting(
    layout: Layout, endpoint: Endpoint, seconds: float, is_canceled: Callable[[], bool] = lambda: False
) -> str | None:
    """Block until Postgres accepts connections; return its `server_version` ("17.6"), or None after `seconds`.

    Also None within START_TRY_SECONDS of `is_canceled`: until then the slot's `data` is held and cannot be unmounted.

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
                    time.sleep(START_TRY_LIMIT_SECONDS)
                if overdue:
                    tried_at = now
                if now > deadline or is_canceled():
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
            return version_of(session)
    except (NotAccepting, SqlFailed):
        return None


def checkpoint(layout: Layout, endpoint: Endpoint, seconds: float) -> bool:
    """Run CHECKPOINT, best effort; return False if it did not finish within `seconds`."""
    try:
        with connect(layout, endpoint, seconds=seconds) as session:
            session.execute("checkpoint")
    except (NotAccepting, SqlFailed):
        return False
    return True


def reload(layout: Layout, endpoint: Endpoint) -> bool:
    """Make Postgres read its settings files again; return True once it has: later connections meet the new ones.

    Returns False if that is not seen within RELOAD_TIMEOUT_SECONDS: it does not take a postgresql.conf with a name
    that it does not know. Raises NotAccepting if it does not run.
    """
    with connect(layout, endpoint) as session:
        # The postmaster reads them, and passes the signal on to this session only then.
        before = session.value("select pg_catalog.pg_conf_load_time() from pg_catalog.pg_reload_conf()")
        deadline = time.monotonic() + RELOAD_TIMEOUT_SECONDS
        delay = RELOAD_FIRST_POLL_SECONDS
        while time.monotonic() < deadline:
            time.sleep(delay)
            if session.value("select pg_catalog.pg_conf_load_time()") != before:
                return True
            delay = min(2 * delay, RELOAD_LONGEST_POLL_SECONDS)
    return False


def has_rejected_settings(layout: Layout, endpoint: Endpoint) -> bool:
    """Return True if Postgres finds something in its postgresql.conf that it does not take."""
    query = "select exists (select from pg_catalog.pg_file_settings where error is not null)"
    with connect(layout, endpoint) as session:
        return bool(session.value(query))


def version_of(session: Session) -> str | None:
    """Return the session's `server_version` ("17.6"); None if the server says nothing."""
    # The server sends it while the session starts: no query is needed. Debian appends its package:
    # "17.6 (Debian 17.6-1.pgdg13+1)".
    return session.server_version.split()[0] if session.server_version else None
