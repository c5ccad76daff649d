"""Message boundaries in a backend's bytes, from a known boundary on. Pure.

Used only where a session has to end, or where one message came in pieces; elsewhere bytes are forwarded unread.
Source: PostgreSQL manual, "Message Formats": a type byte, then a length that counts itself but not the type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dbranch.proxy import sqlstate, wire

_HEADER_BYTES: Final = 5
_ERROR: Final = b"E"
# What Postgres reports of a cancel, and of a client's side that was shut down within COPY or a message.
_CAUSED_BY_END: Final = {sqlstate.QUERY_CANCELED, sqlstate.CONNECTION_FAILURE, sqlstate.PROTOCOL_VIOLATION}
# ReadyForQuery, what may come at any time, and what comes before the first ReadyForQuery (Authentication,
# BackendKeyData, NegotiateProtocolVersion): they say nothing about what a statement has done.
_WITHOUT_RESULT: Final = b"ZRKv" + wire.ASYNCHRONOUS_TYPES


@dataclass(frozen=True)
class Piece:
    """Bytes of one message of type `message_type`. `begins`, `ends`: they are its first, its last ones."""

    message_type: bytes
    data: bytes
    begins: bool
    ends: bool


class MessageFramer:
    """Splitter of a backend's bytes into messages, which may come in pieces."""

    __slots__ = ("_message_type", "_missing", "partial_header")

    def __init__(self) -> None:
        # The header of the next message as far as it has come; `split` holds it back.
        self.partial_header = b""
        self._message_type = b""
        # Bytes of the current message that have not come yet.
        self._missing = 0

    @property
    def within_message(self) -> bool:
        """Return True if a message whose header was complete has bytes still to come."""
        return self._missing > 0

    @property
    def is_at_boundary(self) -> bool:
        """Return True if the bytes so far end with a complete message."""
        return not self._missing and not self.partial_header

    def split(self, data: bytes) -> Iterator[Piece]:
        position, size = 0, len(data)
        while position < size:
            header, begins = b"", not self._missing
            if begins:
                end = position + _HEADER_BYTES - len(self.partial_header)
                header = self.partial_header + data[position:end]
                position = end
                if len(header) < _HEADER_BYTES:
                    self.partial_header = header
                    return
                self.partial_header, self._message_type = b"", header[:1]
                self._missing = max(int.from_bytes(header[1:], "big") - 4, 0)
            body = data[position : position + self._missing]
            position += len(body)
            self._missing -= len(body)
            yield Piece(self._message_type, header + body, begins, not self._missing)

    def skip_asynchronous(self, data: bytes) -> bytes:
        """Follow `data` and return what comes with and behind its first message that answers a request.

        An empty result means that `data` was asynchronous messages only, the last one maybe unfinished.
        """
        pieces = list(self.split(data))
        for i, piece in enumerate(pieces):
            if piece.message_type not in wire.ASYNCHRONOUS_TYPES:
                return b"".join(p.data for p in pieces[i:]) + self.partial_header
        return b""


class CancelledReplies:
    """Filter of what an ending session's backend still sends.

    `feed` returns what the client is sent of it: everything but the errors that the end itself causes, unless a
    result follows. Those the farewell stands for, so that the client reads one error, which says why.
    """

    __slots__ = ("_framer", "_held", "_logging_in", "_partial", "_sent_of_header")

    def __init__(self, framer: MessageFramer, logging_in: bool = False) -> None:
        """`framer` has followed all bytes that the client was sent so far.

        `logging_in`: the client is not let in yet, and is not, unless it has sent a request ahead.
        """
        self._logging_in = logging_in
        self._framer = framer
        self._sent_of_header = len(framer.partial_header)
        # What is held back: complete messages, and one that may be added to them once it is complete.
        self._held = b""
        self._partial: bytes | None = None

    @property
    def is_at_boundary(self) -> bool:
        """Return True if what the client was sent ends with a complete message."""
        if self._partial is not None:
            return True
        return not self._framer.within_message and not self._sent_of_header

    @property
    def holds_back(self) -> bool:
        """Return True if the last bytes were not sent to the client."""
        return bool(self._held) or self._partial is not None

    def feed(self, data: bytes) -> bytes:
        parts = [self._filter(piece) for piece in self._framer.split(data)]
        return b"".join(parts)

    def _filter(self, piece: Piece) -> bytes:
        data = piece.data
        if piece.begins and self._sent_of_header:
            data, self._sent_of_header = data[self._sent_of_header :], 0
            return data
        holds = self._held or self._logging_in
        may_be_held = piece.message_type == _ERROR or (holds and piece.message_type in _WITHOUT_RESULT)
        if self._partial is not None or (piece.begins and may_be_held):
            return self._filter_whole(piece.message_type, (self._partial or b"") + data, piece.ends)
        return self._release(data)

    def _filter_whole(self, message_type: bytes, message: bytes, complete: bool) -> bytes:
        fits = len(self._held) + len(message) <= wire.MAX_HELD_ERROR_BYTES
        if fits and not complete:
            self._partial = message
            return b""
        self._partial = None
        if fits and (message_type != _ERROR or wire.first_error_sqlstate(message) in _CAUSED_BY_END):
            self._held += message
            return b""
        return self._release(message)

    def _release(self, data: bytes) -> bytes:
        """Return `data` after what was held back."""
        held, self._held, self._logging_in = self._held, b"", False
        return held + data
