"""The proxy as a process of its own, and a fake API server with the one DBProject that it needs."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
from tests.node.proxy_backend import PASSWORD, USER, Backend, Client, branch_of, free_port, wait_until

Json = dict[str, Any]
SOURCES = Path(__file__).parents[2] / "operator"


class FakeProject:
    """API server with one DBProject and its DBBranches: list, watch, and apply of `status.proxies`.

    `up` False: it does not answer. `may_read_branches` False: as under a controller of release 0.1.0. `writes` counts
    those to the project.
    """

    def __init__(self, backends: list[Backend], proxy: Json) -> None:
        self.branches: dict[str, Json] = {}
        self.up = self.may_read_branches = True
        self.writes = 0
        self._version = 1
        self._changed = threading.Condition()
        # What a watch of branches has to send: version, type, object.
        self._branch_events: list[tuple[int, str, Json]] = []
        for backend in backends:
            self.branches[backend.branch] = branch_body(backend)
        target = {"uid": f"{backends[0].branch}-uid", "generation": 1}
        self.body: Json = {
            "metadata": {"name": "shop", "namespace": "team-a", "uid": "u"},
            "spec": {"proxy": proxy},
            "status": {"route": {"generation": 1, "branch": backends[0].branch, "target": target}},
        }
        project = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                project.get(self)

            def do_PATCH(self) -> None:
                project.patch(self)

            def log_message(self, *args: Any) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def object(self) -> Json:
        """Return the DBProject with its current resourceVersion."""
        return self._versioned(self.body)

    def _versioned(self, body: Json) -> Json:
        return {**body, "metadata": {**body["metadata"], "resourceVersion": str(self._version)}}

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        if not self.up:
            handler.close_connection = True
            return
        is_branches = "/dbbranches" in handler.path
        if is_branches and not self.may_read_branches:
            answer(handler, {"message": "dbbranches is forbidden"}, 403)
            return
        if "watch=1" not in handler.path:
            bodies = list(self.branches.values()) if is_branches else [self.body]
            items = [self._versioned(body) for body in bodies]
            answer(handler, {"items": items, "metadata": {"resourceVersion": str(self._version)}})
            return
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        seen = int(handler.path.split("resourceVersion=")[1].split("&")[0])
        with self._changed:
            while self.up and (self.may_read_branches or not is_branches):
                if seen < self._version:
                    events = [("MODIFIED", self.object())]
                    if is_branches:
                        events = [(kind, body) for at, kind, body in self._branch_events if at > seen]
                    seen = self._version
                    try:
                        for kind, body in events:
                            line = json.dumps({"type": kind, "object": body}).encode() + b"\n"
                            handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                    except OSError:
                        break
                self._changed.wait(0.5)
        handler.close_connection = True

    def patch(self, handler: BaseHTTPRequestHandler) -> None:
        applied = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        if not self.up:
            handler.close_connection = True
            return
        with self._changed:
            if applied["kind"] == "DBBranch":
                body = self.branches[applied["metadata"]["name"].removeprefix("shop-")]
                body["status"]["proxies"] = applied["status"]["proxies"]
                self._emit_branch("MODIFIED", body)
            else:
                self.body["status"]["proxies"] = applied["status"]["proxies"]
                self.writes += 1
                self._emit()
        answer(handler, self.object())

    def _emit(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _emit_branch(self, kind: str, body: Json) -> None:
        self._branch_events.append((self._version + 1, kind, json.loads(json.dumps(body))))
        self._branch_events[-1][2]["metadata"]["resourceVersion"] = str(self._version + 1)
        self._emit()

    def entries(self) -> list[Json]:
        entries: list[Json] = self.body["status"].get("proxies", [])
        return entries

    def acknowledged(self, branch: str) -> list[int]:
        """Return the generations in `status.proxies` of a branch."""
        return [entry["generation"] for entry in self.branches[branch]["status"].get("proxies", [])]

    def touch(self) -> None:
        """Raise the resourceVersion, as a write of another field would."""
        with self._changed:
            self._emit()

    def switch(self, branch: str, target_generation: int | None = None, target_uid: str = "") -> None:
        """Move the route, by default to the branch as it is."""
        with self._changed:
            route, current = self.body["status"]["route"], self.branches[branch]
            target = {
                "uid": target_uid or current["metadata"]["uid"],
                "generation": target_generation or current["status"]["route"]["generation"],
            }
            generation = route["generation"] + 1
            self.body["status"]["route"] = {"generation": generation, "branch": branch, "target": target}
            self._emit()

    def route_branch(
        self, branch: str, state: str, backend: Backend | None = None, restore: str | None = None
    ) -> None:
        """Give a branch the next generation of its route; `backend`: where it is, if Ready or being restored."""
        with self._changed:
            body = self.branches[branch]
            generation = body["status"]["route"]["generation"] + 1
            body["status"]["route"] = {"generation": generation, "state": state, **address_of(backend)}
            body["status"]["route"] |= {"restore": restore} if restore else {}
            self._emit_branch("MODIFIED", body)

    def put_branch(self, backend: Backend, uid: str) -> None:
        """Make a branch, or another object under its name."""
        with self._changed:
            if backend.branch in self.branches:
                self._emit_branch("DELETED", self.branches[backend.branch])
            self.branches[backend.branch] = branch_body(backend, uid)
            self._emit_branch("ADDED", self.branches[backend.branch])

    def drop_branch(self, branch: str) -> None:
        with self._changed:
            self._emit_branch("DELETED", self.branches.pop(branch))

    def write_table(self, routes: list[Json] | None) -> None:
        """Write `status.routes`, or remove it."""
        with self._changed:
            self.body["status"].pop("routes", None)
            if routes is not None:
                self.body["status"]["routes"] = routes
            self._emit()

    def close(self) -> None:
        self.up = False
        self._server.shutdown()
        self._server.server_close()


def address_of(backend: Backend | None) -> Json:
    return {"address": "127.0.0.1", "port": backend.port} if backend else {}


def branch_body(backend: Backend, uid: str = "") -> Json:
    """Return the DBBranch of a backend, as its controller writes it."""
    return {
        "metadata": {"name": f"shop-{backend.branch}", "uid": uid or f"{backend.branch}-uid"},
        "spec": {"project": "shop"},
        "status": {"route": {"generation": 1, "state": "Ready", **address_of(backend)}},
    }


def answer(handler: BaseHTTPRequestHandler, body: Json, status: int = 200) -> None:
    data = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


class ProxyProcess:
    """A process of `dbranch-server proxy` for a FakeProject."""

    def __init__(
        self, project: FakeProject, log: Path, stderr_is_unread: bool = False, **variables: str
    ) -> None:
        self.project, self.port, self.health, self.log = project, free_port(), free_port(), log
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SOURCES),
            "DBRANCH_PROJECT": "shop",
            "DBRANCH_PROJECT_NAMESPACE": "team-a",
            "DBRANCH_POD_NAME": "shop-proxy-1",
            "DBRANCH_API_SERVER": f"http://127.0.0.1:{project.port}",
            "DBRANCH_PORT": str(self.port),
            "DBRANCH_HEALTH_PORT": str(self.health),
            "DBRANCH_LOG_FORMAT": "json",
            **variables,
        }
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dbranch.main", "proxy"],
                env=env,
                stdout=out,
                stderr=subprocess.PIPE if stderr_is_unread else out,
            )
        if self.process.stderr:
            # The smallest buffer that a pipe can have: some twenty lines.
            fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        wait_until(lambda: self.get("readyz")[0] == 200, 20)

    def get(self, path: str) -> tuple[int, str]:
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def logged(self, logger: str) -> list[Json]:
        lines = (json.loads(line) for line in self.log.read_text().splitlines())
        return [line for line in lines if line["logger"] == logger]

    def resident_bytes(self) -> int:
        statm = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * os.sysconf("SC_PAGESIZE")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to the process and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(40)


@contextmanager
def proxy_process(
    backends: list[Backend],
    log: Path,
    proxy: Json | None = None,
    stderr_is_unread: bool = False,
    prepare: Callable[[FakeProject], None] = lambda project: None,
    **variables: str,
) -> Iterator[ProxyProcess]:
    """Run a proxy process and its FakeProject, which `prepare` changes before; both end with the block."""
    project = FakeProject(backends, proxy or {})
    prepare(project)
    try:
        running = ProxyProcess(project, log, stderr_is_unread, **variables)
        try:
            yield running
        finally:
            running.stop(signal.SIGKILL)
            if running.process.stderr:
                running.process.stderr.close()
    finally:
        project.close()


def connect(running: ProxyProcess, **options: Any) -> Client:
    defaults = {"host": "127.0.0.1", "user": USER, "password": PASSWORD, "dbname": "postgres"}
    return Client.connect(**({"port": running.port, "autocommit": True} | defaults | options))


def reached(running: ProxyProcess, **options: Any) -> str:
    """Return the Postgres that a new session reaches, or what it is rejected with."""
    try:
        with connect(running, **options) as connection:
            return branch_of(connection)
    except psycopg.OperationalError as error:
        return str(error)
