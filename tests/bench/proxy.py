"""The proxy compared with HAProxy (TCP mode, one thread) and with no proxy: `hack/bench proxy`.

Every round measures each path in turn, so that other load on the machine affects all of them. A ratio is taken
within its round; the result is the median over the rounds.
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
  server postgres 127.0.0.1:{backend_port}
"""


@dataclass
class ClientPath:
    """A path from client to backend: the port to connect to, and the PID of the proxy process (None: no proxy)."""

    name: str
    port: int
    pid: int | None

    def cpu_seconds(self) -> float:
        if not self.pid:
            return 0.0
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        assert self.pid
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@contextmanager
def haproxy(backend_port: int, directory: Path) -> Iterator[ClientPath]:
    port = free_port()
    config = directory / f"haproxy-{port}.cfg"
    config.write_text(HAPROXY.format(port=port, backend_port=backend_port))
    with subprocess.Popen(["haproxy", "-q", "-db", "-f", str(config)]) as process:
        try:
            time.sleep(0.5)
            assert process.poll() is None, "haproxy did not start"
            yield ClientPath("haproxy", port, process.pid)
        finally:
            process.terminate()


@contextmanager
def client_paths(backend: Backend, directory: Path) -> Iterator[list[ClientPath]]:
    with ExitStack() as stack:
        limits = {"limits": {"sessions": 5000}}
        proxy = stack.enter_context(proxy_process([backend], directory / "proxy.log", limits))
        haproxy_path = stack.enter_context(haproxy(backend.port, directory))
        yield [
            ClientPath("none", backend.port, None),
            ClientPath("dbranch", proxy.port, proxy.process.pid),
            haproxy_path,
        ]


def environment(path: ClientPath) -> dict[str, str]:
    """Return the environment of a program that connects by `path`."""
    variables = {"PGHOST": "127.0.0.1", "PGPORT": str(path.port), "PGUSER": USER, "PGPASSWORD": PASSWORD}
    return {**os.environ, **variables, "PGDATABASE": "postgres", "PGGSSENCMODE": "disable"}


@dataclass
class Measurement:
    """An amount of work (transactions or megabytes), and its rate per second."""

    amount: float
    rate: float


def measure_pgbench(path: ClientPath, programs: Path, args: list[str], seconds: int) -> Measurement:
    process = subprocess.run(
        [str(programs / "pgbench"), "-n", "-T", str(seconds), *args],
        env=environment(path),
        capture_output=True,
        text=True,
        check=True,
    )
    amount = re.search(r"actually processed: (\d+)", process.stdout)
    assert amount, process.stdout
    return Measurement(float(amount[1]), tps(process.stdout))


def measure_copy(path: ClientPath, programs: Path, megabytes: int) -> Measurement:
    sql = f"COPY (SELECT repeat('x', 999) FROM generate_series(1, {megabytes * 1000})) TO STDOUT"
    started_at = time.monotonic()
    subprocess.run(
        [str(programs / "psql"), "-XAtq", "-c", sql],
        env=environment(path),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return Measurement(megabytes, megabytes / (time.monotonic() - started_at))


def compare(
    work: str, paths: list[ClientPath], rounds: int, measure: Callable[[ClientPath], Measurement]
) -> None:
    """Print one row: ratios of the rates, and the CPU time per unit of work in the proxy process itself."""
    rates: dict[str, list[float]] = {path.name: [] for path in paths}
    costs: dict[str, list[float]] = {path.name: [] for path in paths}
    for i in range(rounds):
        # Each round begins with another path.
        for path in paths[i % len(paths) :] + paths[: i % len(paths)]:
            before = path.cpu_seconds()
            measurement = measure(path)
            rates[path.name].append(measurement.rate)
            costs[path.name].append((path.cpu_seconds() - before) / measurement.amount)

    def ratio(numerator: str, denominator: str) -> float:
        return round(
            statistics.median(a / b for a, b in zip(rates[numerator], rates[denominator], strict=True)), 2
        )

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


class FakeServer(asyncio.Protocol):
    """A backend that accepts every login and then waits; a thousand real ones would need too much memory."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(build_message(b"R", bytes(4)) + build_message(b"Z", b"I"))


@contextmanager
def fake_backend(directory: Path) -> Iterator[Backend]:
    loop, port = asyncio.new_event_loop(), free_port()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listening = loop.create_server(FakeServer, "127.0.0.1", port, backlog=1024)
    asyncio.run_coroutine_threadsafe(listening, loop).result(5)
    try:
        yield Backend("main", port, directory, directory)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


async def measure_idle(path: ClientPath, sessions: int, seconds: float) -> dict[str, float]:
    """Return the cost of `sessions` idle sessions: kilobytes of memory of each, and CPU share of all together."""
    packet = build_startup({"user": USER, "database": "postgres"})

    async def connect() -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection("127.0.0.1", path.port)
        writer.write(packet)
        await reader.readuntil(build_message(b"Z", b"I"))
        return writer

    for writer in [await connect() for _ in range(20)]:
        writer.close()
    await asyncio.sleep(1)
    before = path.resident_bytes()
    writers = [await connect() for _ in range(sessions)]
    await asyncio.sleep(1)
    size, cpu = path.resident_bytes() - before, path.cpu_seconds()
    await asyncio.sleep(seconds)
    cost = {
        "kilobytes a session": round(size / sessions / 1000, 1),
        "cpu of all": round((path.cpu_seconds() - cpu) / seconds, 4),
    }
    for writer in writers:
        writer.close()
    return cost


def compare_idle(directory: Path, sessions: int, seconds: float) -> None:
    with fake_backend(directory) as backend, client_paths(backend, directory) as paths:
        for path in paths[1:]:
            cost = asyncio.run(measure_idle(path, sessions, seconds))
            print(json.dumps({"work": f"{sessions} idle sessions", "path": path.name, **cost}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="hack/bench proxy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of one pgbench run")
    parser.add_argument("--megabytes", type=int, default=1000, help="of one COPY")
    parser.add_argument("--quick", action="store_true", help="3 rounds of two seconds, 100 MB")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.megabytes = 3, 2, 100
    with tempfile.TemporaryDirectory(prefix="dbranch-bench-") as temporary:
        directory = Path(temporary)
        with (
            running_backend("main", max_connections=100) as backend,
            client_paths(backend, directory) as paths,
        ):
            programs = backend.programs
            subprocess.run(
                [str(programs / "pgbench"), "-i", "-q", "-s", "10"],
                env=environment(paths[0]),
                check=True,
                capture_output=True,
            )
            for work, args in PGBENCH.items():
                if options.only in work:
                    # 64 logins need some time of their own.
                    seconds = options.seconds + (4 if "64" in args else 0)
                    measure = lambda path, a=args, s=seconds: measure_pgbench(path, programs, a, s)  # noqa: E731
                    compare(work, paths, options.rounds, measure)
            if options.only in "COPY":
                compare(
                    f"COPY of {options.megabytes} MB",
                    paths,
                    options.rounds,
                    lambda path: measure_copy(path, programs, options.megabytes),
                )
        if options.only in "idle":
            compare_idle(directory, 1000, 2.0 if options.quick else 10.0)


if __name__ == "__main__":
    sys.exit(main())
