"""A Postgres of a hostile tenant: listens on a Unix socket, and answers each session in one way.

    python fake_postgres.py SOCKET BEHAVIOUR

Standard library only: it runs as the tenant, who cannot read this repository.
"""

import contextlib
import os
import socket
import struct
import sys
import threading
import time


def message(kind, body):
    return kind + struct.pack("!I", len(body) + 4) + body


READY = message(b"Z", b"I")
ADMITTED = message(b"R", struct.pack("!I", 0))
VERSION = message(b"S", b"server_version\x0017.6\0")
STARTED = ADMITTED + VERSION + message(b"K", bytes(8)) + READY
COLUMN = message(b"T", struct.pack("!H", 1) + b"c\0" + struct.pack("!IHIhih", 0, 0, 25, -1, -1, 0))
MEBIBYTE = message(b"D", struct.pack("!HI", 1, 2**20) + bytes(2**20))
ERROR = message(b"E", b"SERROR\0VERROR\0CXX000\0M" + b"x" * 2**16 + b"\0\0")
# Forged lengths: a gibibyte is announced, a negative number of bytes.
HUGE, NEGATIVE = b"D" + struct.pack("!I", 2**30), b"D" + struct.pack("!I", 2)
# One row of 60 KB whose fields are all empty.
MANY_FIELDS = message(b"T", struct.pack("!H", 0)) + message(b"D", struct.pack("!H", 15000) + bytes(60000))


def flood(client, data):
    while True:
        client.sendall(data)


def answer(client, behaviour):
    if behaviour == "silent":
        time.sleep(3600)
    client.recv(65536)
    if behaviour == "rejects":
        client.sendall(message(b"E", b"SFATAL\0VFATAL\0C57P03\0Mstarting\nup \x1b[2J\0\0"))
        return
    if behaviour == "parameters":
        flood(client, message(b"S", b"name\0" + b"v" * 2**16 + b"\0"))
    if behaviour == "early errors":
        flood(client, ERROR)
    client.sendall(STARTED)
    client.recv(65536)
    match behaviour:
        case "rows":
            client.sendall(COLUMN)
            flood(client, MEBIBYTE)
        case "small rows":
            client.sendall(COLUMN)
            flood(client, message(b"D", struct.pack("!HI", 1, 3) + b"abc") * 10000)
        case "errors":
            flood(client, ERROR)
        case "notices":
            flood(client, message(b"N", ERROR[5:]))
        case "huge":
            client.sendall(HUGE)
            flood(client, bytes(2**16))
        case "negative":
            client.sendall(NEGATIVE)
        case "fields":
            client.sendall(MANY_FIELDS)
        case "noise":
            flood(client, os.urandom(2**16))
        case "trickle":
            for byte in COLUMN * 1000:
                client.sendall(bytes([byte]))
                time.sleep(0.05)
        case "closes":
            return
    time.sleep(3600)


def main():
    path, behaviour = sys.argv[1:]
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(0 if behaviour == "full" else 64)
    print("ready", flush=True)
    if behaviour == "full":
        fill = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                break
            fill.append(client)
        print("full", flush=True)
        time.sleep(3600)
    while True:
        client, _ = server.accept()

        def serve(client=client):
            with client, contextlib.suppress(OSError):
                answer(client, behaviour)

        threading.Thread(target=serve, daemon=True).start()


main()
