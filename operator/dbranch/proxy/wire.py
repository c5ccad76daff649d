"""The Postgres protocol as far as a proxy needs it: bytes in, events out. No I/O, no clock.

Sources: PostgreSQL manual, "Message Flow" and "Message Formats", protocol 3.0 and 3.2;
`ProcessStartupPacket` in the server for limits and error texts.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

CANCEL_CODE: Final = 80877102
SSL_CODE: Final = 80877103
GSS_CODE: Final = 80877104

# The server's own bounds, in bytes: a startup packet, and a cancel key (3.2 allows 256).
MAX_STARTUP: Final = 10000
MAX_KEY: Final = 256
# How much of what a backend sent last is kept to find a message boundary in.
WINDOW: Final = 512
# The longest first ErrorResponse that is held back to look at its code.
MAX_HELD_ERROR: Final = 8192

BRANCH_OPTION: Final = "dbranch.branch"
TERMINATE: Final = b"X\x00\x00\x00\x04"
_READY: Final = b"Z\x00\x00\x00\x05"
# What a backend may send unasked, also after ReadyForQuery: notification, parameter, notice.
UNASKED: Final = b"ASN"


@dataclass(frozen=True)
class AskedSsl:
    """SSLRequest: answer `S` and go on in TLS, or `N` and go on as it was."""


@dataclass(frozen=True)
class AskedGss:
    """GSSENCRequest: answer `N`."""


@dataclass(frozen=True)
class DirectTls:
    """The client began with TLS at once; `data` is what it sent so far, all of it TLS."""

    data: bytes


@dataclass(frozen=True)
class Cancel:
    """CancelRequest. `key` is process ID and secret as in BackendKeyData; `packet` the whole request."""

    key: bytes
    packet: bytes


@dataclass(frozen=True)
class Startup:
    """StartupMessage. `packet` is to be forwarded as it is, `rest` what the client sent behind it.

    `branch` is the one that the client named, or None for the active one.
    """

    packet: bytes
    rest: bytes = b""
    parameters: Mapping[str, str] = field(default_factory=dict)
    branch: str | None = None


@dataclass(frozen=True)
class Malformed:
    """What came is no start of the protocol. `code` is the SQLSTATE to answer with."""

    message: str
    code: str = "08P01"


Event = AskedSsl | AskedGss | DirectTls | Cancel | Startup | Malformed


class Opening:
    """The client's side of a connection until its startup packet is whole.

    `feed` returns one event, or None while more bytes are needed. After AskedSsl, AskedGss (answer
    sent) and DirectTls (TLS established: call `encrypted`) it goes on; every other event is the last.
    At most MAX_STARTUP bytes are kept beside the last chunk.
    """

    __slots__ = ("_buffer", "_first", "_gss", "_ssl")

    def __init__(self) -> None:
        self._buffer = b""
        self._first = True
        self._ssl = self._gss = False

    @property
    def began(self) -> bool:
        """True once the client has sent anything."""
        return not self._first or bool(self._buffer)

    def encrypted(self) -> None:
        """From now on what is fed has come through TLS: no further SSLRequest or TLS is taken."""
        self._ssl = self._gss = True
        self._first = False

    def feed(self, data: bytes) -> Event | None:
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        if self._first and data[:1] == b"\x16":
            self._first = False
            return DirectTls(data)
        if len(data) < 4:
            self._buffer = data
            return None
        length = int.from_bytes(data[:4], "big")
        if not 8 <= length <= MAX_STARTUP:
            return Malformed("invalid length of startup packet")
        if len(data) < length:
            self._buffer = data
            return None
        self._first = False
        return self._packet(data[:length], data[length:])

    def _packet(self, packet: bytes, rest: bytes) -> Event:
        code = int.from_bytes(packet[4:8], "big")
        if code == CANCEL_CODE:
            key = packet[8:]
            if not 8 <= len(key) <= 4 + MAX_KEY:
                return Malformed("invalid length of cancel request")
            return Cancel(key, packet)
        if code in (SSL_CODE, GSS_CODE) and len(packet) == 8:
            kind = "SSL" if code == SSL_CODE else "GSSAPI encryption"
            # What came in the clear behind the request could have been put in by someone on the way.
            if rest:
                return Malformed(f"received unencrypted data after {kind} request")
            if code == SSL_CODE and not self._ssl:
                self._ssl = True
                return AskedSsl()
            if code == GSS_CODE and not self._gss:
                self._gss = True
                return AskedGss()
        if code >> 16 != 3:
            return Malformed(
                f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: use 3.0 to 3.2", "0A000"
            )
        return _startup(packet, rest)


def _startup(packet: bytes, rest: bytes) -> Event:
    body = packet[8:]
    if body[-1:] != b"\x00":
        return Malformed("invalid startup packet layout: expected terminator as last byte")
    words = body[:-1].split(b"\x00")
    # Each name and value ends in NUL, so that the split leaves one empty word behind them.
    if words.pop() or len(words) % 2 or not all(words[::2]):
        return Malformed("invalid startup packet layout: names and values do not pair")
    text = [w.decode("utf-8", "surrogateescape") for w in words]
    parameters = dict(zip(text[::2], text[1::2], strict=True))
    return Startup(packet, rest, parameters, _branch_of(parameters))


def _branch_of(parameters: Mapping[str, str]) -> str | None:
    """The branch that a client names: by the startup parameter, or else within `options`."""
    by_name = [v for k, v in parameters.items() if k.lower() == BRANCH_OPTION]
    named = by_name[-1] if by_name else _branch_in_options(parameters.get("options", ""))
    return named or None


def _branch_in_options(options: str) -> str:
    """As the server reads `options`: split at spaces, `-c name=value` or `--name=value`, last one wins."""
    words, branch, at = _split_options(options), "", 0
    while at < len(words):
        word, at = words[at], at + 1
        if word == "-c" and at < len(words):
            setting, at = words[at], at + 1
        elif word.startswith("-c") or (word.startswith("--") and len(word) > 2):
            setting = word[2:]
        else:
            continue
        name, _, value = setting.partition("=")
        if name.lower().replace("-", "_") == BRANCH_OPTION:
            branch = value
    return branch


def _split_options(options: str) -> list[str]:
    """Words separated by white space; a backslash takes the next character as it is."""
    words: list[str] = []
    word, inside, escaped = "", False, False
    for char in options:
        if escaped:
            word, escaped = word + char, False
        elif char == "\\":
            inside = escaped = True
        elif char in " \t\n\r\f\v":
            if inside:
                words.append(word)
            word, inside = "", False
        else:
            word, inside = word + char, True
    return [*words, word] if inside else words


class Greeting:
    """The backend's side until its first ReadyForQuery: messages are counted off, not changed.

    `key` is the body of BackendKeyData, `ready` says that ReadyForQuery has come, `refused` that an
    ErrorResponse has, `boundary` that the bytes fed so far end where a message ends.
    """

    __slots__ = ("_head", "_key", "_skip", "key", "ready", "refused")

    def __init__(self) -> None:
        self._head = b""
        self._skip = 0
        self._key: bytearray | None = None
        self.key: bytes | None = None
        self.ready = self.refused = False

    @property
    def boundary(self) -> bool:
        return not self._head and not self._skip

    def feed(self, data: bytes) -> None:
        at, end = 0, len(data)
        while at < end and not self.ready:
            if self._skip:
                take = min(self._skip, end - at)
                if self._key is not None:
                    self._key += data[at : at + take]
                self._skip -= take
                at += take
            else:
                take = 5 - len(self._head)
                self._head += data[at : at + take]
                at += take
                if len(self._head) < 5:
                    return
                length = int.from_bytes(self._head[1:], "big")
                self._skip = max(length - 4, 0)
                if self._head[:1] == b"K" and 12 <= length <= 8 + MAX_KEY:
                    self._key = bytearray()
            if not self._skip:
                self._close_message()

    def _close_message(self) -> None:
        kind, self._head = self._head[:1], b""
        if self._key is not None:
            self.key, self._key = bytes(self._key), None
        self.ready = kind == b"Z"
        self.refused = self.refused or kind == b"E"


def held_error(data: bytes) -> str | None:
    """Of a backend's very first bytes: the SQLSTATE where they are one whole ErrorResponse.

    None: they are another message. An empty string: more bytes are needed to tell.
    """
    if data[:1] != b"E":
        return None
    if len(data) < 5:
        return ""
    length = int.from_bytes(data[1:5], "big")
    if not 4 < length <= MAX_HELD_ERROR:
        return None
    if len(data) < 1 + length:
        return ""
    fields = data[5 : 1 + length].split(b"\x00")
    return next((f[1:].decode("ascii", "replace") for f in fields if f[:1] == b"C"), "?")


def at_boundary(tail: bytes) -> bool:
    """Whether a backend's stream whose last bytes are `tail` ends where a message ends, as far as is known.

    Looked for from the last ReadyForQuery in `tail`; without one the answer is False, since nothing
    counts messages while bytes are only forwarded.
    """
    return _behind_ready(tail) is not None


def transaction_status(tail: bytes) -> str | None:
    """`I`, `T` or `E` of the last ReadyForQuery where only unasked messages follow it; else None: busy."""
    found = _behind_ready(tail)
    if found is None:
        return None
    status, kinds = found
    return status if all(k in UNASKED for k in kinds) else None


def _behind_ready(tail: bytes) -> tuple[str, bytes] | None:
    """Status of the last ReadyForQuery, and the types of the whole messages from there to the end."""
    start = tail.rfind(_READY)
    if start < 0 or len(tail) < start + 6 or tail[start + 5] not in b"ITE":
        return None
    at, kinds = start + 6, bytearray()
    while at < len(tail):
        if len(tail) < at + 5:
            return None
        kinds.append(tail[at])
        length = int.from_bytes(tail[at + 1 : at + 5], "big")
        if length < 4:
            return None
        at += 1 + length
    return (chr(tail[start + 5]), bytes(kinds)) if at == len(tail) else None


def only_unasked(data: bytes) -> bool:
    """Whether `data`, read from a message boundary, is whole messages that a backend sends unasked."""
    at = 0
    while at < len(data):
        if data[at] not in UNASKED or len(data) < at + 5:
            return False
        at += 1 + max(int.from_bytes(data[at + 1 : at + 5], "big"), 4)
    return at == len(data)


def said_farewell(tail: bytes) -> bool:
    """Whether a backend's last bytes are its own FATAL or PANIC ErrorResponse."""
    return tail.endswith(b"\x00\x00") and (b"VFATAL\x00" in tail or b"VPANIC\x00" in tail)


def fatal(code: str, message: str, hint: str = "") -> bytes:
    """An ErrorResponse that ends a session: FATAL with SQLSTATE, message and, if any, a hint."""
    fields = [("S", "FATAL"), ("V", "FATAL"), ("C", code), ("M", message), ("H", hint)]
    body = b"".join(
        k.encode() + v.replace("\x00", " ").encode("utf-8", "surrogateescape") + b"\x00"
        for k, v in fields
        if v
    )
    return b"E" + struct.pack("!I", len(body) + 5) + body + b"\x00"


def cancel_request(key: bytes) -> bytes:
    """The CancelRequest of the session that has this BackendKeyData."""
    return struct.pack("!II", 8 + len(key), CANCEL_CODE) + key
