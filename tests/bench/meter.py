"""What a measured span cost: processor time by program, and requests to the API server with their mean latency.

The processor time is read from /proc of this machine, which shows the nodes' processes if they are kind's. On a node
elsewhere there is none of them, and only the requests are counted.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.counts import durations
from tests.bench.figures import Row

_TICKS = os.sysconf("SC_CLK_TCK")
_ROLE = "dbranch.main"
# The name of a process -> the program that it is counted with. Short-lived processes are counted with their parents.
_PROGRAMS = {
    "kube-apiserver": "API server",
    "etcd": "etcd",
    "kubelet": "kubelet",
    "kube-proxy": "kube-proxy",
    "kube-controller": "controller manager",
    "kube-scheduler": "scheduler",
    "containerd": "containerd",
    "containerd-shim": "containerd",
    "runc": "containerd",
    "dockerd": "containerd",
    "postgres": "Postgres",
    "coredns": "CoreDNS",
}
_SHOWN_REQUESTS = 12


def program_of(name: str, command: list[str]) -> str:
    """Return what a process is counted with, by its name (comm) and its command line.

    >>> program_of("python3", ["python3", "-P", "-m", "dbranch.main", "agent"]), program_of("postgres", [])
    ('agent', 'Postgres')
    >>> program_of("kworker/0:1", []), program_of("sh", ["sh"])
    ('kernel', 'others')
    """
    if _ROLE in command[:-1]:
        return command[command.index(_ROLE) + 1]
    if "tests.bench" in command:
        return "the measure"
    # Only the kernel's threads have no command line.
    return _PROGRAMS.get(name, "others" if command else "kernel")


def processor_seconds() -> Counter[str]:
    """Return the seconds of processor time so far, by program, with those of children that have ended."""
    seconds: Counter[str] = Counter()
    for process in Path("/proc").glob("[0-9]*"):
        # A process may end while it is read.
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            name, ticks = parse_stat((process / "stat").read_text())
            seconds[program_of(name, command)] += ticks / _TICKS  # type: ignore[assignment]
    return seconds


def parse_stat(text: str) -> tuple[str, int]:
    """Return the name of a process and its clock ticks, its ended children's included, from /proc/PID/stat.

    >>> parse_stat("7 (a b) S 1 7 7 0 -1 4 0 0 0 0 10 20 3 4 20 0")
    ('a b', 37)
    """
    name, _, fields = text.partition("(")[2].rpartition(")")
    return name, sum(int(ticks) for ticks in fields.split()[11:15])


@dataclass
class Meter:
    """The cost of spans: seconds by program and span, and requests (count, seconds of latency) of all spans."""

    processor: list[dict[str, float]] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    by_request: dict[str, tuple[int, float]] = field(default_factory=dict)

    @contextmanager
    def span(self) -> Iterator[None]:
        """Count what is spent inside."""
        metrics, before = _metrics(), processor_seconds()
        yield
        after, metrics_after = processor_seconds(), _metrics()
        self.add(after - before, added(durations(metrics_after), durations(metrics)))

    def add(self, processor: Mapping[str, float], requests: Mapping[str, tuple[int, float]]) -> None:
        """Add the cost of a span."""
        self.processor.append(dict(processor))
        self.requests.append(sum(count for count, _ in requests.values()))
        for key, (count, seconds) in requests.items():
            so_far = self.by_request.get(key, (0, 0.0))
            self.by_request[key] = (so_far[0] + count, so_far[1] + seconds)

    @property
    def totals(self) -> list[float]:
        """Return the seconds of each span, without those of the measure itself."""
        return [
            sum(seconds for program, seconds in one.items() if program != "the measure")
            for one in self.processor
        ]

    def processor_text(self) -> str:
        """Return the mean seconds of a span by program as text, largest first.

        >>> Meter([{"agent": 2.0, "etcd": 0.5}, {"agent": 3.0}]).processor_text()
        'agent 2.5, etcd 0.25'
        """
        totals: Counter[str] = Counter()
        for one in self.processor:
            totals.update(one)  # type: ignore[arg-type]
        means = ((program, seconds / len(self.processor)) for program, seconds in totals.most_common())
        return ", ".join(f"{program} {seconds:.2g}" for program, seconds in means if seconds >= 0.05)

    def requests_text(self) -> str:
        """Return the most costly requests of a span, by verb and resource, with their mean latency, as text.

        >>> Meter([{}], [], {"PATCH pods": (4, 0.1)}).requests_text()
        '4 PATCH pods of 25 ms'
        """
        costly = sorted(self.by_request.items(), key=lambda item: -item[1][1])[:_SHOWN_REQUESTS]
        spans = len(self.processor)
        return ", ".join(
            f"{count / spans:.3g} {key} of {seconds / count * 1000:.0f} ms"
            for key, (count, seconds) in costly
        )


def processor_row(of: str, against: str, ours: Meter, theirs: Meter) -> Row:
    """Return the row of the processor time of something, and of what it is compared with."""
    note = f"seconds: {ours.processor_text()}; of {against}: {theirs.processor_text()}"
    return Row(f"processor time of {of}", against, ours.totals, theirs.totals, "s", note=note)


def cost_rows(of: str, against: str, ours: Meter, theirs: Meter) -> list[Row]:
    """Return the rows of what something cost, and of what that cost which it is compared with."""
    requests = f"{ours.requests_text()}; of {against}: {theirs.requests_text()}"
    return [
        processor_row(of, against, ours, theirs),
        Row(
            f"requests to the API server by {of}",
            against,
            ours.requests,
            theirs.requests,
            "requests",
            note=f"those that took longest together: {requests}",
        ),
    ]


def added(
    after: Mapping[str, tuple[int, float]], before: Mapping[str, tuple[int, float]]
) -> dict[str, tuple[int, float]]:
    """Return the requests and their seconds that were added between two readings.

    >>> added({"GET pods": (3, 0.5), "GET nodes": (1, 0.1)}, {"GET pods": (1, 0.25), "GET nodes": (1, 0.1)})
    {'GET pods': (2, 0.25)}
    """
    grown = {}
    for key, (count, seconds) in after.items():
        count_before, seconds_before = before.get(key, (0, 0.0))
        if count > count_before:
            grown[key] = (count - count_before, seconds - seconds_before)
    return grown


def _metrics() -> str:
    argv = ["kubectl", "get", "--raw", "/metrics"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
