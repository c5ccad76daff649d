"""Twenty switches under load: pgbench with open sessions, and a client that opens one after the other."""

from __future__ import annotations

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
    """A session after the other; `took` is how long each took from the first attempt, in seconds."""

    proxy: Proxy
    stop: threading.Event
    took: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        while not self.stop.is_set():
            began, before = time.monotonic(), self.proxy.table.active
            reached = before
            while True:
                try:
                    with self.proxy.connect() as connection:
                        reached = branch_of(connection)
                    break
                except psycopg.OperationalError as error:
                    if "was switched" not in str(error):
                        self.wrong.append(str(error))
                        break
            self.took.append(time.monotonic() - began)
            if reached not in (before, self.proxy.table.active):
                self.wrong.append(f"{reached}, not {before}")
            time.sleep(0.005)


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_twenty_switches_under_load(
    make_proxy: MakeProxy, main: Backend, feature: Backend, seen: None, tmp_path: Path, on_switch: str
) -> None:
    proxy = make_proxy(on_switch=on_switch, drain_timeout=30.0)
    script, stop = tmp_path / "script", threading.Event()
    script.write_text(SCRIPT)
    load = Load(proxy, main.programs / "pgbench", script, stop)
    newcomers = Newcomers(proxy, stop)
    workers = [threading.Thread(target=w.run) for w in (load, newcomers)]
    for worker in workers:
        worker.start()
    for i in range(SWITCHES):
        time.sleep(0.3)
        proxy.apply(active=("feature-x", "main")[i % 2])
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
    gap = statistics.quantiles(newcomers.took, n=100)[98]
    print(f"{on_switch}: {len(newcomers.took)} new sessions, p99 {gap * 1000:.0f} ms")
    assert len(newcomers.took) > 100 and gap < 0.1

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
