"""The objects of a command line's namespace, without an API server."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Protocol

from tests.factories import branch, project
from tests.fakes.api import FakeApi

from dbranch.api import names
from dbranch.kube.client import path_of
from dbranch_cli.objects import Body, Store

PATHS: Final = {
    names.PROJECT_KIND: path_of(names.API_VERSION, names.PROJECTS, "team"),
    names.BRANCH_KIND: path_of(names.API_VERSION, names.BRANCHES, "team"),
    names.SNAPSHOT_KIND: path_of(names.API_VERSION, names.SNAPSHOTS, "team"),
    names.RESTORE_KIND: path_of(names.API_VERSION, names.RESTORES, "team"),
}


class Builder(Protocol):
    """What a test puts into the store."""

    def body(self) -> Body: ...


class FakeStore(Store):
    """The objects of a fake API server, which keeps what is created and deleted."""

    def __init__(self, *builders: Builder) -> None:
        super().__init__(None, "team")  # type: ignore[arg-type]
        self.api = FakeApi()
        for builder in (project(), branch(), *builders):
            self.put(builder.body())

    def put(self, body: Body) -> None:
        self.api.put(PATHS[body["kind"]], body)

    def server_time(self) -> datetime:
        return self.api.server_time()

    def find(self, plural: str, name: str) -> Body | None:
        return self.api.get(path_of(names.API_VERSION, plural, "team", name))

    def create(self, body: Any) -> Body:
        return self.api.create(PATHS[body["kind"]], body)

    def delete(self, live: Any) -> None:
        self.api.delete(f"{PATHS[live['kind']]}/{live['metadata']['name']}")

    def _list(self, plural: str, **params: str) -> list[Body]:
        path = path_of(names.API_VERSION, plural, "team")
        return self.api.find(path, fields=params.get("fieldSelector", ""))
