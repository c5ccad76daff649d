"""Twenty switches under load: pgbench with open sessions, and a client that opens one after the other."""

from __future__ import annotations

import logging
import re
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from tests.node.proxy_backend import Backend, MakeProxy, Proxy, branch_of
from tests.node.proxy_talk import environment

SWITCHES = 20
# A transaction in two halves, under a number that no other has.
SCRIPT = """\
\\set id random(1, 4611686018427387903)
BEGIN;
INSERT INTO seen VALUES (:id, 1);
INSERT INTO seen VALUES (:id, 2);
COMMIT;
"""


@pytest.fixture
def seen(main: Backend, feature: Backend) -> Iterator[None]:
    for backend in (main, feature):
        with backend.direct() as direct:
            direct.execute("CREATE TABLE seen (id int8, half int)")
    yield
    for backend in (main, feature):
        with backend.direct() as direct:
            direct.execute("DROP TABLE seen")


@dataclass
class Load:
    """pgbench over and over, since it does not open a lost session again."""

    proxy: Proxy
    pgbench: Path
    script: Path
    stop: threading.Event
    processed: int = 0
    errors: list[str] = field(default_factory=list)

    def run(self) -> None:
        while not self.stop.is_set():
            words = ["-n", "-c", "4", "-R", "400", "-T", "60", "-f", str(self.script)]
            running = subprocess.Popen(
                [str(self.pgbench), *words],
                env=environment(self.proxy),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            while running.poll() is None and not self.stop.wait(0.05):
                pass
            if running.poll() is None:
                # Ends as after -T: what was processed is said.
                running.send_signal(signal.SIGALRM)
            out, err = running.communicate(timeout=30)
            found = re.search(r"transactions actually processed: (\d+)", out)
            self.processed += int(found[1]) if found else 0
            self.errors += [line for line in err.splitlines() if "FATAL" in line or "ERROR" in line]


@dataclass
class Newcomers:
    """A session after the other; `let_in` is when each had its first answer (of the monotonic clock)."""

    proxy: Proxy
    stop: threading.Event
    in_force: list[str]
    let_in: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        while not self.stop.is_set():
            # The branches from the last switch that was over when this one began, on.
            first = len(self.in_force) - 1
            while not (reached := self.once()):
                pass
            self.let_in.append(time.monotonic())
            # The next one may be in force before this thread hears of it.
            if reached not in (*self.in_force[first:], self.proxy.table.active):
                self.wrong.append(f"{reached}, not {self.in_force[first:]}")
            time.sleep(0.005)

    def once(self) -> str | None:
        """The branch that a session reaches; None where a switch ended it first."""
        heard: list[str] = []
        try:
            with self.proxy.connect() as connection:
                # A FATAL that comes between two statements is a notice to libpq.
                heard = connection.heard
                return branch_of(connection)
        except psycopg.OperationalError as error:
            # libpq may see the close before it has read the FATAL in front of it.
            if "was switched" in f"{error} {heard}" or "server closed the connection" in str(error):
                return None
            self.wrong.append(str(error))
            return "?"


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_twenty_switches_under_load(
    make_proxy: MakeProxy,
    main: Backend,
    feature: Backend,
    seen: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    on_switch: str,
) -> None:
    caplog.set_level(logging.INFO, "dbranch.session")
    proxy = make_proxy(on_switch=on_switch, drain_timeout=30.0)
    script, stop = tmp_path / "script", threading.Event()
    script.write_text(SCRIPT)
    load = Load(proxy, main.programs / "pgbench", script, stop)
    in_force = ["main"]
    newcomers = Newcomers(proxy, stop, in_force)
    workers = [threading.Thread(target=w.run) for w in (load, newcomers)]
    for worker in workers:
        worker.start()
    switched: list[float] = []
    for i in range(SWITCHES):
        time.sleep(0.3)
        branch = ("feature-x", "main")[i % 2]
        proxy.apply(active=branch)
        in_force.append(branch)
        switched.append(time.monotonic())
    time.sleep(0.3)
    stop.set()
    for worker in workers:
        worker.join(60)

    ids: list[set[int]] = []
    for backend in (main, feature):
        with backend.direct() as direct:
            rows = direct.execute("SELECT id, count(*) FROM seen GROUP BY id").fetchall()
            assert {count for _, count in rows} <= {2}, "half a transaction"
            ids.append({i for i, _ in rows})
    assert not ids[0] & ids[1], "a transaction on two branches"
    committed = len(ids[0]) + len(ids[1])
    assert committed > 300
    assert newcomers.wrong == []
    # For how long after a switch nobody was let in. The machine may be busy with something else now and then.
    gaps = [min(t for t in newcomers.let_in if t >= at) - at for at in switched]
    print(f"{on_switch}: gap of new sessions {statistics.median(gaps):.3f} s, at most {max(gaps):.3f} s")
    assert len(newcomers.let_in) > 60
    assert statistics.median(gaps) < 0.1 and max(gaps) < 2
    ends = {r.fields["end"].split(":")[0] for r in caplog.records if r.name == "dbranch.session"}  # type: ignore[attr-defined]
    assert ends <= {"client closed", "terminated", "drained"}

    # Nobody is told anything else than that it was switched, and who may stay is told nothing.
    assert [e for e in load.errors if "was switched to branch" not in e] == []
    if on_switch == "Keep":
        assert load.errors == []
        assert len(ids[0]) == committed, "its sessions stay where they are"
    else:
        assert min(len(ids[0]), len(ids[1])) > 50
    if on_switch != "Terminate":
        # Every transaction that was begun has ended as if nothing was.
        assert load.processed == committed
