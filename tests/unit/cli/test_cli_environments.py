"""Other people's environments: kubeconfigs that renew, impersonate and use proxies; ports that are taken; signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import websocket
import yaml

from dbranch.api.errors import ApiError
from dbranch_cli import forward as module
from dbranch_cli.connection import Connection
from dbranch_cli.credentials import Credential, Renewal
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.forward import PodPort, PortForward, open_websocket
from dbranch_cli.kubeconfig import load_kube_context

RUN_CLI = "import sys; sys.argv[0] = 'dbranch'; from dbranch_cli.main import main; main()"


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], int]) -> Iterator[tuple[str, list[Any]]]:
    """Serve an API server whose status codes `answer` returns; yield its URL, and the requests as they come."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            # One handler serves all requests of a connection.
            requests.append(SimpleNamespace(path=self.path, headers=self.headers))
            body = b"{}"
            self.send_response(answer(self))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", requests
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def kubeconfig(path: Path, url: str, user: dict[str, Any], **cluster: str) -> str:
    doc = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url, **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    path.write_text(yaml.safe_dump(doc))
    return str(path)


def plugin(directory: Path, lifetime: timedelta = timedelta(hours=1)) -> dict[str, Any]:
    """Return an exec plugin, named relative to the kubeconfig, whose tokens are t1, t2, …"""
    script = directory / "plugin"
    expires = (datetime.now(UTC) + lifetime).isoformat()
    script.write_text(
        f"#!{sys.executable}\nimport json, pathlib\nfile = pathlib.Path({str(directory / 'count')!r})\n"
        "count = int(file.read_text() if file.exists() else 0) + 1\nfile.write_text(str(count))\n"
        f"print(json.dumps({{'status': {{'token': f't{{count}}', 'expirationTimestamp': {expires!r}}}}}))\n"
    )
    script.chmod(0o755)
    return {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin"}


def test_an_exec_plugin_is_asked_again_when_its_token_is_refused(tmp_path: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> int:
        return 401 if request.headers["Authorization"] == "Bearer t1" else 200

    with server(answer) as (url, requests):
        config = kubeconfig(tmp_path / "config", url, {"exec": plugin(tmp_path)})
        connection = Connection(load_kube_context(config, None, None))
        connection.get("/version")
        connection.get("/version")
    assert [r.headers["Authorization"] for r in requests] == ["Bearer t1", "Bearer t2", "Bearer t2"]


def test_the_time_of_day_is_that_of_the_api_server(tmp_path: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> int:
        request.date_time_string = lambda timestamp=None: "Mon, 14 Jan 2030 11:45:30 GMT"  # type: ignore[method-assign]
        return 200

    with server(answer) as (url, requests):
        config = kubeconfig(tmp_path / "config", url, {"token": "t"})
        connection = Connection(load_kube_context(config, None, None))
        # It is asked once if nothing was asked before.
        for _ in range(2):
            late = connection.server_time() - datetime(2030, 1, 14, 11, 45, 30, tzinfo=UTC)
            assert timedelta(0) <= late < timedelta(minutes=10)
    assert [request.path for request in requests] == ["/version"]


def test_a_token_that_has_expired_is_not_sent(tmp_path: Path) -> None:
    with server(lambda _: 200) as (url, requests):
        config = kubeconfig(tmp_path / "config", url, {"exec": plugin(tmp_path, timedelta(seconds=1))})
        connection = Connection(load_kube_context(config, None, None))
        connection.get("/version")
    assert [r.headers["Authorization"] for r in requests] == ["Bearer t2"]


def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old\n")

    def answer(request: BaseHTTPRequestHandler) -> int:
        return 401 if request.headers["Authorization"] == "Bearer old" else 200

    with server(answer) as (url, requests):
        config = kubeconfig(tmp_path / "config", url, {"tokenFile": "token"})
        connection = Connection(load_kube_context(config, None, None))
        (tmp_path / "token").write_text("new\n")
        connection.get("/version")
        (tmp_path / "token").unlink()
        assert connection.kube_context.renewal
        with pytest.raises(Failure, match="cannot read the kubeconfig's tokenFile") as failure:
            connection.kube_context.renewal.renew(1)
    assert [r.headers["Authorization"] for r in requests] == ["Bearer old", "Bearer new"]
    assert failure.value.code == ExitCode.FORBIDDEN


def test_a_credential_that_stays_refused_is_an_error_and_not_a_loop(tmp_path: Path) -> None:
    with server(lambda _: 401) as (url, requests):
        connection = Connection(
            load_kube_context(kubeconfig(tmp_path / "c", url, {"exec": plugin(tmp_path)}), None, None)
        )
        with pytest.raises(ApiError):
            connection.get("/version")
    assert len(requests) == 2


def test_many_threads_renew_once() -> None:
    loads: list[int] = []

    def load() -> Credential:
        loads.append(1)
        return Credential({"token": "x"})

    renewal = Renewal(load)
    together = threading.Barrier(8)

    def renew() -> None:
        together.wait()
        renewal.renew(0)

    threads = [threading.Thread(target=renew) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    renewal.renew(1)
    assert len(loads) == 2


def test_a_port_forward_renews_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = kubeconfig(tmp_path / "config", "http://127.0.0.1:1", {"exec": plugin(tmp_path), "as": "jane"})
    connection = Connection(load_kube_context(config, None, None))
    sent: list[list[str]] = []

    def create_connection(_: str, **options: Any) -> str:
        sent.append(options["header"])
        if len(sent) == 1:
            raise websocket.WebSocketBadStatusException("%s %s", 401, "Unauthorized")
        return "tunnel"

    monkeypatch.setattr(websocket, "create_connection", create_connection)
    assert open_websocket(connection, PodPort("team", "pod", 5432)) == "tunnel"  # type: ignore[comparison-overlap]
    assert sent == [
        ["Authorization: Bearer t1", "Impersonate-User: jane"],
        ["Authorization: Bearer t2", "Impersonate-User: jane"],
    ]


def test_impersonation_is_obeyed(tmp_path: Path) -> None:
    user = {
        "token": "t",
        "as": "jane",
        "as-uid": "7",
        "as-groups": ["devs", "ops"],
        "as-user-extra": {"scopes": ["view"]},
    }
    with server(lambda _: 200) as (url, requests):
        Connection(load_kube_context(kubeconfig(tmp_path / "c", url, user), None, None)).get("/version")
    headers = requests[0].headers
    assert headers["Authorization"] == "Bearer t" and headers["Impersonate-User"] == "jane"
    assert headers.get_all("Impersonate-Group") == ["devs", "ops"]
    assert (headers["Impersonate-Uid"], headers["Impersonate-Extra-scopes"]) == ("7", "view")
    with pytest.raises(Failure, match="cannot stand in the header Impersonate-User"):
        load_kube_context(kubeconfig(tmp_path / "c", url, {"as": "a\nb"}), None, None)


def test_the_clusters_proxy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with server(lambda _: 200) as (proxy, requests):
        config = kubeconfig(tmp_path / "c", "http://api.example", {}, **{"proxy-url": proxy})
        Connection(load_kube_context(config, None, None)).get("/version")
    assert requests[0].path == "http://api.example/version"
    options = module._proxy_options("http://me:p%40ss@proxy:3128")
    assert (options["http_proxy_host"], options["http_proxy_port"]) == ("proxy", 3128)
    assert options["http_proxy_auth"] == ("me", "p@ss") and module._proxy_options("") == {}


def test_a_proxy_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    config = kubeconfig(tmp_path / "c", "http://api", {}, **{"proxy-url": "socks5://proxy"})
    with pytest.raises(Failure, match="proxy-url socks5://proxy of the cluster is not supported"):
        load_kube_context(config, None, None)


def test_a_port_that_somebody_has_on_ipv6_is_refused() -> None:
    try:
        other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with other:
        port = other.getsockname()[1]
        with pytest.raises(Failure, match=rf"cannot listen on \[::1\]:{port}: Address already in use"):
            module._listen(port)
        # And the IPv4 one is free again.
        socket.create_server(("127.0.0.1", port)).close()


def test_a_free_port_is_free_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    real = module._listen_on

    def listen_on(address: str, port: int, family: socket.AddressFamily) -> socket.socket | None:
        if family == socket.AF_INET6:
            tried.append(port)
            if len(tried) < 3:
                raise Failure(ExitCode.OTHER, "PortTaken", "taken")
            return None
        return real(address, port, family)

    monkeypatch.setattr(module, "_listen_on", listen_on)
    (listening,) = module._listen(0)
    with listening:
        assert listening.getsockname()[1] == tried[2]


def test_too_many_open_files_do_not_end_the_forwarding(monkeypatch: pytest.MonkeyPatch) -> None:
    served = threading.Event()

    class Listening:
        """Fails once as accept(2) does with too many open files, then has a client, then is closed."""

        answers: list[Any] = [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), socket.socketpair()]

        def accept(self) -> tuple[socket.socket, str]:
            if not self.answers:
                served.wait(10)
                raise OSError(errno.EBADF, "closed")
            answer = self.answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer[0], ""

        def fileno(self) -> int:
            return 7

        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", 1

    notes: list[str] = []
    monkeypatch.setattr(module, "_listen", lambda _: [Listening()])
    monkeypatch.setattr(module, "_ACCEPT_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(PortForward, "_forward", lambda *_: served.set())
    PortForward(None, lambda: PodPort("n", "p", 1), 0, notes.append)  # type: ignore[arg-type]
    assert served.wait(10)
    assert notes == [f"cannot accept a connection: {os.strerror(errno.EMFILE)}"]


def test_sigterm_removes_the_private_files(tmp_path: Path) -> None:
    """The server never answers, so that the command is in a request when the signal comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        data = b64encode(b"secret").decode()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        user = {"client-certificate-data": data, "client-key-data": data}
        config = kubeconfig(tmp_path / "config", url, user)
        files = tmp_path / "tmp"
        files.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", RUN_CLI, "projects", "--kubeconfig", config],
            env={**os.environ, "TMPDIR": str(files)},
            stderr=subprocess.PIPE,
        )
        try:
            silent.settimeout(60)
            client, _ = silent.accept()
            with client:
                assert list(files.iterdir())
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
            process.communicate()
    assert not list(files.iterdir())


def test_an_exec_plugin_that_answers_nonsense_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "nonsense"
    script.write_text(f"#!/bin/sh\necho {json.dumps(json.dumps({'status': None}))}\n")
    script.chmod(0o755)
    config = kubeconfig(tmp_path / "c", "http://api", {"exec": {"command": "./nonsense"}})
    with pytest.raises(Failure, match="nonsense failed"):
        load_kube_context(config, None, None)
