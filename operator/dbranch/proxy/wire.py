"""Parser and builder for the parts of the Postgres protocol that a proxy needs: bytes in, events out. Pure.

Sources: PostgreSQL 18 manual, chapter 54 "Frontend/Backend Protocol" (chapter 53 in version 14), sections 54.2
"Message Flow" and 54.7 "Message Formats", protocol 3.0 and 3.2; `ProcessStartupPacket` in the server for limits
and error texts.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dbranch.api import names
from dbranch.proxy import sqlstate

# The request codes in place of a protocol version (54.7: CancelRequest, SSLRequest, GSSENCRequest).
CANCEL_REQUEST_CODE: Final = 80877102
SSL_REQUEST_CODE: Final = 80877103
GSSENC_REQUEST_CODE: Final = 80877104

# The server's own bounds: a startup packet, and the secret of a cancel key (256 in protocol 3.2).
# A server takes 10000 bytes behind the length word.
MAX_STARTUP_BYTES: Final = 10004
MAX_CANCEL_SECRET_BYTES: Final = 256
# How many of a backend's last bytes are kept to find a message boundary in.
TAIL_BYTES: Final = 512
# The longest first ErrorResponse that is held back until its SQLSTATE has come.
MAX_HELD_ERROR_BYTES: Final = 8192

# The client's Terminate message (54.2.9 Termination).
TERMINATE: Final = b"X\x00\x00\x00\x04"
_READY_FOR_QUERY_HEADER: Final = b"Z\x00\x00\x00\x05"
# Messages that a backend may send at any time, also after ReadyForQuery (54.2.7 Asynchronous Operations):
# NotificationResponse, ParameterStatus, NoticeResponse.
ASYNCHRONOUS_TYPES: Final = b"ASN"


@dataclass(frozen=True)
class SslRequest:
    """SSLRequest (54.2.10 SSL Session Encryption): answer `S` and continue in TLS, or `N` and continue without."""


@dataclass(frozen=True)
class GssEncRequest:
    """GSSENCRequest (54.2.11 GSSAPI Session Encryption): answer `N`."""


@dataclass(frozen=True)
class DirectTls:
    """A TLS ClientHello without an SSLRequest (54.2.10). `data` is all that came so far, and all of it TLS."""

    data: bytes


@dataclass(frozen=True)
class CancelRequest:
    """CancelRequest (54.2.8 Canceling Requests in Progress).

    `key` is the process ID and secret as in BackendKeyData; `packet` is the whole message.
    """

    key: bytes
    packet: bytes


@dataclass(frozen=True)
class StartupMessage:
    """StartupMessage (54.2.1 Start-up).

    `packet` is the whole message, to be forwarded unchanged; `remaining` are the bytes that came after it;
    `branch` is the branch that the client names, or None for the active one.
    """

    packet: bytes
    remaining: bytes = b""
    parameters: Mapping[str, str] = field(default_factory=dict)
    branch: str | None = None


@dataclass(frozen=True)
class Malformed:
    """Bytes that are no valid first message. `sqlstate` is for the ErrorResponse."""

    message: str
    sqlstate: str = sqlstate.PROTOCOL_VIOLATION


Event = SslRequest | GssEncRequest | DirectTls | CancelRequest | StartupMessage | Malformed


class StartupParser:
    """Parser of a client's bytes until its startup packet is complete (54.2.1 Start-up).

    `feed` returns one event, or None if more bytes are needed. After SslRequest and GssEncRequest (send the
    answer) and DirectTls (once TLS is established, call `set_encrypted`) more events follow; any other event is
    the last one. At most MAX_STARTUP_BYTES are kept besides the last chunk.
    """

    __slots__ = ("_buffer", "_gssenc_requested", "_is_first", "_ssl_requested")

    def __init__(self) -> None:
        self._buffer = b""
        self._is_first = True
        self._ssl_requested = self._gssenc_requested = False

    @property
    def has_begun(self) -> bool:
        """Return True once the client has sent anything."""
        return not self._is_first or bool(self._buffer)

    def set_encrypted(self) -> None:
        """Treat all later bytes as received through TLS: no SSLRequest and no second TLS are accepted."""
        self._ssl_requested = self._gssenc_requested = True
        self._is_first = False

    def feed(self, data: bytes) -> Event | None:
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        # 0x16 is the first byte of a TLS handshake record.
        if self._is_first and data[:1] == b"\x16":
            self._is_first = False
            return DirectTls(data)
        if len(data) < 4:
            self._buffer = data
            return None
        length = int.from_bytes(data[:4], "big")
        if not 8 <= length <= MAX_STARTUP_BYTES:
            return Malformed("invalid length of startup packet")
        if len(data) < length:
            self._buffer = data
            return None
        self._is_first = False
        return self._parse_packet(data[:length], data[length:])

    def _parse_packet(self, packet: bytes, remaining: bytes) -> Event:
        code = int.from_bytes(packet[4:8], "big")
        if code == CANCEL_REQUEST_CODE:
            key = packet[8:]
            if not 8 <= len(key) <= 4 + MAX_CANCEL_SECRET_BYTES:
                return Malformed("invalid length of cancel request")
            return CancelRequest(key, packet)
        if code in (SSL_REQUEST_CODE, GSSENC_REQUEST_CODE) and len(packet) == 8:
            request = "SSL" if code == SSL_REQUEST_CODE else "GSSAPI encryption"
            # Unencrypted bytes after the request may have been injected by a man in the middle (54.2.10).
            if remaining:
                return Malformed(f"received unencrypted data after {request} request")
            if code == SSL_REQUEST_CODE and not self._ssl_requested:
                self._ssl_requested = True
                return SslRequest()
            if code == GSSENC_REQUEST_CODE and not self._gssenc_requested:
                self._gssenc_requested = True
                return GssEncRequest()
        if code >> 16 != 3:
            version = f"{code >> 16}.{code & 0xFFFF}"
            return Malformed(
                f"unsupported frontend protocol {version}: use 3.0 to 3.2", sqlstate.FEATURE_NOT_SUPPORTED
            )
        return _parse_startup_message(packet, remaining)


def _parse_startup_message(packet: bytes, remaining: bytes) -> Event:
    """Return the StartupMessage in `packet` (54.7): pairs of NUL-terminated strings, then one more NUL."""
    body = packet[8:]
    if body[-1:] != b"\x00":
        return Malformed("invalid startup packet layout: expected terminator as last byte")
    words = body[:-1].split(b"\x00")
    # Each name and value ends with NUL, so the split leaves one empty word after them.
    if words.pop() or len(words) % 2 or not all(words[::2]):
        return Malformed("invalid startup packet layout: names and values do not pair")
    texts = [w.decode("utf-8", "surrogateescape") for w in words]
    parameters = dict(zip(texts[::2], texts[1::2], strict=True))
    return StartupMessage(packet, remaining, parameters, _requested_branch(parameters))


def _requested_branch(parameters: Mapping[str, str]) -> str | None:
    """Return the branch that the client names: in a startup parameter of its own, or else in `options`."""
    values = [v for k, v in parameters.items() if k.lower() == names.BRANCH_PARAMETER]
    branch = values[-1] if values else _branch_in_options(parameters.get("options", ""))
    return branch or None


def _branch_in_options(options: str) -> str:
    """Return the branch in the startup parameter `options`, or an empty string.

    As the server reads it: words are split at white space, a setting is `-c name=value` or `--name=value`, and
    the last one wins.

    >>> _branch_in_options("-c dbranch.branch=pr-1 -c work_mem=8MB")
    'pr-1'
    """
    words, branch, index = _split_options(options), "", 0
    while index < len(words):
        word, index = words[index], index + 1
        if word == "-c" and index < len(words):
            setting, index = words[index], index + 1
        elif word.startswith("-c") or (word.startswith("--") and len(word) > 2):
            setting = word[2:]
        else:
            continue
        name, _, value = setting.partition("=")
        if name.lower().replace("-", "_") == names.BRANCH_PARAMETER:
            branch = value
    return branch


def _split_options(options: str) -> list[str]:
    """Split at white space; a backslash makes the next character part of the word (as `pg_split_opts`)."""
    words: list[str] = []
    word, in_word, escaped = "", False, False
    for char in options:
        if escaped:
            word, escaped = word + char, False
        elif char == "\\":
            in_word = escaped = True
        elif char in " \t\n\r\f\v":
            if in_word:
                words.append(word)
            word, in_word = "", False
        else:
            word, in_word = word + char, True
    return [*words, word] if in_word else words


class Greeting:
    """Parser of the backend's bytes until its first ReadyForQuery (54.2.1 Start-up); it changes nothing.

    `key` is the body of BackendKeyData (process ID and secret), the session's cancel key; `ready`: ReadyForQuery
    has come; `error_received`: an ErrorResponse has come.
    """

    __slots__ = ("_header", "_key_buffer", "_skip", "error_received", "key", "ready")

    def __init__(self) -> None:
        # Type and length of the current message, as far as they have come.
        self._header = b""
        # Bytes of the current message's body that are still to come.
        self._skip = 0
        self._key_buffer: bytearray | None = None
        self.key: bytes | None = None
        self.ready = self.error_received = False

    @property
    def is_at_boundary(self) -> bool:
        """Return True if the bytes fed so far end with a complete message."""
        return not self._header and not self._skip

    def feed(self, data: bytes) -> None:
        position, end = 0, len(data)
        while position < end and not self.ready:
            if self._skip:
                size = min(self._skip, end - position)
                if self._key_buffer is not None:
                    self._key_buffer += data[position : position + size]
                self._skip -= size
                position += size
            else:
                size = 5 - len(self._header)
                self._header += data[position : position + size]
                position += size
                if len(self._header) < 5:
                    return
                length = int.from_bytes(self._header[1:], "big")
                self._skip = max(length - 4, 0)
                is_key = self._header[:1] == b"K" and 12 <= length <= 8 + MAX_CANCEL_SECRET_BYTES
                if is_key:
                    self._key_buffer = bytearray()
            if not self._skip:
                self._finish_message()

    def _finish_message(self) -> None:
        message_type, self._header = self._header[:1], b""
        if self._key_buffer is not None:
            self.key, self._key_buffer = bytes(self._key_buffer), None
        self.ready = message_type == b"Z"
        self.error_received = self.error_received or message_type == b"E"


def first_error_sqlstate(data: bytes) -> str | None:
    """Return the SQLSTATE if `data`, a backend's first bytes, is one complete ErrorResponse.

    Return None if it is another message, and an empty string if more bytes are needed. Fields: 54.8 "Error and
    Notice Message Fields".

    >>> first_error_sqlstate(build_fatal_error("57P03", "the database system is starting up"))
    '57P03'
    """
    if data[:1] != b"E":
        return None
    if len(data) < 5:
        return ""
    length = int.from_bytes(data[1:5], "big")
    if not 4 < length <= MAX_HELD_ERROR_BYTES:
        return None
    if len(data) < 1 + length:
        return ""
    fields = data[5 : 1 + length].split(b"\x00")
    return next((f[1:].decode("ascii", "replace") for f in fields if f[:1] == b"C"), "?")


def is_at_boundary(tail: bytes) -> bool:
    """Return True if a backend's stream with the last bytes `tail` ends with a complete message.

    Messages are followed from the last ReadyForQuery in `tail`; without one the answer is False, since nothing
    counts messages while bytes are only forwarded.
    """
    return _after_ready_for_query(tail) is not None


def transaction_status(tail: bytes) -> str | None:
    """Return the status in the last ReadyForQuery (`I`, `T` or `E`), or None if the backend is busy.

    It is busy unless only asynchronous messages follow that ReadyForQuery.
    """
    after_ready = _after_ready_for_query(tail)
    if after_ready is None:
        return None
    status, message_types = after_ready
    return status if all(t in ASYNCHRONOUS_TYPES for t in message_types) else None


def _after_ready_for_query(tail: bytes) -> tuple[str, bytes] | None:
    """Return the status of the last ReadyForQuery and the types of the messages after it.

    Return None if there is no ReadyForQuery, or if the bytes after it are not complete messages.
    """
    start = tail.rfind(_READY_FOR_QUERY_HEADER)
    if start < 0 or len(tail) < start + 6 or tail[start + 5] not in b"ITE":
        return None
    position, message_types = start + 6, bytearray()
    while position < len(tail):
        if len(tail) < position + 5:
            return None
        message_types.append(tail[position])
        length = int.from_bytes(tail[position + 1 : position + 5], "big")
        if length < 4:
            return None
        position += 1 + length
    return (chr(tail[start + 5]), bytes(message_types)) if position == len(tail) else None


def ends_with_fatal_error(tail: bytes) -> bool:
    """Return True if a backend's last bytes are its own ErrorResponse with severity FATAL or PANIC."""
    return tail.endswith(b"\x00\x00") and (b"VFATAL\x00" in tail or b"VPANIC\x00" in tail)


def build_fatal_error(code: str, message: str, hint: str = "") -> bytes:
    """Return an ErrorResponse (54.7, 54.8) of severity FATAL; `code` is its SQLSTATE, `hint` may be empty."""
    fields = [("S", "FATAL"), ("V", "FATAL"), ("C", code), ("M", message), ("H", hint)]
    body = b"".join(
        k.encode() + v.replace("\x00", " ").encode("utf-8", "surrogateescape") + b"\x00"
        for k, v in fields
        if v
    )
    return b"E" + struct.pack("!I", len(body) + 5) + body + b"\x00"


def build_cancel_request(key: bytes) -> bytes:
    """Return the CancelRequest (54.7) for `key`, the body of a BackendKeyData."""
    return struct.pack("!II", 8 + len(key), CANCEL_REQUEST_CODE) + key
