"""Starts of connections without end, against the pure machines that read them.

Guided by coverage: an input that reaches a line of the machines that none before did is kept, and later inputs
are made from those. Seeded, so that a run can be repeated; `--soak` makes a hundred thousand of them.
"""

from __future__ import annotations

import gc
import random
import struct
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from dbranch.proxy import proxy_protocol, wire

WATCHED = {wire.__file__, proxy_protocol.__file__}
V3 = struct.pack("!I", 3 << 16)
SSL, GSS = (struct.pack("!II", 8, code) for code in (wire.SSL_CODE, wire.GSS_CODE))
SEEDS = [
    SSL,
    GSS + SSL,
    b"\x16\x03\x01\x02\x00",
    struct.pack("!I", 12_000) + V3 + b"user\0" + b"a" * 12_000,
    struct.pack("!II", 16, wire.CANCEL_CODE) + b"12345678",
    struct.pack("!I", 25) + V3 + b"user\0ann\0a\0bcde\0\0",
    struct.pack("!I", 46) + V3 + b"options\0-c dbranch.branch=a\\ b\0user\0a\0\0",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 5432\r\n" + SSL,
    b"PROXY TCP6 ::1 ::2 65536 5432\r\n",
    b"\r\n\r\nGET",
    b"PROXY UNKNOWN\r\n" + GSS,
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + GSS,
]
# What the sizes and codes of the protocol are made of.
WORDS = [SSL, GSS, V3, b"\0", b"\xff" * 4, b"\x00\x00\x27\x10", b"\x00\x00\x27\x11", b"options\0-c ", b"\r\n"]
REACHED = [
    wire.Opening.feed,
    wire.Opening._packet,
    wire._startup,
    wire._branch_in_options,
    wire._split_options,
    proxy_protocol.read_header,
    proxy_protocol._version_1,
    proxy_protocol._version_2,
]


class Coverage:
    """The lines of the watched modules that were run, and whether the last input found a new one."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int, int]] = set()
        self.new = False
        self._last = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            edge = frame.f_code.co_filename, self._last, frame.f_lineno
            self._last = frame.f_lineno
            if edge not in self.seen:
                self.seen.add(edge)
                self.new = True
        return self


def mutated(chance: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(made))
        match chance.randrange(6):
            case 0:
                made[at:at] = chance.choice(WORDS)
            case 1:
                del made[at : at + chance.randint(1, 8)]
            case 2 if made:
                made[at % len(made)] = chance.randrange(256)
            case 3:
                made[at:at] = chance.randbytes(chance.randint(1, 40))
            case 4:
                made += made[at:]
            case _ if len(made) >= 4:
                made[:4] = struct.pack("!I", len(made))
    return bytes(made[:20_000])


def feed(chance: random.Random, data: bytes) -> None:
    """As a connection would: in parts, through the header if there is one, until an event that is the last."""
    header = proxy_protocol.read_header(data)
    if isinstance(header, proxy_protocol.Header):
        data = header.rest
    opening, greeting = wire.Opening(), wire.Greeting()
    greeting.feed(data)
    wire.held_error(data)
    wire.transaction_status(data[-wire.WINDOW :])
    while data:
        size = chance.choice([1, 4, 8, len(data)])
        event = opening.feed(data[:size])
        data = data[size:]
        assert len(opening._buffer) <= wire.MAX_STARTUP
        if isinstance(event, wire.DirectTls):
            opening.encrypted()
        elif isinstance(event, wire.Startup):
            assert 8 < len(event.packet) <= wire.MAX_STARTUP
            assert event.branch != ""
            return
        elif isinstance(event, wire.Cancel):
            assert 16 <= len(event.packet) <= 12 + wire.MAX_KEY
            return
        elif isinstance(event, wire.Malformed):
            assert wire.fatal(event.code, event.message).endswith(b"\0\0")
            return


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_no_start_breaks_or_grows_what_reads_it(soak: bool) -> None:
    chance, coverage, corpus = random.Random(5), Coverage(), list(SEEDS)
    rounds = 100_000 if soak else 5_000
    before = 0
    for i in range(rounds):
        data = SEEDS[i] if i < len(SEEDS) else mutated(chance, chance.choice(corpus))
        coverage.new, was = False, sys.gettrace()
        sys.settrace(coverage)
        try:
            feed(chance, data)
        finally:
            sys.settrace(was)
        if coverage.new and i >= len(SEEDS):
            corpus.append(data)
        if i == rounds // 2:
            gc.collect()
            before = resident_bytes()
    assert len(corpus) > len(SEEDS)
    gc.collect()
    assert resident_bytes() - before < 5_000_000
    # It got everywhere: each line of these was run.
    reached = {(file, line) for file, _, line in coverage.seen}
    for function in REACHED:
        code = function.__code__
        lines = {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
        assert {(code.co_filename, line) for line in lines} <= reached, function.__name__
