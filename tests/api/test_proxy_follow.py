"""The proxy's process and a real API server: the routes that it obeys, and its entry in status.proxies.

Nothing else of dbranch runs here: the tests write the project's status as the controller would.
"""

from __future__ import annotations

import base64
import json
import os
import random
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
from dbranch.proxy.timing import SESSION_COUNTS_INTERVAL_SECONDS

# It only ends a test that hangs.
TIMEOUT_SECONDS = 180.0
# Windows in which something must not happen: a write of the entry, and anything else.
NO_WRITE_SECONDS = SESSION_COUNTS_INTERVAL_SECONDS + 2
HOLDS_SECONDS = 1.0
# In this time a busy machine writes a route and the proxy reads it. The session ends before.
OBEYING_GRACE_SECONDS = 120
READY = b"Z\0\0\0\x05I"
SOURCES = Path(__file__).parents[2] / "operator"
FIELD_MANAGER_OPTION = "--field-manager=" + names.CONTROLLER_MANAGER


def kubectl(*args: str, stdin: str = "") -> str:
    process = subprocess.run(["kubectl", *args], input=stdin, capture_output=True, text=True, check=False)
    assert process.returncode == 0, f"kubectl {' '.join(args)}: {process.stderr}"
    return process.stdout


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT_SECONDS:g} s"
        time.sleep(0.05)


def holds(condition: Callable[[], object], seconds: float = HOLDS_SECONDS) -> None:
    """Evaluate the condition for `seconds`; raise AssertionError as soon as it is not true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition()
        time.sleep(0.05)


# Ports that the kernel gives nobody meanwhile: its own choices are from 32768 on.
_PORTS = iter(random.sample(range(10000, 20000), 10000))


def free_port() -> int:
    """Return a free port, another one each time."""
    for port in _PORTS:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no free port")


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


class Server:
    """A TCP server on a port of its own, with a thread for each connection."""

    def __init__(self) -> None:
        self._sock = listener()
        self.port: int = self._sock.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._sock.accept()
            except OSError:
                return
            self._open.add(accepted)
            threading.Thread(target=self._run, args=[accepted], daemon=True).start()

    def _run(self, accepted: socket.socket) -> None:
        with accepted, suppress(OSError):
            self.serve(accepted)

    def serve(self, accepted: socket.socket) -> None:
        """Serve one connection, which is closed when this returns."""

    def cut(self) -> None:
        """Close every open connection."""
        for sock in tuple(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            self._open.discard(sock)

    def close(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self.cut()


class Backend(Server):
    """Accepts every login, as Postgres with `trust` does, and reports its name as `cluster_name`."""

    def __init__(self, name: str) -> None:
        self.name, self.queries = name, 0
        super().__init__()

    def serve(self, accepted: socket.socket) -> None:
        accepted.recv(8192)
        parameter = b"cluster_name\0" + self.name.encode() + b"\0"
        status = b"S" + struct.pack("!I", 4 + len(parameter)) + parameter
        accepted.sendall(b"R\0\0\0\x08\0\0\0\0" + status + READY)
        while accepted.recv(8192):
            self.queries += 1


class ApiRelay(Server):
    """TCP relay from the proxy to the API server, which a test can cut. `up` False: it closes new connections."""

    def __init__(self, host: str, port: int) -> None:
        self._api_server = host, port
        self.up = True
        super().__init__()

    def serve(self, accepted: socket.socket) -> None:
        if not self.up:
            return
        with socket.create_connection(self._api_server) as upstream:
            self._open.add(upstream)
            threading.Thread(target=self._pump, args=[upstream, accepted], daemon=True).start()
            self._pump(accepted, upstream)

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


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
    """A directory with `ca.crt` and a token for each of PODS, with the permissions of a proxy.

    Tokens are bound to their pods, as the policy `dbranch-proxy-entry` requires. The pods exist and never run: no
    node has the label that they select.
    """
    rules: list[dict[str, Any]] = [
        {"resources": [names.PROJECTS], "verbs": ["get", "list", "watch"], "resourceNames": ["shop"]},
        {"resources": [f"{names.PROJECTS}/status"], "verbs": ["patch"], "resourceNames": ["shop"]},
        {"resources": [names.BRANCHES], "verbs": ["list", "watch"]},
        {"resources": [f"{names.BRANCHES}/status"], "verbs": ["patch"]},
    ]
    name = names.proxy_name("shop")
    rbac = "rbac.authorization.k8s.io"
    objects = [
        {"apiVersion": "v1", "kind": "ServiceAccount"},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "rules": [rule | {"apiGroups": [names.GROUP]} for rule in rules],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    ]
    for manifest in objects:
        body = manifest | {"metadata": {"name": name}}
        kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(body))
    directory = tmp_path_factory.mktemp("account")
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
        binding = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"]
        (directory / pod).write_text(kubectl("create", "token", "-n", namespace, name, *binding))
    (directory / "ca.crt").write_bytes(base64.b64decode(cluster_config()["certificate-authority-data"]))
    return directory


def cluster_config() -> dict[str, str]:
    """Return the cluster of the current kubectl context."""
    config = json.loads(kubectl("config", "view", "--minify", "--raw", "-o", "json"))
    cluster: dict[str, str] = config["clusters"][0]["cluster"]
    return cluster


@pytest.fixture
def api_relay() -> Iterator[ApiRelay]:
    url = urlsplit(cluster_config()["server"])
    relay = ApiRelay(url.hostname or "", url.port or 443)
    yield relay
    relay.close()


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    backends = {name: Backend(name) for name in ("main", "feature-x")}
    yield backends
    for backend in backends.values():
        backend.close()


class Shop:
    """The DBProject `shop` and its DBBranches, and their status as the controller writes it."""

    def __init__(self, namespace: str, backends: dict[str, Backend]) -> None:
        self.namespace, self.backends = namespace, backends
        for backend in backends.values():
            self.make_branch(backend)

    def make_branch(self, backend: Backend) -> None:
        """Make a branch that is Ready at its backend."""
        source = {} if backend.name == names.ROOT_BRANCH else {"source": names.ROOT_BRANCH}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.BRANCH_KIND,
            "metadata": {"name": f"shop-{backend.name}"},
            "spec": {"project": "shop", **source},
        }
        kubectl("apply", "-n", self.namespace, "-f", "-", stdin=json.dumps(body))
        self.route_branch(backend.name, 1, "Ready", backend)

    def route_branch(self, name: str, generation: int, state: str, backend: Backend | None = None) -> None:
        """Write the route of a branch."""
        address = (
            {"address": "127.0.0.1", "port": backend.port} if backend else {"address": None, "port": None}
        )
        route = {"generation": generation, "state": state, **address}
        self.patch_status({"route": route}, f"{names.BRANCHES}/shop-{name}")

    def branch(self, name: str) -> dict[str, Any]:
        path = f"{names.BRANCHES}/shop-{name}"
        body: dict[str, Any] = json.loads(kubectl("get", "-n", self.namespace, path, "-o", "json"))
        return body

    def apply(self, **proxy: Any) -> None:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.PROJECT_KIND,
            "metadata": {"name": "shop"},
            # No node has this label, so a controller that runs in this cluster does not bind the project.
            "spec": {"storage": {"nodeSelector": {"dbranch.io/none": "here"}}, "proxy": proxy},
        }
        kubectl("apply", "-n", self.namespace, "-f", "-", stdin=json.dumps(body))

    def delete(self) -> None:
        kubectl("delete", "-n", self.namespace, names.PROJECTS, "shop", "--ignore-not-found")

    def delete_branches(self) -> None:
        kubectl("delete", "-n", self.namespace, names.BRANCHES, "--all")

    def set_route(self, generation: int, branch: str) -> None:
        body = self.branch(branch)
        target = {
            "uid": body["metadata"]["uid"],
            "generation": body["status"]["route"]["generation"],
        }
        self.patch_status({"route": {"generation": generation, "branch": branch, "target": target}})

    def patch_status(self, status: dict[str, Any], path: str = f"{names.PROJECTS}/shop") -> None:
        args = ["patch", "-n", self.namespace, path, "--subresource=status", FIELD_MANAGER_OPTION]
        kubectl(*args, "--type=merge", "-p", json.dumps({"status": status}))

    def get(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(
            kubectl("get", "-n", self.namespace, names.PROJECTS, "shop", "-o", "json")
        )
        return body

    def entries(self) -> dict[str, dict[str, Any]]:
        return {e["pod"]: e for e in self.get().get("status", {}).get("proxies", [])}

    def generation_of(self, pod: str) -> int | None:
        generation: int | None = self.entries().get(pod, {}).get("generation")
        return generation


@pytest.fixture
def shop(namespace: str, backends: dict[str, Backend]) -> Iterator[Shop]:
    shop = Shop(namespace, backends)
    shop.apply()
    yield shop
    # The root branch goes only without its project.
    shop.delete()
    shop.delete_branches()


class Proxy:
    """A process of `dbranch-server proxy` that runs as the pod `pod`."""

    def __init__(
        self,
        pod: str,
        namespace: str,
        account: Path,
        api_relay: ApiRelay,
        log: Path,
        grace_seconds: float,
    ) -> None:
        self.pod, self.port, self.health, self.log = pod, free_port(), free_port(), log
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SOURCES),
            "DBRANCH_PROJECT": "shop",
            "DBRANCH_PROJECT_NAMESPACE": namespace,
            "DBRANCH_POD_NAME": pod,
            "DBRANCH_API_SERVER": f"https://127.0.0.1:{api_relay.port}",
            "DBRANCH_API_TOKEN": str(account / pod),
            "DBRANCH_API_CA": str(account / "ca.crt"),
            "DBRANCH_PORT": str(self.port),
            "DBRANCH_HEALTH_PORT": str(self.health),
            "DBRANCH_WITHDRAW_SECONDS": "0.2",
            "DBRANCH_GRACE_SECONDS": f"{grace_seconds:g}",
            "DBRANCH_LOG_FORMAT": "json",
        }
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dbranch.main", "proxy"], env=env, stdout=out, stderr=out
            )

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/{path}", timeout=60) as answer:
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
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_SECONDS)
        sock.sendall(struct.pack("!II", 8 + len(body), 3 << 16) + body)
        return sock

    def reached(self) -> str:
        """Return the backend that a new session reaches, or the SQLSTATE and message that it gets instead."""
        with self.open() as sock:
            data = b""
            while not data.endswith(READY) and (part := sock.recv(8192)):
                data += part
        if data[:1] == b"E":
            fields = {f[:1]: f[1:].decode() for f in data[5:].split(b"\0")}
            return f"{fields[b'C']} {fields[b'M']}"
        return data.split(b"cluster_name\0")[1].split(b"\0")[0].decode()

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal to the process and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(TIMEOUT_SECONDS)


def receive(sock: socket.socket, text: bytes) -> None:
    """Receive until the text has come."""
    data = b""
    while text not in data:
        part = sock.recv(8192)
        assert part, data
        data += part


StartProxy = Callable[..., Proxy]


@pytest.fixture
def start(namespace: str, account: Path, api_relay: ApiRelay, tmp_path: Path) -> Iterator[StartProxy]:
    started: list[Proxy] = []

    def start(pod: str = PODS[0], ready: bool = True, grace_seconds: float = 5) -> Proxy:
        proxy = Proxy(pod, namespace, account, api_relay, tmp_path / f"{pod}.log", grace_seconds)
        started.append(proxy)
        if ready:
            wait_until(proxy.ready)
        return proxy

    yield start
    for proxy in started:
        proxy.stop(signal.SIGKILL)


def test_the_entry_follows_each_generation(shop: Shop, start: StartProxy) -> None:
    shop.set_route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1)
    assert proxy.reached() == "main"
    for generation in range(2, 8):
        branch = ("main", "feature-x")[generation % 2]
        shop.set_route(generation, branch)
        wait_until(lambda g=generation: shop.generation_of(proxy.pod) == g)  # type: ignore[misc]
        assert proxy.reached() == branch


def test_an_unchanged_entry_is_not_written_again(shop: Shop, start: StartProxy) -> None:
    shop.set_route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1)
    before = shop.get()["metadata"]["resourceVersion"]
    holds(lambda: shop.get()["metadata"]["resourceVersion"] == before, NO_WRITE_SECONDS)


def test_entries_of_several_pods_do_not_replace_each_other(shop: Shop, start: StartProxy) -> None:
    shop.set_route(1, "main")
    one, two = (start(pod) for pod in PODS)
    wait_until(lambda: shop.entries().keys() == {one.pod, two.pod})
    # Another field manager's merge patch does not touch them.
    shop.patch_status({"branches": 2, "host": "shop.here.svc"})
    assert shop.entries().keys() == {one.pod, two.pod}
    shop.set_route(2, "feature-x")
    wait_until(lambda: {e["generation"] for e in shop.entries().values()} == {2})
    assert one.stop() == 0
    assert shop.entries().keys() == {two.pod}


def test_a_removed_entry_is_written_again(shop: Shop, start: StartProxy) -> None:
    shop.set_route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1)
    shop.patch_status({"proxies": []})
    wait_until(lambda: shop.generation_of(proxy.pod) == 1)


def test_sessions_are_counted_in_the_entry(shop: Shop, start: StartProxy) -> None:
    shop.set_route(1, "main")
    proxy = start()
    with proxy.open(), proxy.open():
        wait_until(lambda: shop.entries().get(proxy.pod, {}).get("sessions") == 2)
    wait_until(lambda: shop.entries()[proxy.pod]["sessions"] == 0)


def test_the_proxy_serves_only_after_it_has_read_the_project(
    shop: Shop, start: StartProxy, api_relay: ApiRelay
) -> None:
    shop.set_route(1, "feature-x")
    api_relay.up = False
    proxy = start(ready=False)
    wait_until(lambda: proxy.status("healthz") == 200)
    holds(lambda: proxy.status("readyz") == 503)
    with pytest.raises(ConnectionRefusedError):
        proxy.open()
    assert shop.entries() == {}
    api_relay.up = True
    wait_until(proxy.ready)
    assert proxy.reached() == "feature-x"


def test_a_broken_watch_is_resumed(shop: Shop, start: StartProxy, api_relay: ApiRelay) -> None:
    shop.set_route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1)
    api_relay.up = False
    api_relay.cut()
    shop.set_route(2, "feature-x")
    # The last routes stay in force, and the entry keeps their generation.
    holds(lambda: proxy.reached() == "main" and shop.generation_of(proxy.pod) == 1)
    api_relay.up = True
    wait_until(lambda: shop.generation_of(proxy.pod) == 2)
    assert proxy.reached() == "feature-x"


def test_sigterm_ends_the_sessions_and_removes_the_entry(shop: Shop, start: StartProxy) -> None:
    shop.set_route(1, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1)
    with proxy.open() as sock:
        receive(sock, b"main")
        assert proxy.stop() == 0
        last = b""
        while part := sock.recv(8192):
            last += part
        assert b"C57P01\0" in last and b"the proxy is stopping" in last
    assert shop.entries() == {}


def test_a_proxy_that_shuts_down_still_obeys(
    shop: Shop, start: StartProxy, backends: dict[str, Backend]
) -> None:
    """The controller waits for the entry until it is removed, so sessions that are left must follow a switch."""
    shop.apply(onSwitch="Keep")
    shop.set_route(1, "main")
    proxy, before = start(grace_seconds=OBEYING_GRACE_SECONDS), backends["main"].queries
    with proxy.open() as sock:
        receive(sock, b"main")
        # A query runs, so the session is not idle and lasts for the grace period.
        sock.sendall(b"Q\0\0\0\x0dSELECT 1\0")
        wait_until(lambda: backends["main"].queries > before)
        proxy.process.send_signal(signal.SIGTERM)
        wait_until(lambda: proxy.status("readyz") != 200)
        shop.set_route(2, "feature-x")
        wait_until(lambda: shop.generation_of(proxy.pod) == 2)
    assert proxy.process.wait(TIMEOUT_SECONDS) == 0
    assert shop.entries() == {}


def test_the_deletion_of_a_branch_is_acknowledged_by_each_pod_in_the_branch(
    shop: Shop, start: StartProxy
) -> None:
    shop.set_route(1, "main")
    one, two = (start(pod) for pod in PODS)
    wait_until(lambda: shop.entries().keys() == {one.pod, two.pod})
    before = shop.get()["metadata"]["resourceVersion"]
    shop.route_branch("feature-x", 2, "Deleting")

    def acknowledged() -> dict[str, int]:
        entries = shop.branch("feature-x")["status"].get("proxies", [])
        return {entry["pod"]: entry["generation"] for entry in entries}

    wait_until(lambda: acknowledged() == {one.pod: 2, two.pod: 2})
    assert one.reached() == "main"
    assert shop.get()["metadata"]["resourceVersion"] == before
    # Should that state pass, so does what is said of it.
    shop.route_branch("feature-x", 3, "Stopped")
    wait_until(lambda: acknowledged() == {})


def test_a_switch_that_comes_before_its_branch_is_obeyed_when_that_has_come(
    shop: Shop, start: StartProxy, backends: dict[str, Backend]
) -> None:
    shop.set_route(1, "main")
    shop.route_branch("feature-x", 2, "Stopped")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 1)
    target = {"uid": shop.branch("feature-x")["metadata"]["uid"], "generation": 3}
    shop.patch_status({"route": {"generation": 2, "branch": "feature-x", "target": target}})
    wait_until(lambda: "generation 2" in proxy.log.read_text())
    with proxy.open() as waiting:
        holds(lambda: shop.generation_of(proxy.pod) == 1)
        shop.route_branch("feature-x", 3, "Ready", backends["feature-x"])
        receive(waiting, b"cluster_name\0feature-x\0")
    wait_until(lambda: shop.generation_of(proxy.pod) == 2)


def test_a_recreated_project_is_followed(shop: Shop, start: StartProxy) -> None:
    shop.set_route(7, "main")
    proxy = start()
    wait_until(lambda: shop.generation_of(proxy.pod) == 7)
    shop.delete()
    wait_until(lambda: proxy.reached() == "57P01 project shop is deleted")
    shop.apply()
    wait_until(lambda: shop.generation_of(proxy.pod) == 0)
    shop.set_route(1, "feature-x")
    wait_until(lambda: shop.generation_of(proxy.pod) == 1)
    assert proxy.reached() == "feature-x"
