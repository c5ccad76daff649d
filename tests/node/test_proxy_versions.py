"""Versions of the protocol, and when a backend is dialled at all."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import psycopg
import pytest
from tests.node.proxy_backend import USER, Backend, MakeProxy, Proxy, branch_of, wait_until
from tests.node.proxy_talk import message, startup

from dbranch.api.project import Target
from dbranch.proxy import wire


def test_a_client_that_asks_for_protocol_3_2_is_told_what_there_is(proxy: Proxy, main: Backend) -> None:
    """NegotiateProtocolVersion is the backend's word: libpq takes 3.0 of an older one, or refuses it."""
    with main.direct() as direct:
        speaks_3_2 = direct.info.server_version >= 180000
    with proxy.connect(max_protocol_version="3.2") as connection:
        assert connection.pgconn.full_protocol_version == (30002 if speaks_3_2 else 30000)
        assert branch_of(connection) == "main"
    if not speaks_3_2:
        with pytest.raises(psycopg.OperationalError, match="protocol version"):
            proxy.connect(min_protocol_version="3.2", max_protocol_version="3.2")


class Paper32:
    """A backend of protocol 3.2 that lets everybody in; its cancel key has 256 bytes of secret."""

    KEY = struct.pack("!I", 4711) + bytes(range(256))

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.packets: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                taken, _ = self._listening.accept()
            except OSError:
                return
            packet = taken.recv(8192)
            self.packets.append(packet)
            if packet[4:8] != struct.pack("!I", wire.CANCEL_CODE):
                parameter = message(b"S", b"client_encoding\0UTF8\0")
                taken.sendall(
                    message(b"R", bytes(4)) + parameter + message(b"K", self.KEY) + message(b"Z", b"I")
                )
                threading.Thread(target=self._drop, args=[taken], daemon=True).start()
            else:
                taken.close()

    @staticmethod
    def _drop(taken: socket.socket) -> None:
        with taken:
            while taken.recv(8192):
                pass

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def test_protocol_3_2_and_its_long_cancel_key(make_proxy: MakeProxy) -> None:
    paper = Paper32()
    try:
        proxy = make_proxy()
        proxy.apply(active="new", targets={"new": Target("new", "Ready", "127.0.0.1", paper.port)})
        with proxy.connect(max_protocol_version="3.2", min_protocol_version="3.2") as connection:
            assert connection.pgconn.full_protocol_version == 30002
            assert paper.packets[0][4:8] == struct.pack("!HH", 3, 2)
            connection.cancel_safe(timeout=10)
        wait_until(lambda: len(paper.packets) == 2)
        assert paper.packets[1] == wire.cancel_request(paper.KEY)
        wait_until(lambda: not proxy.board.keys)
    finally:
        paper.close()


def test_no_backend_is_dialled_before_a_whole_startup_packet(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.3)
        target = Target("main", "Ready", "127.0.0.1", listening.getsockname()[1])
        proxy.apply(targets={"main": target})
        packet = startup({"user": USER, "database": "postgres"})
        no_starts = [packet[:-1], struct.pack("!II", 8, wire.SSL_CODE), struct.pack("!II", 8, wire.GSS_CODE)]
        no_starts += [b"\x16\x03\x01\x02\x00", struct.pack("!II", 8, 3 << 16), b"\xff" * 8, b""]
        socks = [proxy.raw() for _ in no_starts]
        for sock, sent in zip(socks, no_starts, strict=True):
            sock.sendall(sent)
        with pytest.raises(TimeoutError):
            listening.accept()
        socks[0].sendall(packet[-1:])
        taken, _ = listening.accept()
        with taken:
            assert taken.recv(8192) == packet
        for sock in socks:
            sock.close()
