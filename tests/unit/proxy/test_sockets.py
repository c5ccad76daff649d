"""Sockets that change hands between Python and the event loop, over real connections."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest
import uvloop

from dbranch.proxy.sockets import adopt


class Reader(asyncio.Protocol):
    def __init__(self, ends_at_once: bool) -> None:
        self._ends_at_once = ends_at_once
        self.received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._ends_at_once:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.received.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.received.done():
            self.received.set_result(b"")


@pytest.mark.parametrize("ends_at_once", [False, True])
def test_a_descriptor_that_the_loop_has_taken_is_closed_by_the_loop_alone(ends_at_once: bool) -> None:
    async def take() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _ = server.accept()
        with theirs:
            ours.setblocking(False)
            reader = Reader(ends_at_once)
            await adopt(reader, ours)
            # With a descriptor it would close that number when it is collected, whosever it is by then.
            assert ours.fileno() == -1
            theirs.sendall(b"last words")
            assert await asyncio.wait_for(reader.received, 30) == (b"" if ends_at_once else b"last words")
            assert reader.transport
            reader.transport.abort()
            theirs.settimeout(30)
            assert await asyncio.to_thread(theirs.recv, 1) == b""

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(take())
