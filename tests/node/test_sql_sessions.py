"""Sessions with the Postgres of a hostile tenant: it is reached nowhere else, and takes nothing of the agent."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.node.machine import AS_TENANT, OWNER, Node, children_of

from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot import effect as slot
from dbranch.api.errors import DbranchError, SqlFailed

HOSTILE = "slot-hostile"
PORT = 5999
TRIES = 1000
FAKE = Path(__file__).with_name("fake_postgres.py")


@contextmanager
def tenant_process(node: Node, script: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python script as the tenant, in the hostile slot's `run`, once it has printed a line."""
    # Python would open a file by its whole path, which the tenant cannot.
    argv = [*AS_TENANT, "/usr/bin/python3", "-c", script.read_text(), *arguments]
    with subprocess.Popen(argv, cwd=node.layout.run(HOSTILE), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.fixture
def hostile(node: Node) -> Node:
    slot.ensure_slot(node.layout, HOSTILE, OWNER)
    return node


def endpoint_of(major: int = 17) -> Endpoint:
    return Endpoint(HOSTILE, PORT, "postgres", major)


FLIP = """
import ctypes, socket, threading
libc = ctypes.CDLL(None)
server = socket.socket(socket.AF_UNIX)
server.bind('.s.PGSQL.{port}')
server.listen(64)
def refuse():
    while True:
        server.accept()[0].close()
threading.Thread(target=refuse, daemon=True).start()
import os
os.symlink('{victim}', 'link')
print('ready', flush=True)
while True:
    libc.renameat2(-100, b'.s.PGSQL.{port}', -100, b'link', 2)
"""


def test_no_link_leads_the_agent_into_another_projects_postgres(up: Node, tmp_path: Path) -> None:
    victim = up.start_postgres(up.create_root())
    slot.ensure_slot(up.layout, HOSTILE, OWNER)
    socket_of_victim = up.layout.run(victim.slot) / f".s.PGSQL.{victim.port}"
    script = tmp_path / "flip.py"
    script.write_text(FLIP.format(port=PORT, victim=socket_of_victim))
    with tenant_process(up, script):
        answers = {session.read_server_version(up.layout, endpoint_of(victim.major)) for _ in range(TRIES)}
    assert answers == {None}
    assert session.read_server_version(up.layout, victim)


FLOODS = (
    *("rows", "small rows", "errors", "notices", "parameters", "early errors"),
    *("huge", "negative", "fields", "noise", "silent", "trickle", "closes"),
)


def resident_peak() -> int:
    """Return the most memory that this process had since the last call, in bytes, and begin anew."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize("behaviour", [*FLOODS, "full"])
def test_a_hostile_server_takes_neither_memory_nor_time(hostile: Node, behaviour: str) -> None:
    seconds = 1.0
    with tenant_process(hostile, FAKE, f".s.PGSQL.{PORT}", behaviour) as process:
        if behaviour == "full":
            assert process.stdout and process.stdout.readline()
        resident_peak()
        before = resident_peak()
        began = time.monotonic()
        with (
            pytest.raises(DbranchError) as caught,
            session.connect(hostile.layout, endpoint_of(), seconds=seconds) as connection,
        ):
            connection.execute("select name from pg_settings")
        assert time.monotonic() - began < seconds + 10
        assert resident_peak() - before < 8 * 2**20
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def test_other_sessions_go_on_beside_a_flood(up: Node) -> None:
    endpoint = up.start_postgres(up.create_root())
    slot.ensure_slot(up.layout, HOSTILE, OWNER)
    with tenant_process(up, FAKE, f".s.PGSQL.{PORT}", "rows"):
        flood = threading.Thread(target=session.read_server_version, args=(up.layout, endpoint_of()))
        flood.start()
        assert session.read_server_version(up.layout, endpoint)
        flood.join()
        assert session.read_server_version(up.layout, endpoint)


def test_the_end_of_the_process_that_starts_sessions_is_survived(up: Node) -> None:
    endpoint = up.start_postgres(up.create_root())
    processes = session.session_processes
    first = processes.ensure_started()
    with session.connect(up.layout, endpoint) as running:
        os.kill(first, signal.SIGKILL)
        # A session that runs has a process of its own, and goes on.
        assert running.value("select 1") == 1
        with session.connect(up.layout, endpoint, "template1") as beside:
            assert beside.value("select 2") == 2
    second = processes.ensure_started()
    assert second != first
    for _ in range(3):
        assert session.read_server_version(up.layout, endpoint)
    assert processes.ensure_started() == second


def test_a_session_fails_alone_if_its_process_is_killed(up: Node) -> None:
    endpoint = up.start_postgres(up.create_root())
    with ThreadPoolExecutor(1) as threads, session.connect(up.layout, endpoint, seconds=60) as victim:
        before = set(children_of(session.session_processes.ensure_started()))
        pending = threads.submit(victim.execute, "select pg_catalog.pg_sleep(60)")
        for process in before:
            os.kill(process, signal.SIGKILL)
        with pytest.raises(SqlFailed, match=r"has ended|reset by peer|Broken pipe"):
            pending.result(30)
    assert session.read_server_version(up.layout, endpoint)
    assert session.read_server_version(up.layout, endpoint)
