"""Frames between the agent and a session's process: JSON with its length before it, bounded on both sides."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any, Final

FRAME_LIMIT: Final = 256 * 1024
_LENGTH: Final = struct.Struct("!I")


class FrameError(Exception):
    """The other side has ended, is too slow, or sent or was to be sent what is no frame."""


def send_frame(sock: socket.socket, value: dict[str, Any]) -> None:
    """Send a value as JSON. Raises FrameError if it is longer than FRAME_LIMIT, or OSError."""
    data = json.dumps(value, separators=(",", ":")).encode()
    if len(data) > FRAME_LIMIT:
        raise FrameError(f"a frame of {len(data)} bytes")
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(sock: socket.socket, deadline: float | None = None) -> dict[str, Any]:
    """Receive a value; wait until `deadline` (`time.monotonic()`), or for ever. Raises FrameError or OSError."""
    length = _LENGTH.unpack(_receive(sock, _LENGTH.size, deadline))[0]
    if length > FRAME_LIMIT:
        raise FrameError(f"a frame of {length} bytes")
    try:
        value = json.loads(_receive(sock, length, deadline))
    except (ValueError, RecursionError) as error:
        raise FrameError("a frame that is no JSON") from error
    if not isinstance(value, dict):
        raise FrameError("a frame that is no object")
    return value


def _receive(sock: socket.socket, length: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < length:
        if deadline is not None:
            # 0 would mean not to wait, and then not to time out.
            sock.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = sock.recv(length - len(data))
        if not chunk:
            raise FrameError("the session has ended")
        data += chunk
    return bytes(data)
