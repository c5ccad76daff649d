"""The command line's connection to the fake API server, without HTTP, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any

import pytest
from tests.fakes.api import FakeApi
from tests.fakes.patches import Json

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch_cli.diagnosis import SPEC_FIELDS

LIST_KINDS = {
    names.PROJECTS: f"{names.PROJECT_KIND}List",
    names.BRANCHES: f"{names.BRANCH_KIND}List",
    names.SNAPSHOTS: f"{names.SNAPSHOT_KIND}List",
    names.RESTORES: f"{names.RESTORE_KIND}List",
}
COLLECTIONS = frozenset(
    {
        *LIST_KINDS,
        *("pods", "nodes", "events", "secrets", "deployments", "daemonsets"),
        *("validatingadmissionpolicies", "validatingadmissionpolicybindings"),
    }
)


class FakeConnection:
    """Connection over the objects of a FakeApi; `texts` are the answers to paths that are no objects."""

    server = "https://10.0.0.1:6443"

    def __init__(self, api: FakeApi, texts: Mapping[str, str] | None = None) -> None:
        self._api, self._texts = api, texts or {}

    def server_time(self) -> datetime:
        return self._api.server_time()

    def get(self, path: str, **params: str) -> Any:
        if path == "/version":
            return {"gitVersion": "v1.34.3"}
        if path.startswith("/openapi"):
            return openapi_document()
        plural = path.rpartition("/")[2]
        if plural not in COLLECTIONS:
            body = self._api.get(path)
            if body is None:
                raise ApiError(404, "NotFound", f"{path} not found")
            return body
        items = self._api.find(path, params.get("labelSelector", ""), params.get("fieldSelector", ""))
        return {"kind": LIST_KINDS.get(plural, "List"), "metadata": {"resourceVersion": "1"}, "items": items}

    def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        if method == "GET":
            return self.get(path, **params or {})
        if method == "POST":
            return self._api.create(path, body or {})
        # Of a server-side apply, too: the fake reports no managed fields, so he would give it up.
        assert method == "PATCH"
        return self._api.merge(path, body or {})

    def lines(self, path: str, params: Mapping[str, str], silence_seconds: float) -> Iterator[str]:
        assert silence_seconds > 0
        key = f"{path}?container={params['container']}" + ("&previous" if "previous" in params else "")
        yield from self._texts[key].splitlines()[-int(params["tailLines"]) :]


def openapi_document() -> Json:
    """Return the schemas of the CRDs that the command line knows, as far as it compares them."""
    return {
        "components": {
            "schemas": {
                kind: {
                    "x-kubernetes-group-version-kind": [{"group": names.GROUP, "kind": kind}],
                    "properties": {"spec": {"properties": {field: {} for field in fields}}},
                }
                for kind, fields in SPEC_FIELDS.items()
            }
        }
    }


def stop_clock(monkeypatch: pytest.MonkeyPatch, now: datetime, *modules: Any) -> None:
    """Let `datetime.now` in these modules return `now`."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return now.astimezone(tz or UTC)

    for module in modules:
        monkeypatch.setattr(module, "datetime", Stopped)
