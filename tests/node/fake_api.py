"""The API server on paper: a file of objects behind `dbranch.kube.client.Cluster`'s verbs, so that the agent's
process can be killed at any moment and a second one meets what the first one wrote. No kopf, no network.
"""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbranch.api.errors import ApiError

Json = dict[str, Any]


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def selected(body: Json, labels: str, fields: str) -> bool:
    """Whether the selectors (`a=b,c,!d`; `status.nodeName=n`) find the object."""
    there = body["metadata"].get("labels") or {}
    for term in filter(None, labels.split(",")):
        key, equals, value = term.partition("=")
        if key.startswith("!"):
            if key[1:] in there:
                return False
            continue
        if key not in there or (equals and there[key] != value):
            return False
    for term in filter(None, fields.split(",")):
        path, _, value = term.partition("=")
        found: Any = body
        for step in path.split("."):
            found = (found or {}).get(step)
        if found != value:
            return False
    return True


def json_patched(body: Json, operations: list[Json]) -> Json | None:
    """RFC 6902, as far as `test` and `add` of members go; None where a test fails. A test for None holds
    where there is nothing."""
    new: Json = json.loads(json.dumps(body))
    for operation in operations:
        *steps, last = (s.replace("~1", "/").replace("~0", "~") for s in operation["path"].split("/")[1:])
        place = new
        for step in steps:
            place = place[step]
        if operation["op"] == "add":
            place[last] = operation["value"]
        elif operation["op"] != "test" or place.get(last) != operation["value"]:
            return None
    return new


def _collections(key: str) -> tuple[str, str]:
    """The lists in which an object stands: its namespace's, and that of all namespaces."""
    here = key.rpartition("/")[0]
    head, _, rest = here.partition("/namespaces/")
    return here, f"{head}/{rest.rpartition('/')[2]}"


class FakeApi:
    """What `Cluster` offers, over the file. `written` is called after every write (the kills' clock)."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def written(self) -> None:
        """Called when a write is on paper."""

    @contextmanager
    def _paper(self, write: bool) -> Iterator[dict[str, Json]]:
        with self._file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            paper: dict[str, Json] = json.loads(self._file.read_text()) if self._file.exists() else {}
            yield paper
            if write:
                begun = self._file.with_suffix(".new")
                begun.write_text(json.dumps(paper))
                begun.rename(self._file)
        if write:
            self.written()

    @staticmethod
    def _key(path: str) -> str:
        return path.removesuffix("/status")

    @staticmethod
    def _there(paper: dict[str, Json], key: str) -> Json:
        if key not in paper:
            raise ApiError(404, "NotFound", f"{key} not found")
        return paper[key]

    def get(self, path: str) -> Json | None:
        with self._paper(write=False) as paper:
            return paper.get(self._key(path))

    def find(self, path: str, labels: str = "", fields: str = "") -> list[Json]:
        with self._paper(write=False) as paper:
            return [
                body
                for key, body in sorted(paper.items())
                if path in _collections(key) and selected(body, labels, fields)
            ]

    def create(self, path: str, body: Mapping[str, Any]) -> Json:
        made: Json = json.loads(json.dumps(body))
        drawn = {"generation": 1, "uid": str(uuid.uuid4()), "resourceVersion": uuid.uuid4().hex}
        made["metadata"] = {**drawn, **made["metadata"]}
        key = f"{path}/{made['metadata']['name']}"
        with self._paper(write=True) as paper:
            if key in paper:
                raise ApiError(409, "AlreadyExists", f"{key} already exists")
            paper[key] = made
        return made

    def merge(self, path: str, body: Mapping[str, Any]) -> Json:
        key = self._key(path)
        with self._paper(write=True) as paper:
            old = self._there(paper, key)
            uid = (body.get("metadata") or {}).get("uid")
            if uid and uid != old["metadata"]["uid"]:
                raise ApiError(409, "Conflict", f"{key} is another object")
            new = merged(old, body)
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] += 1
            new["metadata"]["resourceVersion"] = uuid.uuid4().hex
            paper[key] = new
            self._let_go(paper, key)
        return new

    def json_patch(self, path: str, operations: list[Json]) -> Json:
        key = self._key(path)
        with self._paper(write=True) as paper:
            new = json_patched(self._there(paper, key), operations)
            if new is None:
                raise ApiError(422, "Invalid", f"{key}: a test of the patch failed")
            new["metadata"]["resourceVersion"] = uuid.uuid4().hex
            paper[key] = new
        return new

    def delete(
        self, path: str, uid: str | None = None, grace: int | None = None, version: str | None = None
    ) -> None:
        key = self._key(path)
        with self._paper(write=True) as paper:
            if key not in paper or (uid and paper[key]["metadata"]["uid"] != uid):
                return
            if version and paper[key]["metadata"]["resourceVersion"] != version:
                return
            paper[key]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._let_go(paper, key)

    def gone(self, path: str) -> None:
        """The kubelet's word: the pod has ended and its object goes."""
        with self._paper(write=True) as paper:
            paper.pop(path, None)

    @staticmethod
    def _let_go(paper: dict[str, Json], key: str) -> None:
        meta = paper[key]["metadata"]
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and "/pods/" not in key:
            del paper[key]
