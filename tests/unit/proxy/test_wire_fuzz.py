"""Fuzz test of the pure parsers that read a connection's first bytes.

Guided by coverage: an input that reaches a new line of the parsers is kept, and later inputs are mutations of those.
Seeded, so that a run can be repeated; `--soak` makes a hundred thousand inputs.
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

COVERED_FILES = {wire.__file__, proxy_protocol.__file__}
V3 = struct.pack("!I", 3 << 16)
SSL, GSS = (struct.pack("!II", 8, code) for code in (wire.SSL_REQUEST_CODE, wire.GSSENC_REQUEST_CODE))
SEEDS = [
    SSL,
    GSS + SSL,
    b"\x16\x03\x01\x02\x00",
    struct.pack("!I", 12_000) + V3 + b"user\0" + b"a" * 12_000,
    struct.pack("!II", 16, wire.CANCEL_REQUEST_CODE) + b"12345678",
    struct.pack("!I", 25) + V3 + b"user\0ann\0a\0bcde\0\0",
    struct.pack("!I", 46) + V3 + b"options\0-c dbranch.branch=a\\ b\0user\0a\0\0",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 5432\r\n" + SSL,
    b"PROXY TCP6 ::1 ::2 65536 5432\r\n",
    b"\r\n\r\nGET",
    b"PROXY UNKNOWN\r\n" + GSS,
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + GSS,
]
# Codes, sizes and separators of the protocol, inserted by mutations.
FRAGMENTS = [
    SSL,
    GSS,
    V3,
    b"\0",
    b"\xff" * 4,
    b"\x00\x00\x27\x10",
    b"\x00\x00\x27\x11",
    b"options\0-c ",
    b"\r\n",
]
# Functions of which every line has to be reached.
COVERED_FUNCTIONS = [
    wire.StartupParser.feed,
    wire.StartupParser._parse_packet,
    wire._parse_startup_message,
    wire._branch_in_options,
    wire._split_options,
    proxy_protocol.read_header,
    proxy_protocol._read_version_1,
    proxy_protocol._read_version_2,
]


class Coverage:
    """Trace function that records the edges run in COVERED_FILES, and whether the last input reached a new one."""

    def __init__(self) -> None:
        self.edges: set[tuple[str, int, int]] = set()
        self.has_new_edge = False
        self._previous_line = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in COVERED_FILES:
            return None
        if event == "line":
            edge = frame.f_code.co_filename, self._previous_line, frame.f_lineno
            self._previous_line = frame.f_lineno
            if edge not in self.edges:
                self.edges.add(edge)
                self.has_new_edge = True
        return self


def mutate(chance: random.Random, data: bytes) -> bytes:
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        position = chance.randint(0, len(result))
        match chance.randrange(6):
            case 0:
                result[position:position] = chance.choice(FRAGMENTS)
            case 1:
                del result[position : position + chance.randint(1, 8)]
            case 2 if result:
                result[position % len(result)] = chance.randrange(256)
            case 3:
                result[position:position] = chance.randbytes(chance.randint(1, 40))
            case 4:
                result += result[position:]
            case _ if len(result) >= 4:
                result[:4] = struct.pack("!I", len(result))
    return bytes(result[:20_000])


def feed(chance: random.Random, data: bytes) -> None:
    """Feed `data` as a connection would: in parts, after a PROXY header if there is one, until the last event."""
    header = proxy_protocol.read_header(data)
    if isinstance(header, proxy_protocol.Header):
        data = header.remaining
    parser, greeting = wire.StartupParser(), wire.Greeting()
    greeting.feed(data)
    wire.first_error_sqlstate(data)
    wire.transaction_status(data[-wire.TAIL_BYTES :])
    while data:
        size = chance.choice([1, 4, 8, len(data)])
        event = parser.feed(data[:size])
        data = data[size:]
        assert len(parser._buffer) <= wire.MAX_STARTUP_BYTES
        if isinstance(event, wire.DirectTls):
            parser.set_encrypted()
        elif isinstance(event, wire.StartupMessage):
            assert 8 < len(event.packet) <= wire.MAX_STARTUP_BYTES
            assert event.branch != ""
            return
        elif isinstance(event, wire.CancelRequest):
            assert 16 <= len(event.packet) <= 12 + wire.MAX_CANCEL_SECRET_BYTES
            return
        elif isinstance(event, wire.Malformed):
            assert wire.build_fatal_error(event.sqlstate, event.message).endswith(b"\0\0")
            return


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_no_first_bytes_break_or_grow_the_parsers(soak: bool) -> None:
    chance, coverage, corpus = random.Random(5), Coverage(), list(SEEDS)
    rounds = 100_000 if soak else 5_000
    before = 0
    for i in range(rounds):
        data = SEEDS[i] if i < len(SEEDS) else mutate(chance, chance.choice(corpus))
        coverage.has_new_edge, previous_trace = False, sys.gettrace()
        sys.settrace(coverage)
        try:
            feed(chance, data)
        finally:
            sys.settrace(previous_trace)
        if coverage.has_new_edge and i >= len(SEEDS):
            corpus.append(data)
        if i == rounds // 2:
            gc.collect()
            before = resident_bytes()
    assert len(corpus) > len(SEEDS)
    gc.collect()
    assert resident_bytes() - before < 5_000_000
    reached = {(file, line) for file, _, line in coverage.edges}
    for function in COVERED_FUNCTIONS:
        code = function.__code__
        lines = {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
        assert {(code.co_filename, line) for line in lines} <= reached, function.__name__
