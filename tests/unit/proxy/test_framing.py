from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.proxy import wire
from dbranch.proxy.framing import CancelledReplies, MessageFramer

READY = b"Z\0\0\0\x05I"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


NOTIFICATION = message(b"A", b"1234chan\0\0")
ROW = message(b"D", b"\0\x01\0\0\0\x05hello")
DONE = message(b"C", b"INSERT 0 1\0")


def error(code: str, severity: str = "ERROR") -> bytes:
    return message(b"E", f"S{severity}\0V{severity}\0C{code}\0Mm\0\0".encode())


CANCELLED = error("57014")


@pytest.mark.parametrize(
    "data, answer, at_boundary",
    [
        (NOTIFICATION, b"", True),
        (NOTIFICATION + message(b"S", b"a\0b\0") + message(b"N", b"\0"), b"", True),
        (NOTIFICATION[:-1], b"", False),
        (b"A\0\0", b"", False),
        (message(b"N", b"\0") + READY, READY, True),
        (ROW, ROW, True),
        (NOTIFICATION + ROW + READY[:3], ROW + READY[:3], False),
    ],
)
def test_asynchronous_messages_are_skipped(data: bytes, answer: bytes, at_boundary: bool) -> None:
    framer = MessageFramer()
    assert framer.skip_asynchronous(data) == answer
    assert framer.is_at_boundary is at_boundary


def feed(data: bytes, cuts: list[int]) -> tuple[bytes, CancelledReplies]:
    """Feed `data` in pieces that end at `cuts`."""
    replies, sent, last = CancelledReplies(MessageFramer()), b"", 0
    for cut in [*sorted(c % (len(data) + 1) for c in cuts), len(data)]:
        sent += replies.feed(data[last:cut])
        last = cut
    return sent, replies


@pytest.mark.parametrize(
    "data, sent",
    [
        (CANCELLED + READY, b""),
        (ROW + CANCELLED + NOTIFICATION + READY + CANCELLED, ROW),
        # What a later statement has done is sent, and so is everything before.
        (CANCELLED + READY + DONE + READY, CANCELLED + READY + DONE + READY),
        (error("08006") + error("08P01", "FATAL"), b""),
        (error("22012") + READY + CANCELLED, error("22012") + READY),
        (CANCELLED + error("57P01", "FATAL"), CANCELLED + error("57P01", "FATAL")),
    ],
)
@given(cuts=st.lists(st.integers(0, 200), max_size=4))
def test_errors_that_the_end_causes_are_held_back(data: bytes, sent: bytes, cuts: list[int]) -> None:
    received, replies = feed(data, cuts)
    assert received == sent
    assert replies.is_at_boundary
    assert replies.holds_back is (sent != data)


@given(size=st.integers(0, len(ROW)), cuts=st.lists(st.integers(0, 200), max_size=3))
def test_the_client_is_at_a_boundary_only_between_messages(size: int, cuts: list[int]) -> None:
    sent, replies = feed(DONE + ROW[:size], cuts)
    # A header is not sent before it is complete.
    assert sent == DONE + (ROW[:size] if size >= 5 else b"")
    assert replies.is_at_boundary is (size < 5 or size == len(ROW))


def test_a_message_that_the_client_has_the_beginning_of_is_completed() -> None:
    for cut in range(1, len(NOTIFICATION)):
        framer = MessageFramer()
        framer.skip_asynchronous(NOTIFICATION[:cut])
        replies = CancelledReplies(framer)
        assert not replies.is_at_boundary
        assert replies.feed(NOTIFICATION[cut:] + READY) == NOTIFICATION[cut:] + READY
        assert replies.is_at_boundary


def test_a_huge_error_is_not_kept() -> None:
    replies = CancelledReplies(MessageFramer())
    data = error("57014")[:-1] + b"M" + b"x" * 2 * wire.MAX_HELD_ERROR_BYTES + b"\0\0"
    data = b"E" + struct.pack("!I", len(data) - 1) + data[5:]
    sent = b"".join(replies.feed(data[i : i + 1000]) for i in range(0, len(data), 1000))
    assert sent == data and replies.is_at_boundary


def test_a_login_that_the_end_overtakes_is_not_shown() -> None:
    login = message(b"R", b"\0\0\0\0") + message(b"S", b"a\0b\0") + message(b"K", b"12345678") + READY
    assert CancelledReplies(MessageFramer(), logging_in=True).feed(login) == b""
    # Unless the client has sent a request ahead, whose answer follows.
    assert CancelledReplies(MessageFramer(), logging_in=True).feed(login + DONE) == login + DONE
    assert CancelledReplies(MessageFramer()).feed(login) == login
