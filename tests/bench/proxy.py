"""The proxy beside HAProxy (TCP mode, one thread) and beside no proxy: `hack/bench proxy`.

Every round runs each way in turn, so that what else the machine does meets all of them; a ratio is taken
within its round, and the median over the rounds is what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.counts import tps
from tests.node.proxy_backend import PASSWORD, USER, Backend, free_port, running_backend
from tests.node.proxy_process import proxy_process
from tests.node.proxy_talk import build_message, build_startup

PGBENCH = {
    "pgbench -S, 1 client": ["-S", "-c", "1"],
    "pgbench -S, 8 clients": ["-S", "-c", "8", "-j", "2"],
    "pgbench -S, 64 clients": ["-S", "-c", "64", "-j", "2"],
    "pgbench -S -C, 4 clients": ["-S", "-C", "-c", "4", "-j", "2"],
}
HAPROXY = """\
global
  nbthread 1
  maxconn 4000
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend clients
  bind 127.0.0.1:{port}
  default_backend postgres
backend postgres
  server postgres 127.0.0.1:{backend}
"""


@dataclass
class Way:
    """A way to the backend: its port, and the process on it (None: there is none)."""

    name: str
    port: int
    pid: int | None

    def cpu_seconds(self) -> float:
        if not self.pid:
            return 0.0
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        assert self.pid
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@contextmanager
def haproxy(backend: int, home: Path) -> Iterator[Way]:
    port = free_port()
    config = home / f"haproxy-{port}.cfg"
    config.write_text(HAPROXY.format(port=port, backend=backend))
    with subprocess.Popen(["haproxy", "-q", "-db", "-f", str(config)]) as running:
        try:
            time.sleep(0.5)
            assert running.poll() is None, "haproxy did not start"
            yield Way("haproxy", port, running.pid)
        finally:
            running.terminate()


@contextmanager
def ways(backend: Backend, home: Path) -> Iterator[list[Way]]:
    with ExitStack() as stack:
        limits = {"limits": {"sessions": 5000}}
        proxy = stack.enter_context(proxy_process([backend], home / "proxy.log", limits))
        other = stack.enter_context(haproxy(backend.port, home))
        yield [Way("none", backend.port, None), Way("dbranch", proxy.port, proxy.process.pid), other]


def environment(way: Way) -> dict[str, str]:
    found = {"PGHOST": "127.0.0.1", "PGPORT": str(way.port), "PGUSER": USER, "PGPASSWORD": PASSWORD}
    return {**os.environ, **found, "PGDATABASE": "postgres", "PGGSSENCMODE": "disable"}


@dataclass
class Done:
    """How much was done (transactions, megabytes), and how much of it a second."""

    amount: float
    rate: float


def transactions(way: Way, programs: Path, words: list[str], seconds: int) -> Done:
    done = subprocess.run(
        [str(programs / "pgbench"), "-n", "-T", str(seconds), *words],
        env=environment(way),
        capture_output=True,
        text=True,
        check=True,
    )
    amount = re.search(r"actually processed: (\d+)", done.stdout)
    assert amount, done.stdout
    return Done(float(amount[1]), tps(done.stdout))


def copied(way: Way, programs: Path, megabytes: int) -> Done:
    sql = f"COPY (SELECT repeat('x', 999) FROM generate_series(1, {megabytes * 1000})) TO STDOUT"
    began = time.monotonic()
    subprocess.run(
        [str(programs / "psql"), "-XAtq", "-c", sql],
        env=environment(way),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return Done(megabytes, megabytes / (time.monotonic() - began))


def compare(work: str, there: list[Way], rounds: int, measure: Callable[[Way], Done]) -> None:
    """Prints the row: ratios of the rates, and the CPU that each unit took in the proxy itself."""
    rates: dict[str, list[float]] = {way.name: [] for way in there}
    costs: dict[str, list[float]] = {way.name: [] for way in there}
    for i in range(rounds):
        # Another one goes first in each round.
        for way in there[i % len(there) :] + there[: i % len(there)]:
            before = way.cpu_seconds()
            done = measure(way)
            rates[way.name].append(done.rate)
            costs[way.name].append((way.cpu_seconds() - before) / done.amount)

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 2)

    row = {
        "work": work,
        "dbranch to haproxy": ratio("dbranch", "haproxy"),
        "dbranch to none": ratio("dbranch", "none"),
        "haproxy to none": ratio("haproxy", "none"),
        "cpu microseconds": {
            k: round(statistics.median(v) * 1e6, 1) for k, v in costs.items() if k != "none"
        },
        "rates": {k: round(statistics.median(v)) for k, v in rates.items()},
    }
    print(json.dumps(row), flush=True)


# Idle sessions


class Welcoming(asyncio.Protocol):
    """A backend that lets everybody in and then waits: a thousand of a real one would be too much."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(build_message(b"R", bytes(4)) + build_message(b"Z", b"I"))


@contextmanager
def welcoming_backend(home: Path) -> Iterator[Backend]:
    loop, port = asyncio.new_event_loop(), free_port()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    work = loop.create_server(Welcoming, "127.0.0.1", port, backlog=1024)
    asyncio.run_coroutine_threadsafe(work, loop).result(5)
    try:
        yield Backend("main", port, home, home)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


async def hold(way: Way, sessions: int, seconds: float) -> dict[str, float]:
    """What `sessions` idle sessions cost: kilobytes of memory each, and CPU of all together."""
    packet = build_startup({"user": USER, "database": "postgres"})

    async def one() -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
        writer.write(packet)
        await reader.readuntil(build_message(b"Z", b"I"))
        return writer

    for writer in [await one() for _ in range(20)]:
        writer.close()
    await asyncio.sleep(1)
    before = way.resident_bytes()
    held = [await one() for _ in range(sessions)]
    await asyncio.sleep(1)
    size, cpu = way.resident_bytes() - before, way.cpu_seconds()
    await asyncio.sleep(seconds)
    cost = {
        "kilobytes a session": round(size / sessions / 1000, 1),
        "cpu of all": round((way.cpu_seconds() - cpu) / seconds, 4),
    }
    for writer in held:
        writer.close()
    return cost


def idle(home: Path, sessions: int, seconds: float) -> None:
    with welcoming_backend(home) as backend, ways(backend, home) as there:
        for way in there[1:]:
            cost = asyncio.run(hold(way, sessions, seconds))
            print(json.dumps({"work": f"{sessions} idle sessions", "way": way.name, **cost}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="hack/bench proxy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of one pgbench run")
    parser.add_argument("--megabytes", type=int, default=1000, help="of one COPY")
    parser.add_argument("--quick", action="store_true", help="3 rounds of two seconds, 100 MB")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.seconds, asked.megabytes = 3, 2, 100
    with tempfile.TemporaryDirectory(prefix="dbranch-bench-") as path:
        home = Path(path)
        with running_backend("main", max_connections=100) as backend, ways(backend, home) as there:
            programs = backend.programs
            subprocess.run(
                [str(programs / "pgbench"), "-i", "-q", "-s", "10"],
                env=environment(there[0]),
                check=True,
                capture_output=True,
            )
            for work, words in PGBENCH.items():
                if asked.only in work:
                    # Sixty-four logins take their time, too.
                    seconds = asked.seconds + (4 if "64" in words else 0)
                    measure = lambda way, w=words, s=seconds: transactions(way, programs, w, s)  # noqa: E731
                    compare(work, there, asked.rounds, measure)
            if asked.only in "COPY":
                compare(
                    f"COPY of {asked.megabytes} MB",
                    there,
                    asked.rounds,
                    lambda way: copied(way, programs, asked.megabytes),
                )
        if asked.only in "idle":
            idle(home, 1000, 2.0 if asked.quick else 10.0)


if __name__ == "__main__":
    sys.exit(main())
