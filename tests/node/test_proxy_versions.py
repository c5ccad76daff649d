"""Protocol versions, and that a backend is dialled only after a complete startup packet."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import psycopg
import pytest
from tests.node.proxy_backend import USER, Backend, MakeProxy, Proxy, branch_of, wait_until
from tests.node.proxy_talk import build_message, build_startup

from dbranch.api.project import Target
from dbranch.proxy import wire


def test_protocol_3_2_is_negotiated_with_the_backend(proxy: Proxy, main: Backend) -> None:
    """NegotiateProtocolVersion comes from the backend: libpq accepts 3.0 from an older one, or fails."""
    with main.direct() as direct:
        speaks_3_2 = direct.info.server_version >= 180000
    with proxy.connect(max_protocol_version="3.2") as connection:
        assert connection.pgconn.full_protocol_version == (30002 if speaks_3_2 else 30000)
        assert branch_of(connection) == "main"
    if not speaks_3_2:
        with pytest.raises(psycopg.OperationalError, match="protocol version"):
            proxy.connect(min_protocol_version="3.2", max_protocol_version="3.2")


class FakeBackend32:
    """A backend of protocol 3.2 that accepts every login; its cancel key has a secret of 256 bytes."""

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
                accepted, _ = self._listening.accept()
            except OSError:
                return
            packet = accepted.recv(8192)
            self.packets.append(packet)
            if packet[4:8] != struct.pack("!I", wire.CANCEL_REQUEST_CODE):
                parameter = build_message(b"S", b"client_encoding\0UTF8\0")
                accepted.sendall(
                    build_message(b"R", bytes(4))
                    + parameter
                    + build_message(b"K", self.KEY)
                    + build_message(b"Z", b"I")
                )
                threading.Thread(target=self._discard, args=[accepted], daemon=True).start()
            else:
                accepted.close()

    @staticmethod
    def _discard(accepted: socket.socket) -> None:
        with accepted:
            while accepted.recv(8192):
                pass

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def test_protocol_3_2_and_its_long_cancel_key(make_proxy: MakeProxy) -> None:
    backend = FakeBackend32()
    try:
        proxy = make_proxy()
        proxy.apply(active="new", targets={"new": Target("new", "Ready", "127.0.0.1", backend.port)})
        with proxy.connect(max_protocol_version="3.2", min_protocol_version="3.2") as connection:
            assert connection.pgconn.full_protocol_version == 30002
            assert backend.packets[0][4:8] == struct.pack("!HH", 3, 2)
            connection.cancel_safe(timeout=10)
        wait_until(lambda: len(backend.packets) == 2)
        assert backend.packets[1] == wire.build_cancel_request(backend.KEY)
        wait_until(lambda: not proxy.switchboard.cancel_keys)
    finally:
        backend.close()


def test_no_backend_is_dialled_before_a_complete_startup_packet(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.3)
        target = Target("main", "Ready", "127.0.0.1", listening.getsockname()[1])
        proxy.apply(targets={"main": target})
        packet = build_startup({"user": USER, "database": "postgres"})
        incomplete = [
            packet[:-1],
            struct.pack("!II", 8, wire.SSL_REQUEST_CODE),
            struct.pack("!II", 8, wire.GSSENC_REQUEST_CODE),
        ]
        incomplete += [b"\x16\x03\x01\x02\x00", struct.pack("!II", 8, 3 << 16), b"\xff" * 8, b""]
        socks = [proxy.raw() for _ in incomplete]
        for sock, sent in zip(socks, incomplete, strict=True):
            sock.sendall(sent)
        with pytest.raises(TimeoutError):
            listening.accept()
        socks[0].sendall(packet[-1:])
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.recv(8192) == packet
        for sock in socks:
            sock.close()
