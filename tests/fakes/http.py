"""The fake API server over HTTP, as far as kopf, `Cluster` and the command line use it."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from tests.fakes.api import FakeApi, is_object
from tests.fakes.patches import Json

from dbranch.api import names
from dbranch.api.errors import ApiError

_RESOURCES = {
    "v1": [
        ("namespaces", "Namespace", False),
        ("nodes", "Node", False),
        ("pods", "Pod", True),
        ("events", "Event", True),
    ],
    names.API_VERSION: [
        (names.PROJECTS, names.PROJECT_KIND, True),
        (names.BRANCHES, names.BRANCH_KIND, True),
    ],
}
_LIST_KINDS = {plural: f"{kind}List" for resources in _RESOURCES.values() for plural, kind, _ in resources}
_VERBS = ["get", "list", "watch", "create", "patch", "update", "delete"]


def serve_api(api: FakeApi, kubeconfig: Path) -> ThreadingHTTPServer:
    """Serve the fake API server on a free port, and write a kubeconfig for it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            selectors = query.get("labelSelector", ""), query.get("fieldSelector", "")
            answer = _discovered(url.path)
            if answer is not None:
                self._answer(200, answer)
            elif query.get("watch"):
                self._watch(url.path, int(query["resourceVersion"]), *selectors)
            elif (body := api.peek(url.path)) is not None:
                self._answer(200, body)
            elif is_object(url.path):
                self._refuse(ApiError(404, "NotFound", f"{url.path} not found"))
            else:
                items, version = api.list_at(url.path, *selectors)
                meta = {"resourceVersion": str(version)}
                kind = _LIST_KINDS.get(url.path.rpartition("/")[2])
                if kind is None:
                    missing = {
                        "kind": "Status",
                        "code": 404,
                        "reason": "NotFound",
                        "details": {"kind": "any"},
                    }
                    self._answer(404, {**missing, "message": f"{url.path} not found"})
                    return
                self._answer(200, {"kind": kind, "apiVersion": "v1", "metadata": meta, "items": items})

        def do_POST(self) -> None:
            body = self._body()
            meta = body["metadata"]
            meta.setdefault("name", meta.get("generateName", "") + uuid.uuid4().hex[:8])
            self._call(lambda: api.create(urlsplit(self.path).path, body))

        def do_PATCH(self) -> None:
            body, url = self._body(), urlsplit(self.path)
            if "apply-patch" in self.headers["Content-Type"]:
                manager = parse_qs(url.query)["fieldManager"][0]
                self._call(lambda: api.apply(url.path, body, manager))
                return
            verb = api.json_patch if "json-patch" in self.headers["Content-Type"] else api.merge
            self._call(lambda: verb(url.path, body))

        def do_DELETE(self) -> None:
            options = self._body() if int(self.headers.get("Content-Length") or 0) else {}
            expected = options.get("preconditions") or {}
            path, grace = urlsplit(self.path).path, options.get("gracePeriodSeconds")

            def delete() -> Json:
                api.delete(path, expected.get("uid"), grace, expected.get("resourceVersion"))
                return {"kind": "Status", "status": "Success"}

            self._call(delete)

        def _body(self) -> Any:
            return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

        def _call(self, call: Any) -> None:
            try:
                self._answer(200, call())
            except ApiError as error:
                self._refuse(error)

        def _refuse(self, error: ApiError) -> None:
            status = {"kind": "Status", "code": error.status, "reason": error.reason, "message": str(error)}
            self._answer(error.status, status)

        def _answer(self, status: int, body: Json) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _watch(self, path: str, version: int, labels: str, fields: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for event in api.events_since(version, path, labels, fields):
                    line = json.dumps(event).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True

        def date_time_string(self, timestamp: float | None = None) -> str:
            return api.date

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True, name="fake-api").start()
    named = {"name": "fake"}
    config = {
        "current-context": "fake",
        "contexts": [{**named, "context": {"cluster": "fake", "user": "fake"}}],
        "clusters": [{**named, "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{**named, "user": {"token": "t"}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    return server


def _discovered(path: str) -> Json | None:
    """Return the answer to a request of discovery; None if it is another one."""
    if path == "/version":
        return {"major": "1", "minor": "34"}
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        version = {"groupVersion": names.API_VERSION, "version": names.VERSION}
        return {"groups": [{"name": names.GROUP, "versions": [version], "preferredVersion": version}]}
    for api, resources in _RESOURCES.items():
        if path in (f"/api/{api}", f"/apis/{api}"):
            listed = [
                {
                    "name": plural,
                    "singularName": kind.lower(),
                    "kind": kind,
                    "namespaced": scoped,
                    "verbs": _VERBS,
                }
                for plural, kind, scoped in resources
            ]
            status = [{**entry, "name": f"{entry['name']}/status"} for entry in listed]
            return {"kind": "APIResourceList", "groupVersion": api, "resources": [*listed, *status]}
    return None
