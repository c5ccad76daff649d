"""A branch that is restored under open, new and half-connected sessions, by the project's port and by its own."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.node.proxy_backend import (
    USER,
    Backend,
    MakeProxy,
    branch_of,
    make_certificate,
    wait_until,
)
from tests.node.proxy_process import FakeProject, ProxyProcess, connect, proxy_process, reached
from tests.node.proxy_talk import build_startup, error_fields, fatal_message, read_all, running_sleeps

from dbranch.api import names
from dbranch.api.enums import TargetState
from dbranch.proxy import wire

# Something that must not happen has this time to happen.
HOLDS_SECONDS = 1.0
RESTORE = "restore-uid"


def uid_of_a_free_port() -> str:
    """Return a branch's UID whose own port nobody listens on."""
    while True:
        uid = str(uuid.uuid4())
        with suppress(OSError), socket.create_server(("127.0.0.1", names.branch_port(uid))):
            return uid


def name_objects(project: FakeProject) -> None:
    """Give the branches UIDs of free ports."""
    for body in project.branches.values():
        body["metadata"]["uid"] = uid_of_a_free_port()
    project.body["status"]["route"]["target"]["uid"] = project.branches["main"]["metadata"]["uid"]


@pytest.fixture
def running(main: Backend, feature: Backend, tmp_path: Path) -> Iterator[ProxyProcess]:
    """A proxy with the branches main and feature-x; what main is restored to is the Postgres of feature-x."""
    with proxy_process([main, feature], tmp_path / "log", prepare=name_objects) as running:
        yield running


def own_port(running: ProxyProcess, branch: str = "main") -> int:
    uid: str = running.project.branches[branch]["metadata"]["uid"]
    return names.branch_port(uid)


def begin_restore(running: ProxyProcess, backend: Backend) -> None:
    """Route main as its controller does before the exchange, and wait for the proxy's word."""
    project = running.project
    project.route_branch("main", "Starting", backend, RESTORE)
    generation = project.branches["main"]["status"]["route"]["generation"]
    wait_until(lambda: project.acknowledged("main") == [generation])


def end_restore(running: ProxyProcess, backend: Backend) -> None:
    running.project.route_branch("main", "Ready", backend)


def sessions_of(direct: psycopg.Connection[Any]) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    row = direct.execute(sql).fetchone()
    assert row
    return int(row[0])


def assert_held(*sessions: Future[str]) -> None:
    time.sleep(HOLDS_SECONDS)
    assert not [session.result() for session in sessions if session.done()]


def test_new_sessions_wait_for_the_restored_data_and_open_ones_for_the_end_by_postgres(
    running: ProxyProcess, main: Backend, feature: Backend, threads: ThreadPoolExecutor
) -> None:
    with connect(running) as idle, connect(running) as busy, main.direct() as old:
        assert branch_of(idle) == branch_of(busy) == "main"
        sleeping = threads.submit(busy.execute, "SELECT pg_sleep(60)")
        wait_until(lambda: running_sleeps(old) == 1)
        begin_restore(running, main)
        named = {"options": "-c dbranch.branch=main"}
        held = [threads.submit(reached, running), threads.submit(reached, running, **named)]
        assert_held(*held)
        # Nobody has dialled the old Postgres, and who was there works on.
        assert sessions_of(old) == 2
        assert branch_of(idle) == "main"
        # Another branch is nobody's concern.
        assert reached(running, options="-c dbranch.branch=feature-x") == "feature-x"
        old.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        # Postgres' own words, whole.
        assert fatal_message(idle) == "57P01 terminating connection due to administrator command"
        with pytest.raises(psycopg.errors.AdminShutdown, match="administrator command"):
            sleeping.result(10)
        assert not [session for session in held if session.done()]
        end_restore(running, feature)
        assert [session.result(20) for session in held] == ["feature-x"] * 2
        wait_until(lambda: running.project.acknowledged("main") == [])


def test_a_restore_that_lasts_longer_than_start_timeout_is_named(
    main: Backend, feature: Backend, tmp_path: Path
) -> None:
    options = {"startTimeout": "1s"}
    with proxy_process([main, feature], tmp_path / "log", options, prepare=name_objects) as running:
        begin_restore(running, main)
        expected = 'waited 1 s for the restore of branch "main" of project shop to end'
        with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
            raw.sendall(build_startup({"user": USER}))
            fields = error_fields(read_all(raw))
        assert (fields["C"], fields["M"]) == ("57P03", expected)
        assert expected in reached(running, port=own_port(running))


def test_a_restore_that_is_taken_back_lets_new_sessions_to_the_old_data(
    running: ProxyProcess, main: Backend, threads: ThreadPoolExecutor
) -> None:
    with connect(running) as session:
        begin_restore(running, main)
        held = threads.submit(reached, running)
        assert_held(held)
        end_restore(running, main)
        assert held.result(20) == "main" and branch_of(session) == "main"


def test_a_client_that_is_logging_in_does_not_reach_the_old_data_behind_the_acknowledgement(
    running: ProxyProcess, main: Backend
) -> None:
    """Postgres has asked it for its password: it gets no further, though the agent cannot see such a session."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
        raw.sendall(build_startup({"user": USER, "database": "postgres"}))
        assert raw.recv(1) == b"R"
        begin_restore(running, main)
        fields = error_fields(read_all(raw))
    assert fields["C"] == "57P01" and "is being restored" in fields["M"]


def dial_mute(
    running: ProxyProcess, mute: socket.socket, threads: ThreadPoolExecutor
) -> tuple[Future[str], socket.socket]:
    """Return a session that is being connected to `mute`, once the proxy has read that main is there."""
    mute.settimeout(1)
    for _ in range(20):
        connecting = threads.submit(reached, running)
        with suppress(TimeoutError):
            return connecting, mute.accept()[0]
    raise AssertionError("nobody was sent there")


def test_a_session_without_an_answer_of_its_backend_waits_for_the_restored_data(
    running: ProxyProcess, main: Backend, feature: Backend, threads: ThreadPoolExecutor
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = Backend("main", mute.getsockname()[1], main.directory, main.programs)
        running.project.route_branch("main", "Ready", silent)
        connecting, accepted = dial_mute(running, mute, threads)
        with accepted:
            assert accepted.recv(8)
            begin_restore(running, silent)
            # The connection to the old address is gone.
            accepted.settimeout(20)
            with suppress(ConnectionResetError):
                read_all(accepted)
            mute.settimeout(HOLDS_SECONDS)
            with pytest.raises(TimeoutError):
                mute.accept()
            end_restore(running, feature)
            assert connecting.result(20) == "feature-x"


def test_a_proxy_that_starts_during_a_restore_holds_its_sessions(
    main: Backend, feature: Backend, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    def prepare(project: FakeProject) -> None:
        name_objects(project)
        project.route_branch("main", "Starting", main, RESTORE)

    with proxy_process([main, feature], tmp_path / "log", prepare=prepare) as running:
        wait_until(lambda: running.project.acknowledged("main") == [2])
        held = threads.submit(reached, running), threads.submit(reached, running, port=own_port(running))
        assert_held(*held)
        end_restore(running, feature)
        assert [session.result(20) for session in held] == ["feature-x"] * 2


# The branch's own port


def test_the_proxy_listens_for_a_branchs_own_service_before_it_acknowledges(
    running: ProxyProcess, main: Backend, feature: Backend, threads: ThreadPoolExecutor
) -> None:
    port = own_port(running)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
    begin_restore(running, main)
    # Whatever the startup packet says, it is for the branch whose Service it came by.
    other = {"port": port, "options": "-c dbranch.branch=feature-x"}
    unknown = {"port": port, "options": "-c dbranch.branch=nobody"}
    held = [threads.submit(reached, running, port=port), threads.submit(reached, running, **other)]
    held.append(threads.submit(reached, running, **unknown))
    assert_held(*held)
    end_restore(running, main)
    assert [session.result(20) for session in held] == ["main"] * 3
    # Those that a node still sends here reach the branch, a switch or not; and stay when the listener goes.
    running.project.switch("feature-x")
    wait_until(lambda: [entry["generation"] for entry in running.project.entries()] == [2])
    with connect(running, port=port) as session:
        assert branch_of(session) == "main"

        def refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(refused, 30)
        assert branch_of(session) == "main"


def test_a_branchs_own_port_has_the_limits_of_the_proxy_and_neither_tls_nor_header(
    main: Backend, feature: Backend, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    make_certificate(tmp_path)
    options = {
        "tls": {"secretName": "t", "mode": "Required"},
        "proxyProtocol": "Required",
        "limits": {"sessions": 2},
    }
    with proxy_process(
        [main, feature], tmp_path / "log", options, prepare=name_objects, DBRANCH_TLS_DIR=str(tmp_path)
    ) as running:
        begin_restore(running, main)
        plain = {"port": own_port(running), "sslmode": "disable"}
        # As with the branch's own Postgres, libpq asks for TLS, is refused it, and goes on.
        held = [
            threads.submit(reached, running, **plain),
            threads.submit(reached, running, port=plain["port"]),
        ]
        assert_held(*held)
        assert "too many sessions" in reached(running, **plain)
        assert "too many sessions" in reached(running, sslmode="require")
        assert "server does not support SSL" in reached(running, port=plain["port"], sslmode="require")
        end_restore(running, feature)
        assert [session.result(20) for session in held] == ["feature-x"] * 2


def test_two_branches_with_one_port_get_no_listener(
    running: ProxyProcess, main: Backend, feature: Backend
) -> None:
    """A connection says nothing of the branch that it is for; to be refused is better than the other's data."""
    project, uid = running.project, running.project.branches["main"]["metadata"]["uid"]
    twin = next(
        other for n in range(10**6) if names.branch_port(other := f"twin-{n}") == names.branch_port(uid)
    )
    begin_restore(running, main)
    socket.create_connection(("127.0.0.1", own_port(running)), timeout=20).close()
    project.put_branch(feature, twin)
    project.route_branch("feature-x", "Starting", feature, "another")
    wait_until(lambda: project.acknowledged("feature-x") == [2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", own_port(running))).close()


# Cancels


def test_a_session_of_a_branch_that_is_being_restored_can_be_cancelled(
    running: ProxyProcess, main: Backend, threads: ThreadPoolExecutor
) -> None:
    with connect(running) as session, main.direct() as direct:
        sleeping = threads.submit(session.execute, "SELECT pg_sleep(60)")
        wait_until(lambda: running_sleeps(direct) == 1)
        begin_restore(running, main)
        session.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result(20)


def test_a_cancel_of_a_session_of_before_reaches_the_branch_by_its_own_port(
    make_proxy: MakeProxy, main: Backend, threads: ThreadPoolExecutor
) -> None:
    """The proxy does not know the key of a session that came by the branch's Service before the restore."""
    one, two = make_proxy(), make_proxy()
    port = two.open_own_port("main")
    starting = replace(main.target(), state=TargetState.STARTING)
    two.apply(targets={**two.table.targets, "main": starting}, restoring=frozenset({"main"}))
    with one.connect(options="-c dbranch.branch=main") as session, main.direct() as direct:
        sleeping = threads.submit(session.execute, "SELECT pg_sleep(60)")
        wait_until(lambda: running_sleeps(direct) == 1)
        (key,) = one.switchboard.cancel_keys
        with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
            raw.sendall(wire.build_cancel_request(key))
            assert raw.recv(1) == b""
        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result(20)


def test_sessions_that_wait_for_a_restore_when_the_proxy_stops_are_ended(
    running: ProxyProcess, main: Backend
) -> None:
    begin_restore(running, main)
    results: list[str] = []
    clients = [
        threading.Thread(target=lambda port=port: results.append(reached(running, port=port)))
        for port in (running.port, own_port(running))
    ]
    for client in clients:
        client.start()
    time.sleep(HOLDS_SECONDS)
    assert running.stop() == 0
    for client in clients:
        client.join(30)
    assert len(results) == 2 and all("the proxy is stopping" in result for result in results)
