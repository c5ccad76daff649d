"""The client's side of Postgres' protocol 3.0, as far as the agent's sessions need it; everything has a bound.

Source: https://www.postgresql.org/docs/current/protocol-message-formats.html. Queries are simple ones; values come as
text. Text passes as the server's own bytes (client_encoding SQL_ASCII), so that every name can be said back to it.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

# Of one message, and of all messages of an answer, in bytes.
_MESSAGE_LIMIT: Final = 256 * 1024
_ANSWER_LIMIT: Final = 1024 * 1024
_CELLS_LIMIT: Final = 50_000
# Characters of an error's text, and of the name of a function.
_TEXT_LIMIT: Final = 400
_NAME_LIMIT: Final = 64
_PROTOCOL: Final = 3 << 16
_BOOL, _INTEGERS, _FLOATS = 16, frozenset({20, 21, 23, 26}), frozenset({700, 701})

Row = list[Any]


class ServerError(Exception):
    """The server's own error: whether it ends the session, the SQLSTATE, the primary message.

    `routine`: the function of the server's source that reports it; unlike the message it is in no language.
    """

    def __init__(self, fatal: bool, sqlstate: str, message: str, routine: str = "") -> None:
        super().__init__(message)
        self.fatal, self.sqlstate, self.message, self.routine = fatal, sqlstate, message, routine


class ProtocolError(Exception):
    """The server has ended the session, or sent what no Postgres sends or what is beyond a bound."""


class AgentGone(Exception):
    """The agent has ended the session."""


def decode(raw: bytes) -> str:
    """Return the text of the server's bytes; `encode` gives the same bytes back, whatever they are."""
    return raw.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Return a text's bytes, ended by a zero. Raises ProtocolError if it holds a zero itself."""
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ProtocolError("a text with a zero byte")
    return raw + b"\0"


class Connection:
    """A session over a connected socket; `agent` is watched, so that the session ends with the agent."""

    def __init__(self, server: socket.socket, agent: socket.socket) -> None:
        self._server, self._buffer, self._remaining = server, bytearray(), 0
        self._parameters: dict[str, str] = {}
        self._agent_number = agent.fileno()
        self._poll = select.poll()
        self._poll.register(server, select.POLLIN)
        self._poll.register(agent, select.POLLIN)

    def start(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """Log in without a password; return what the server says of itself (`server_version`, …).

        Raises ServerError if it does not let the session in, ProtocolError.
        """
        body = struct.pack("!I", _PROTOCOL)
        for name, value in parameters.items():
            body += encode(name) + encode(value)
        self._send(struct.pack("!I", len(body) + 5) + body + b"\0")
        kind = b""
        while kind != b"Z":
            kind, body = self._message()
            match kind:
                case b"R":
                    if body != bytes(4):
                        raise ProtocolError("it asks for a password")
                case b"E":
                    raise _error_of(body)
                case b"S":
                    self._set_parameter(body)
                case b"K" | b"N" | b"Z":
                    pass
                case _:
                    raise ProtocolError(f"message {kind!r} while the session starts")
        return self._parameters

    def query(self, sql: str) -> list[Row]:
        """Run one simple query; return the rows of its last statement that has any.

        Raises ServerError (unless `fatal`, the session goes on), ProtocolError.
        """
        body = encode(sql)
        self._send(b"Q" + struct.pack("!I", len(body) + 4) + body)
        columns: list[Callable[[bytes], Any]] = []
        rows: list[Row] = []
        error: ServerError | None = None
        while True:
            kind, body = self._message()
            match kind:
                case b"T":
                    columns, rows = _columns_of(body), []
                case b"D":
                    if (len(rows) + 1) * max(1, len(columns)) > _CELLS_LIMIT:
                        raise ProtocolError("an answer with too many rows")
                    rows.append(_row_of(body, columns))
                case b"E":
                    error = _error_of(body)
                    if error.fatal:
                        raise error
                case b"Z":
                    if error:
                        raise error
                    return rows
                case b"C" | b"I" | b"N" | b"S" | b"A":
                    pass
                case _:
                    raise ProtocolError(f"message {kind!r} in an answer")

    def _set_parameter(self, body: bytes) -> None:
        name, _, value = body.partition(b"\0")
        if name == b"server_version":
            self._parameters["server_version"] = decode(value.rstrip(b"\0"))[:_TEXT_LIMIT]

    def _send(self, data: bytes) -> None:
        self._remaining = _ANSWER_LIMIT
        self._server.sendall(data)

    def _message(self) -> tuple[bytes, bytes]:
        kind, length = struct.unpack("!cI", self._take(5))
        if not 4 <= length <= _MESSAGE_LIMIT:
            raise ProtocolError(f"a message of {length} bytes")
        self._remaining -= length + 1
        if self._remaining < 0:
            raise ProtocolError(f"an answer of more than {_ANSWER_LIMIT} bytes")
        return kind, self._take(length - 4)

    def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            ready = [number for number, _ in self._poll.poll()]
            if self._agent_number in ready:
                raise AgentGone
            try:
                chunk = self._server.recv(65536)
            except OSError as error:
                raise ProtocolError(f"the connection failed ({error.strerror})") from error
            if not chunk:
                raise ProtocolError("the server closed the connection")
            self._buffer += chunk
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken


def _columns_of(body: bytes) -> list[Callable[[bytes], Any]]:
    """Return a function for each column of a RowDescription that converts its text."""
    try:
        count, position = struct.unpack_from("!H", body)[0], 2
        types = []
        for _ in range(count):
            position = body.index(b"\0", position) + 1
            types.append(struct.unpack_from("!IHI", body, position)[2])
            position += 18
    except (struct.error, ValueError) as error:
        raise ProtocolError("a description of rows that is cut off") from error
    return [_converter(number) for number in types]


def _converter(type_number: int) -> Callable[[bytes], Any]:
    if type_number == _BOOL:
        return lambda raw: raw == b"t"
    if type_number in _INTEGERS:
        return int
    return float if type_number in _FLOATS else decode


def _row_of(body: bytes, columns: list[Callable[[bytes], Any]]) -> Row:
    try:
        count, position = struct.unpack_from("!H", body)[0], 2
        if count != len(columns):
            raise ProtocolError("a row with another number of columns")
        row: Row = []
        for convert in columns:
            length = struct.unpack_from("!i", body, position)[0]
            position += 4
            if length < 0:
                row.append(None)
                continue
            if position + length > len(body):
                raise ProtocolError("a row that is cut off")
            row.append(convert(body[position : position + length]))
            position += length
    except (struct.error, ValueError) as error:
        raise ProtocolError("a row that cannot be read") from error
    return row


def _error_of(body: bytes) -> ServerError:
    fields = {field[:1]: decode(field[1 : 4 * _TEXT_LIMIT]) for field in body.split(b"\0", 64)[:64] if field}
    severity = fields.get(b"V") or fields.get(b"S", "")
    message = fields.get(b"M", "no message")[:_TEXT_LIMIT]
    routine = fields.get(b"R", "")[:_NAME_LIMIT]
    return ServerError(severity in ("FATAL", "PANIC"), fields.get(b"C", "")[:5], message, routine)
