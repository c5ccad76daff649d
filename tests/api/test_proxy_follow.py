"""The proxy's process against a real API server: what it obeys, and the entry that it writes.

Nothing else of dbranch runs here: the project's status is written by hand, as the controller would.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dbranch.api import names

SOON = 15.0
READY = b"Z\0\0\0\x05I"
SOURCES = Path(__file__).parents[2] / "operator"
MANAGER = "--field-manager=" + names.CONTROLLER_MANAGER


def kubectl(*words: str, stdin: str = "") -> str:
    done = subprocess.run(["kubectl", *words], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout


def wait_until(true: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


class Server:
    """A thread for each connection to a port of its own."""

    def __init__(self) -> None:
        self._sock = listener()
        self.port: int = self._sock.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                taken, _ = self._sock.accept()
            except OSError:
                return
            self._open.add(taken)
            threading.Thread(target=self._run, args=[taken], daemon=True).start()

    def _run(self, taken: socket.socket) -> None:
        with taken, suppress(OSError):
            self.serve(taken)

    def serve(self, taken: socket.socket) -> None:
        """One connection; it is closed when this returns."""

    def cut(self) -> None:
        """Ends every connection that is open."""
        for one in tuple(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            self._open.discard(one)

    def close(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self.cut()


class Backend(Server):
    """Lets everybody in, as a Postgres with `trust` does; its name is a parameter that it reports."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__()

    def serve(self, taken: socket.socket) -> None:
        taken.recv(8192)
        parameter = b"cluster_name\0" + self.name.encode() + b"\0"
        status = b"S" + struct.pack("!I", 4 + len(parameter)) + parameter
        taken.sendall(b"R\0\0\0\x08\0\0\0\0" + status + READY)
        while taken.recv(8192):
            pass


class Way(Server):
    """Between the proxy and the API server, so that it can be cut. `up` False: nobody gets through."""

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self.up = True
        super().__init__()

    def serve(self, taken: socket.socket) -> None:
        if not self.up:
            return
        with socket.create_connection(self._to) as out:
            self._open.add(out)
            threading.Thread(target=self._pump, args=[out, taken], daemon=True).start()
            self._pump(taken, out)

    @staticmethod
    def _pump(source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)
        for one in (source, to):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    assert os.environ.get("KUBECONFIG"), 'no cluster: hack/cluster up, then eval "$(hack/cluster env)"'
    name = f"proxy-follow-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


PODS = ("shop-proxy-1", "shop-proxy-2")


@pytest.fixture(scope="module")
def account(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `ca.crt` and a token for each of PODS, of an account that may what a proxy's may.

    A token speaks for its pod (the policy `dbranch-proxy-entry` looks at that); no node has the label that
    these pods ask for, so that they exist and never run.
    """
    rules: list[dict[str, Any]] = [
        {"resources": [names.PROJECTS], "verbs": ["get", "list", "watch"]},
        {"resources": [f"{names.PROJECTS}/status"], "verbs": ["patch"]},
    ]
    name = names.proxy_name("shop")
    rbac = "rbac.authorization.k8s.io"
    objects = [
        {"apiVersion": "v1", "kind": "ServiceAccount"},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "rules": [r | {"apiGroups": [names.GROUP], "resourceNames": ["shop"]} for r in rules],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    ]
    for one in objects:
        kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(one | {"metadata": {"name": name}}))
    context = tmp_path_factory.mktemp("account")
    for pod in PODS:
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod},
            "spec": {
                "serviceAccountName": name,
                "nodeSelector": {"dbranch.io/none": "here"},
                "containers": [{"name": "proxy", "image": "none"}],
            },
        }
        kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(body))
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"]
        (context / pod).write_text(kubectl("create", "token", "-n", namespace, name, *bound))
    (context / "ca.crt").write_bytes(base64.b64decode(cluster()["certificate-authority-data"]))
    return context


def cluster() -> dict[str, str]:
    config = json.loads(kubectl("config", "view", "--minify", "--raw", "-o", "json"))
    found: dict[str, str] = config["clusters"][0]["cluster"]
    return found


@pytest.fixture
def way() -> Iterator[Way]:
    url = urlsplit(cluster()["server"])
    made = Way(url.hostname or "", url.port or 443)
    yield made
    made.close()


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    made = {name: Backend(name) for name in ("main", "feature-x")}
    yield made
    for one in made.values():
        one.close()


class Shop:
    """The project, and its status as the controller writes it."""

    def __init__(self, namespace: str, backends: dict[str, Backend]) -> None:
        self.namespace = namespace
        self.routes = [
            {"branch": b.name, "address": "127.0.0.1", "port": b.port, "state": "Ready"}
            for b in backends.values()
        ]

    def make(self, **proxy: Any) -> None:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.PROJECT_KIND,
            "metadata": {"name": "shop"},
            # No node has this label: a controller that runs in this cluster leaves the project alone.
            "spec": {"storage": {"nodeSelector": {"dbranch.io/none": "here"}}, "proxy": proxy},
        }
        kubectl("apply", "-n", self.namespace, "-f", "-", stdin=json.dumps(body))

    def delete(self) -> None:
        kubectl("delete", "-n", self.namespace, names.PROJECTS, "shop", "--ignore-not-found")

    def route(self, generation: int, branch: str) -> None:
        status = {"route": {"generation": generation, "branch": branch}, "routes": self.routes}
        self.patch(status)

    def patch(self, status: dict[str, Any]) -> None:
        words = ["patch", "-n", self.namespace, names.PROJECTS, "shop", "--subresource=status", MANAGER]
        kubectl(*words, "--type=merge", "-p", json.dumps({"status": status}))

    def get(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(
            kubectl("get", "-n", self.namespace, names.PROJECTS, "shop", "-o", "json")
        )
        return body

    def entries(self) -> dict[str, dict[str, Any]]:
        return {e["pod"]: e for e in self.get().get("status", {}).get("proxies", [])}

    def generation_of(self, pod: str) -> int | None:
        found: int | None = self.entries().get(pod, {}).get("generation")
        return found


@pytest.fixture
def shop(namespace: str, backends: dict[str, Backend]) -> Iterator[Shop]:
    made = Shop(namespace, backends)
    made.make()
    yield made
    made.delete()


class Proxy:
    """The real process, as the pod `pod`."""

    def __init__(self, pod: str, namespace: str, account: Path, way: Way, log: Path) -> None:
        self.pod, self.port, self.health, self.log = pod, free_port(), free_port(), log
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SOURCES),
            "DBRANCH_PROJECT": "shop",
            "DBRANCH_PROJECT_NAMESPACE": namespace,
            "DBRANCH_POD_NAME": pod,
            "DBRANCH_API_SERVER": f"https://127.0.0.1:{way.port}",
            "DBRANCH_API_TOKEN": str(account / pod),
            "DBRANCH_API_CA": str(account / "ca.crt"),
            "DBRANCH_PORT": str(self.port),
            "DBRANCH_HEALTH_PORT": str(self.health),
            "DBRANCH_WITHDRAW_SECONDS": "0.2",
            "DBRANCH_GRACE_SECONDS": "5",
            "DBRANCH_LOG_FORMAT": "json",
        }
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dbranch.main", "proxy"], env=env, stdout=out, stderr=out
            )

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/{path}", timeout=5) as answer:
                code: int = answer.status
                return code
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.status("readyz") == 200

    def open(self) -> socket.socket:
        body = b"user\0ann\0database\0shop\0\0"
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.sendall(struct.pack("!II", 8 + len(body), 3 << 16) + body)
        return sock

    def reached(self) -> str:
        """The backend that a new session reaches, or the code and message that it gets instead."""
        with self.open() as sock:
            data = b""
            while not data.endswith(READY) and (part := sock.recv(8192)):
                data += part
        if data[:1] == b"E":
            fields = {f[:1]: f[1:].decode() for f in data[5:].split(b"\0")}
            return f"{fields[b'C']} {fields[b'M']}"
        return data.split(b"cluster_name\0")[1].split(b"\0")[0].decode()

    def stop(self, by: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(by)
        return self.process.wait(15)


StartProxy = Callable[..., Proxy]


@pytest.fixture
def start(namespace: str, account: Path, way: Way, tmp_path: Path) -> Iterator[StartProxy]:
    started: list[Proxy] = []

    def start(pod: str = PODS[0], ready: bool = True) -> Proxy:
        proxy = Proxy(pod, namespace, account, way, tmp_path / f"{pod}.log")
        started.append(proxy)
        if ready:
            wait_until(proxy.ready, 15)
        return proxy

    yield start
    for proxy in started:
        proxy.stop(signal.SIGKILL)


def test_the_entry_follows_each_generation(shop: Shop, start: StartProxy) -> None:
    shop.route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1, SOON)
    assert proxy.reached() == "main"
    for generation in range(2, 8):
        branch = ("main", "feature-x")[generation % 2]
        shop.route(generation, branch)
        wait_until(lambda g=generation: shop.generation_of(proxy.pod) == g, SOON)  # type: ignore[misc]
        assert proxy.reached() == branch


def test_an_entry_is_only_written_when_something_is_new(shop: Shop, start: StartProxy) -> None:
    shop.route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1, SOON)
    before = shop.get()["metadata"]["resourceVersion"]
    time.sleep(12)
    assert shop.get()["metadata"]["resourceVersion"] == before


def test_entries_of_several_writers_stand_side_by_side(shop: Shop, start: StartProxy) -> None:
    shop.route(1, "main")
    one, two = (start(pod) for pod in PODS)
    wait_until(lambda: shop.entries().keys() == {one.pod, two.pod}, SOON)
    # Another manager's merge patch leaves them alone.
    shop.patch({"branches": 2, "host": "shop.here.svc"})
    assert shop.entries().keys() == {one.pod, two.pod}
    shop.route(2, "feature-x")
    wait_until(lambda: {e["generation"] for e in shop.entries().values()} == {2}, SOON)
    assert one.stop() == 0
    assert shop.entries().keys() == {two.pod}


def test_an_entry_that_somebody_takes_away_comes_back(shop: Shop, start: StartProxy) -> None:
    shop.route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1, SOON)
    shop.patch({"proxies": []})
    wait_until(lambda: shop.generation_of(proxy.pod) == 1, SOON)


def test_sessions_are_counted_in_the_entry(shop: Shop, start: StartProxy) -> None:
    shop.route(1, "main")
    proxy = start()
    with proxy.open(), proxy.open():
        wait_until(lambda: shop.entries().get(proxy.pod, {}).get("sessions") == 2, 12)
    wait_until(lambda: shop.entries()[proxy.pod]["sessions"] == 0, 12)


def test_it_serves_only_after_it_has_read(shop: Shop, start: StartProxy, way: Way) -> None:
    shop.route(1, "feature-x")
    way.up = False
    proxy = start(ready=False)
    wait_until(lambda: proxy.status("healthz") == 200, 15)
    time.sleep(1)
    assert proxy.status("readyz") == 503
    with pytest.raises(ConnectionRefusedError):
        proxy.open()
    assert shop.entries() == {}
    way.up = True
    wait_until(proxy.ready, 15)
    assert proxy.reached() == "feature-x"


def test_a_watch_that_is_cut_is_taken_up_again(shop: Shop, start: StartProxy, way: Way) -> None:
    shop.route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1, SOON)
    way.up = False
    way.cut()
    shop.route(2, "feature-x")
    time.sleep(1)
    # What it knew last stays in force, and nobody is told otherwise.
    assert proxy.reached() == "main"
    assert shop.generation_of(proxy.pod) == 1
    way.up = True
    wait_until(lambda: shop.generation_of(proxy.pod) == 2, 15)
    assert proxy.reached() == "feature-x"


def test_sigterm_ends_its_sessions_and_takes_its_entry_away(shop: Shop, start: StartProxy) -> None:
    shop.route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1, SOON)
    with proxy.open() as sock:
        assert b"main" in sock.recv(8192)
        assert proxy.stop() == 0
        last = b""
        while part := sock.recv(8192):
            last += part
        assert b"C57P01\0" in last and b"the proxy is stopping" in last
    assert shop.entries() == {}


def test_a_stopping_proxy_still_obeys(shop: Shop, start: StartProxy) -> None:
    """Until it ends, what it says is waited for: a session that is left on it must not be on its own."""
    shop.make(onSwitch="Keep")
    shop.route(1, "main")
    proxy = start()
    with proxy.open() as sock:
        assert b"main" in sock.recv(8192)
        # Asked something: the session does not rest, so it lasts as long as the grace.
        sock.sendall(b"Q\0\0\0\x0dSELECT 1\0")
        time.sleep(0.2)
        proxy.process.send_signal(signal.SIGTERM)
        time.sleep(0.6)
        shop.route(2, "feature-x")
        wait_until(lambda: shop.generation_of(proxy.pod) == 2, SOON)
        assert proxy.process.wait(15) == 0
    assert shop.entries() == {}


def test_a_project_made_again_is_followed(shop: Shop, start: StartProxy) -> None:
    shop.route(7, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 7, SOON)
    shop.delete()
    wait_until(lambda: proxy.reached() == "57P01 project shop is deleted", SOON)
    shop.make()
    wait_until(lambda: shop.generation_of(proxy.pod) == 0, SOON)
    shop.route(1, "feature-x")
    wait_until(lambda: shop.generation_of(proxy.pod) == 1, SOON)
    assert proxy.reached() == "feature-x"
