"""A fake API server: the methods of `dbranch.kube.client.Cluster` over a file of objects.

The agent's process can be killed at any moment, and the next one reads what it wrote. No kopf, no network.
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


def merge_patch(old: Any, patch: Any) -> Any:
    """Return `old` after a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def is_selected(body: Json, labels: str, fields: str) -> bool:
    """True if the object matches a label selector (`a=b,c,!d`) and a field selector (`status.nodeName=n`)."""
    object_labels = body["metadata"].get("labels") or {}
    for term in filter(None, labels.split(",")):
        key, equals, value = term.partition("=")
        if key.startswith("!"):
            if key[1:] in object_labels:
                return False
            continue
        if key not in object_labels or (equals and object_labels[key] != value):
            return False
    for term in filter(None, fields.split(",")):
        path, _, value = term.partition("=")
        field: Any = body
        for key in path.split("."):
            field = (field or {}).get(key)
        if field != value:
            return False
    return True


def json_patch(body: Json, operations: list[Json]) -> Json | None:
    """Return the object after a JSON patch (RFC 6902) of `test` and `add` of members; None if a test fails.

    As on the real API server, a test for null passes if there is no such member.
    """
    new: Json = json.loads(json.dumps(body))
    for operation in operations:
        tokens = operation["path"].split("/")[1:]
        *parents, key = (token.replace("~1", "/").replace("~0", "~") for token in tokens)
        parent = new
        for name in parents:
            parent = parent[name]
        if operation["op"] == "add":
            parent[key] = operation["value"]
        elif operation["op"] != "test" or parent.get(key) != operation["value"]:
            return None
    return new


def _collections(key: str) -> tuple[str, str]:
    """Return the paths of the lists that hold the object: its namespace's, and that of all namespaces."""
    namespaced = key.rpartition("/")[0]
    prefix, _, suffix = namespaced.partition("/namespaces/")
    return namespaced, f"{prefix}/{suffix.rpartition('/')[2]}"


class FakeApi:
    """The methods of `Cluster`, over the file `{path: object}`. `on_write` is called after each write."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_write(self) -> None:
        """Do nothing; a subclass counts the writes."""

    @contextmanager
    def _objects(self, write: bool) -> Iterator[dict[str, Json]]:
        with self._file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            objects: dict[str, Json] = json.loads(self._file.read_text()) if self._file.exists() else {}
            yield objects
            if write:
                new_file = self._file.with_suffix(".new")
                new_file.write_text(json.dumps(objects))
                new_file.rename(self._file)
        if write:
            self.on_write()

    @staticmethod
    def _key(path: str) -> str:
        return path.removesuffix("/status")

    @staticmethod
    def _existing(objects: dict[str, Json], key: str) -> Json:
        if key not in objects:
            raise ApiError(404, "NotFound", f"{key} not found")
        return objects[key]

    def get(self, path: str) -> Json | None:
        with self._objects(write=False) as objects:
            return objects.get(self._key(path))

    def find(self, path: str, labels: str = "", fields: str = "") -> list[Json]:
        with self._objects(write=False) as objects:
            return [
                body
                for key, body in sorted(objects.items())
                if path in _collections(key) and is_selected(body, labels, fields)
            ]

    def create(self, path: str, body: Mapping[str, Any]) -> Json:
        created: Json = json.loads(json.dumps(body))
        generated = {"generation": 1, "uid": str(uuid.uuid4()), "resourceVersion": uuid.uuid4().hex}
        created["metadata"] = {**generated, **created["metadata"]}
        key = f"{path}/{created['metadata']['name']}"
        with self._objects(write=True) as objects:
            if key in objects:
                raise ApiError(409, "AlreadyExists", f"{key} already exists")
            objects[key] = created
        return created

    def merge(self, path: str, body: Mapping[str, Any]) -> Json:
        key = self._key(path)
        with self._objects(write=True) as objects:
            old = self._existing(objects, key)
            uid = (body.get("metadata") or {}).get("uid")
            if uid and uid != old["metadata"]["uid"]:
                raise ApiError(409, "Conflict", f"{key} is another object")
            new = merge_patch(old, body)
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] += 1
            new["metadata"]["resourceVersion"] = uuid.uuid4().hex
            objects[key] = new
            self._remove_if_finalized(objects, key)
        return new

    def json_patch(self, path: str, operations: list[Json]) -> Json:
        key = self._key(path)
        with self._objects(write=True) as objects:
            new = json_patch(self._existing(objects, key), operations)
            if new is None:
                raise ApiError(422, "Invalid", f"{key}: a test of the patch failed")
            new["metadata"]["resourceVersion"] = uuid.uuid4().hex
            objects[key] = new
        return new

    def delete(
        self, path: str, uid: str | None = None, grace: int | None = None, version: str | None = None
    ) -> None:
        key = self._key(path)
        with self._objects(write=True) as objects:
            if key not in objects or (uid and objects[key]["metadata"]["uid"] != uid):
                return
            if version and objects[key]["metadata"]["resourceVersion"] != version:
                return
            objects[key]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._remove_if_finalized(objects, key)

    def remove_pod(self, path: str) -> None:
        """Remove the object of a pod that has terminated, as kubelet does."""
        with self._objects(write=True) as objects:
            objects.pop(path, None)

    @staticmethod
    def _remove_if_finalized(objects: dict[str, Json], key: str) -> None:
        meta = objects[key]["metadata"]
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and "/pods/" not in key:
            del objects[key]
