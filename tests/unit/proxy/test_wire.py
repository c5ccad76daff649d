from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.proxy import wire

V3, V32 = 0x30000, 0x30002


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", 8 + len(body), code) + body


def startup(version: int = V3, **parameters: str) -> bytes:
    words = [w.encode() + b"\0" for pair in parameters.items() for w in pair]
    return packet(version, b"".join(words) + b"\0")


def message(message_type: bytes, body: bytes = b"") -> bytes:
    return message_type + struct.pack("!I", 4 + len(body)) + body


READY = message(b"Z", b"I")
SSL, GSS = packet(wire.SSL_REQUEST_CODE), packet(wire.GSSENC_REQUEST_CODE)


def feed_in_parts(parser: wire.StartupParser, data: bytes, cuts: list[int]) -> list[wire.Event]:
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    return [e for e in (parser.feed(p) for p in parts) if e]


@given(st.lists(st.integers(0, 10_000), max_size=30), st.sampled_from([V3, V32]))
def test_a_startup_packet_is_the_same_in_any_parts(cuts: list[int], version: int) -> None:
    data = startup(version, user="ann", database="db", options="-c dbranch.branch=pr-1")
    assert feed_in_parts(wire.StartupParser(), data, cuts) == [
        wire.StartupMessage(
            data, b"", {"user": "ann", "database": "db", "options": "-c dbranch.branch=pr-1"}, "pr-1"
        )
    ]


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_no_bytes_break_the_startup_parser(chunks: list[bytes]) -> None:
    parser, kept = wire.StartupParser(), 0
    for chunk in chunks:
        event = parser.feed(chunk)
        kept += len(chunk)
        if isinstance(event, wire.Malformed | wire.StartupMessage | wire.CancelRequest | wire.DirectTls):
            return
    assert kept <= wire.MAX_STARTUP_BYTES + 8


def test_requests_before_the_startup_packet() -> None:
    parser = wire.StartupParser()
    assert parser.feed(GSS) == wire.GssEncRequest()
    assert parser.feed(SSL[:3]) is None
    assert parser.feed(SSL[3:]) == wire.SslRequest()
    assert isinstance(parser.feed(startup(user="a")), wire.StartupMessage)


def test_a_startup_packet_may_be_as_long_as_a_server_takes_it() -> None:
    """Postgres: MAX_STARTUP_PACKET_LENGTH is 10000 bytes, without those of the length."""
    filler = 10004 - len(startup(user="a", application_name=""))
    longest = startup(user="a", application_name="x" * filler)
    assert len(longest) == 10004 and isinstance(wire.StartupParser().feed(longest), wire.StartupMessage)


@pytest.mark.parametrize(
    "data, sqlstate, phrase",
    [
        (SSL + b"x", "08P01", "unencrypted data after SSL request"),
        (GSS + b"x", "08P01", "unencrypted data after GSSAPI encryption request"),
        (struct.pack("!I", 7), "08P01", "length of startup packet"),
        (struct.pack("!I", wire.MAX_STARTUP_BYTES + 1), "08P01", "length of startup packet"),
        (b"\xff\xff\xff\xff", "08P01", "length of startup packet"),
        (b"GET / HTTP/1.1\r\n\r\n", "08P01", "length of startup packet"),
        (packet(0x20000, b"\0"), "0A000", "unsupported frontend protocol 2.0"),
        (packet(0x40000, b"\0"), "0A000", "unsupported frontend protocol 4.0"),
        (packet(V3), "08P01", "expected terminator"),
        (packet(V3, b"user\0ann"), "08P01", "expected terminator"),
        (packet(V3, b"user\0ann\0"), "08P01", "do not pair"),
        (packet(V3, b"user\0\0"), "08P01", "do not pair"),
        (packet(V3, b"\0ann\0\0"), "08P01", "do not pair"),
        (packet(wire.CANCEL_REQUEST_CODE, b"1234567"), "08P01", "length of cancel"),
        (packet(wire.CANCEL_REQUEST_CODE, b"1" * 261), "08P01", "length of cancel"),
    ],
)
def test_a_malformed_first_message_says_why(data: bytes, sqlstate: str, phrase: str) -> None:
    event = wire.StartupParser().feed(data)
    assert isinstance(event, wire.Malformed)
    assert event.sqlstate == sqlstate and phrase in event.message


def test_ssl_is_requested_once() -> None:
    parser = wire.StartupParser()
    parser.feed(SSL)
    assert isinstance(parser.feed(SSL), wire.Malformed)
    inside = wire.StartupParser()
    inside.set_encrypted()
    assert isinstance(inside.feed(SSL), wire.Malformed)


def test_direct_tls_only_as_the_first_byte() -> None:
    assert wire.StartupParser().feed(b"\x16\x03\x01") == wire.DirectTls(b"\x16\x03\x01")
    inside = wire.StartupParser()
    inside.set_encrypted()
    assert isinstance(inside.feed(b"\x16\x03\x01\x00"), wire.Malformed)


@pytest.mark.parametrize("secret", [b"abcd", b"s" * 32, b"s" * 256])
def test_a_cancel_request_carries_the_backends_key(secret: bytes) -> None:
    key = struct.pack("!I", 42) + secret
    greeting = wire.Greeting()
    greeting.feed(message(b"K", key))
    assert greeting.key == key
    request = wire.build_cancel_request(key)
    assert wire.StartupParser().feed(request) == wire.CancelRequest(key, request)


@pytest.mark.parametrize(
    "parameters, branch",
    [
        ({}, None),
        ({"dbranch.branch": "pr-1"}, "pr-1"),
        ({"DBranch.Branch": "pr-1"}, "pr-1"),
        ({"dbranch.branch": ""}, None),
        ({"options": "-c dbranch.branch=pr-1"}, "pr-1"),
        ({"options": "-cdbranch.branch=pr-1"}, "pr-1"),
        ({"options": "--dbranch.branch=pr-1"}, "pr-1"),
        ({"options": "-c geqo=off  -c dbranch.branch=pr-1 -c work_mem=8MB"}, "pr-1"),
        ({"options": "-c dbranch.branch=a -c dbranch.branch=b"}, "b"),
        ({"options": "-c dbranch.branch=a", "dbranch.branch": "b"}, "b"),
        ({"options": r"-c search_path=a\ -c\ dbranch.branch=x"}, None),
        ({"options": r"-c dbranch.branch=p\r-1"}, "pr-1"),
        ({"options": "-c geqo=dbranch.branch=x"}, None),
        ({"options": "-c"}, None),
        ({"options": "--"}, None),
        ({"application_name": "-c dbranch.branch=x"}, None),
    ],
)
def test_the_branch_that_a_client_names(parameters: dict[str, str], branch: str | None) -> None:
    event = wire.StartupParser().feed(startup(**{"user": "ann", **parameters}))
    assert isinstance(event, wire.StartupMessage)
    assert event.branch == branch


GREETING = (
    message(b"R", b"\0\0\0\0")
    + message(b"S", b"server_version\x0017.6\0")
    + message(b"K", b"\0\0\0\x01abcd")
    + READY
)


@given(st.lists(st.integers(0, 200), max_size=20))
def test_a_greeting_is_the_same_in_any_parts(cuts: list[int]) -> None:
    greeting = wire.Greeting()
    edges = sorted({0, len(GREETING), *(c % len(GREETING) for c in cuts)})
    for a, b in itertools.pairwise(edges):
        greeting.feed(GREETING[a:b])
        ends = {9, 9 + 25, 9 + 25 + 13, len(GREETING)}
        assert greeting.is_at_boundary == (b in ends)
    assert (greeting.key, greeting.ready, greeting.error_received) == (b"\0\0\0\x01abcd", True, False)


@given(st.binary(max_size=300))
def test_no_bytes_break_a_greeting_or_a_tail(data: bytes) -> None:
    wire.Greeting().feed(data)
    wire.transaction_status(data)
    wire.is_at_boundary(data)
    wire.first_error_sqlstate(data)
    wire.ends_with_fatal_error(data)


def test_a_greeting_ends_at_its_first_ready() -> None:
    greeting = wire.Greeting()
    greeting.feed(GREETING + b"half a mess")
    assert greeting.ready and greeting.is_at_boundary


ROW = message(b"D", b"\0\1\0\0\0\5hello")


@pytest.mark.parametrize(
    "tail, boundary, status",
    [
        (b"", False, None),
        (READY, True, "I"),
        (ROW + READY, True, "I"),
        (b"tail of a row" + message(b"Z", b"T"), True, "T"),
        (message(b"Z", b"E"), True, "E"),
        (READY + message(b"A", b"1234chan\0\0"), True, "I"),
        (READY + message(b"N", b"x\0") + message(b"S", b"a\0b\0"), True, "I"),
        (READY + ROW, True, None),
        (READY + ROW[:-1], False, None),
        (READY + b"D\0\0", False, None),
        (READY[:-1], False, None),
        (b"Z\0\0\0\5Q", False, None),
        (READY + b"D\0\0\0\0" + READY[:3], False, None),
        (ROW, False, None),
    ],
)
def test_where_a_stream_has_a_message_boundary(tail: bytes, boundary: bool, status: str | None) -> None:
    assert wire.is_at_boundary(tail) is boundary
    assert wire.transaction_status(tail) == status


def test_an_error_response_is_complete() -> None:
    sent = wire.build_fatal_error("57P01", "the branch\0 is gone", "Connect again.")
    assert sent == message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mthe branch  is gone\0HConnect again.\0\0")
    assert wire.ends_with_fatal_error(sent)
    assert wire.first_error_sqlstate(sent) == "57P01"
    assert b"H" not in wire.build_fatal_error("57P01", "m")[5:].split(b"\0")


def test_a_first_error_is_held_back_until_it_is_complete() -> None:
    sent = wire.build_fatal_error("57P03", "the database system is starting up")
    assert [wire.first_error_sqlstate(sent[:n]) for n in (1, 4, 20, len(sent) - 1)] == [""] * 4
    assert wire.first_error_sqlstate(READY) is None
    assert wire.first_error_sqlstate(b"E" + struct.pack("!I", wire.MAX_HELD_ERROR_BYTES + 1)) is None
