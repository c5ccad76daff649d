"""A fake API server: the verbs of `dbranch.kube.client.Cluster` over objects in memory or in a file.

`tests/fakes/contract.py` says what the code relies on; it is run against this one (tests/unit/fakes) and against the
real one (tests/api). No kopf, no network, no validation by schemas, no admission.
"""

from __future__ import annotations

import fcntl
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.fakes.patches import (
    Json,
    apply_patch,
    copy_json,
    is_selected,
    json_patch,
    merge_patch,
    places,
    removal_order,
    remove,
    value_at,
)

from dbranch.api.errors import ApiError, ClusterUnreachable, DbranchError

_PATH = re.compile(
    r"(?P<prefix>/api/v1|/apis/[^/]+/[^/]+)(/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)"
    r"(/(?P<name>[^/]+))?(/(?P<sub>status))?"
)
# A write to the object itself leaves their status as it is, and one to /status leaves all else.
_WITH_STATUS = frozenset(
    {"dbprojects", "dbbranches", "dbsnapshots", "dbrestores", "pods", "nodes", "services", "deployments"}
)
# Their metadata.generation counts the changes of the spec.
_WITH_GENERATION = frozenset({"dbprojects", "dbbranches", "dbsnapshots", "dbrestores", "deployments"})
# What a client cannot change.
_SERVER_FIELDS = ("name", "uid", "creationTimestamp", "deletionTimestamp", "generation", "resourceVersion")
_READING_VERBS = frozenset({"get", "find", "watch"})


@dataclass(frozen=True)
class Request:
    """A request as it came, also one that was refused."""

    verb: str
    path: str
    body: Any = None
    manager: str = ""

    @property
    def writes(self) -> bool:
        return self.verb not in _READING_VERBS

    def __str__(self) -> str:
        """Return verb, collection and what follows, as in `merge dbbranches/shop-main/status`."""
        match = _match(self.path)
        return f"{self.verb} {'/'.join(filter(None, (match['plural'], match['name'], match['sub'])))}"


class Event(NamedTuple):
    """A write: the object at the path `key` before and after it, None if there was or is none."""

    version: int
    key: str
    old: Json | None
    new: Json | None


@dataclass
class _Interruption:
    """What happens at requests of a verb whose path matches, `times` times."""

    verb: str
    pattern: str
    times: int
    error: DbranchError | None = None
    action: Callable[[], object] | None = None
    answer_lost: bool = False


@dataclass
class _State:
    """The objects by path; who applied which of their fields; and the last resourceVersion."""

    objects: dict[str, Json]
    applied: dict[str, dict[str, list[list[str]]]]
    version: int = 1000


@cache
def _match(path: str) -> re.Match[str]:
    match = _PATH.fullmatch(path)
    assert match, f"{path} is no path of the API"
    return match


def is_object(path: str) -> bool:
    """Return True if the path is that of an object, not of a collection."""
    return _match(path)["name"] is not None


def _check_uid(path: str, old: Json | None, uid: str | None) -> None:
    """Refuse a write to another object; one to a status is not refused, and its UID is ignored."""
    if uid and old is not None and old["metadata"]["uid"] != uid:
        raise ApiError(422, "Invalid", f"{path}: metadata.uid: field is immutable")


@cache
def _collections(key: str) -> tuple[str, ...]:
    """Return the paths of the lists that hold the object: its namespace's, and that of all namespaces."""
    match = _match(key)
    return key.rpartition("/")[0], f"{match['prefix']}/{match['plural']}"


class FakeApi:
    """The verbs of `Cluster`; `requests` is the log of them.

    With a `file` the objects lie there: a process may be killed at any moment, and the next one reads what it wrote;
    a watch sees the writes of its own process only, and there is no log, since kubelet and agents poll.
    """

    def __init__(self, file: Path | None = None, manager: str = "dbranch-controller") -> None:
        self._file, self._manager = file, manager
        self._memory = _State({}, {})
        self._changed = threading.Condition(threading.RLock())
        self._events: list[Event] = []
        self._watches_open = True
        self._interruptions: list[_Interruption] = []
        self.requests: list[Request] = []
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        # The family of the cluster's Service range, which a Service gets that asks for none.
        self.ip_family = "IPv4"

    # What a test does.

    def on_write(self) -> None:
        """Do nothing; a subclass counts the writes."""

    def take_requests(self) -> list[Request]:
        """Return the requests since the last call."""
        requests, self.requests = self.requests, []
        return requests

    def take_writes(self) -> list[str]:
        """Return the writes since the last call, as in `merge dbbranches/shop-main/status`."""
        return [str(request) for request in self.take_requests() if request.writes]

    def refuse(
        self, verb: str, pattern: str, error: DbranchError | None = None, times: int = 1_000_000
    ) -> None:
        """Answer requests whose path matches the regular expression with `error` (no answer, if None)."""
        error = error or ClusterUnreachable(f"{verb} {pattern}: no answer")
        self._interruptions.append(_Interruption(verb, pattern, times, error))

    def lose_answer(self, verb: str, pattern: str, times: int = 1) -> None:
        """Serve the requests, and raise ClusterUnreachable instead of answering."""
        lost = ClusterUnreachable(f"{verb} {pattern}: the answer was lost")
        self._interruptions.append(_Interruption(verb, pattern, times, lost, answer_lost=True))

    def before(self, verb: str, pattern: str, action: Callable[[], object], times: int = 1) -> None:
        """Call `action` before the next such request: what others write meanwhile."""
        self._interruptions.append(_Interruption(verb, pattern, times, action=action))

    def answer_again(self) -> None:
        """Forget all refusals."""
        self._interruptions.clear()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Take back at the end of the block what was written in it, as if it had not been."""
        memory = self._memory
        self._memory = _State(copy_json(memory.objects), copy_json(memory.applied), memory.version)
        try:
            yield
        finally:
            self._memory = memory

    def put(self, collection: str, body: Mapping[str, Any]) -> Json:
        """Create an object as it is, with its status and without a request: as if its parts had been written."""
        with self._state(write=True) as state:
            return self._insert(state, f"{collection}/{body['metadata']['name']}", body)

    def peek(self, path: str) -> Json | None:
        """Return the object at this path, without a request; None if there is none."""
        with self._state(write=False) as state:
            return copy_json(state.objects.get(_key(path)))

    def remove_pod(self, path: str) -> None:
        """Remove the object of a pod that has terminated, as kubelet does."""
        with self._state(write=True) as state:
            self._remove(state, path)

    def collect_garbage(self) -> None:
        """Delete the objects none of whose owners exist, until there are none, as the garbage collector does."""
        while True:
            with self._state(write=True) as state:
                uids = {body["metadata"]["uid"] for body in state.objects.values()}
                dependents = [
                    key
                    for key, body in state.objects.items()
                    if not body["metadata"].get("deletionTimestamp")
                    and (owners := body["metadata"].get("ownerReferences"))
                    and uids.isdisjoint(owner["uid"] for owner in owners)
                ]
                for key in dependents:
                    self._delete(state, key)
            if not dependents:
                return

    def close_watches(self) -> None:
        """End all watches, as the server does after some minutes."""
        with self._changed:
            self._watches_open = False
            self._changed.notify_all()

    @property
    def date(self) -> str:
        """The header `Date` of an answer given now."""
        return self.clock().strftime("%a, %d %b %Y %H:%M:%S GMT")

    def server_time(self) -> datetime:
        return self.clock()

    # The verbs of Cluster.

    def request_token(self, account_path: str, seconds: int) -> str:
        with self._request("get", account_path):
            return f"token of {account_path}"

    def get(self, path: str, token: str = "") -> Json | None:
        with self._request("get", path), self._state(write=False) as state:
            return copy_json(state.objects.get(_key(path)))

    def find(self, path: str, labels: str = "", fields: str = "") -> list[Json]:
        with self._request("find", path), self._state(write=False) as state:
            return self._list(state, path, labels, fields)

    def create(self, path: str, body: Mapping[str, Any]) -> Json:
        key = f"{path}/{body['metadata']['name']}"
        with self._request("create", key, body) as body, self._state(write=True) as state:
            if key in state.objects:
                raise ApiError(409, "AlreadyExists", f"{key} already exists")
            created = {**body, "metadata": _client_fields(body["metadata"])}
            if _match(key)["plural"] in _WITH_STATUS:
                created.pop("status", None)
            return self._insert(state, key, created)

    def apply(self, path: str, body: Mapping[str, Any], manager: str | None = None) -> Json:
        key, sub = _key(path), _match(path)["sub"] or ""
        owner = f"{manager or self._manager} {sub}".rstrip()
        with self._request("apply", path, body, manager) as body, self._state(write=True) as state:
            old = state.objects.get(key)
            uid = body["metadata"].get("uid")
            if old is None and sub:
                raise ApiError(404, "NotFound", f"{key} not found")
            if uid and old is None:
                raise ApiError(409, "Conflict", f"{key} is not the object with the UID {uid}")
            if not sub:
                _check_uid(key, old, uid)
            fields = {"status": body.get("status")} if sub else dict(body)
            if not sub and _match(key)["plural"] in _WITH_STATUS:
                fields.pop("status", None)
            previous = state.applied.get(key, {})
            mine = [list(place) for place in places(fields) if _is_managed(place)]
            new = apply_patch(old or {}, fields)
            # Force: what has another value now is no other's any more.
            taken = [p for p in mine if value_at(old, tuple(p)) != value_at(new, tuple(p))]
            others = {
                name: [place for place in owned if place not in taken]
                for name, owned in previous.items()
                if name != owner
            }
            given_up = [
                place
                for place in previous.get(owner, [])
                if place not in mine and not any(place in owned for owned in others.values())
            ]
            for place in sorted(map(tuple, given_up), key=removal_order):
                remove(new, place)
            state.applied[key] = {**others, owner: mine}
            if old is None:
                return self._insert(state, key, new)
            return self._write(state, path, new, touched=state.applied[key] != previous)

    def merge(self, path: str, body: Mapping[str, Any]) -> Json:
        with self._request("merge", path, body) as body, self._state(write=True) as state:
            old = self._existing(state, path)
            meta = body.get("metadata") or {}
            expected = meta.get("resourceVersion")
            if expected and expected != old["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", f"{path}: the object has been modified")
            if not _match(path)["sub"]:
                _check_uid(path, old, meta.get("uid"))
            return self._update(state, path, old, merge_patch(old, body))

    def json_patch(self, path: str, operations: list[Json]) -> Json:
        with self._request("json_patch", path, operations), self._state(write=True) as state:
            old = self._existing(state, path)
            new = json_patch(old, operations)
            if new is None:
                raise ApiError(422, "Invalid", f"{path}: the patch does not apply, or a test in it failed")
            return self._update(state, path, old, new)

    def delete(
        self, path: str, uid: str | None = None, grace: int | None = None, version: str | None = None
    ) -> None:
        preconditions = {"uid": uid, "grace": grace, "version": version}
        with self._request("delete", path, preconditions), self._state(write=True) as state:
            meta = state.objects.get(path, {}).get("metadata")
            if meta is None or (uid and meta["uid"] != uid):
                return
            if uid and version and meta["resourceVersion"] != version:
                return
            self._delete(state, path)

    def watch(self, path: str, labels: str = "", fields: str = "") -> Iterator[Json]:
        with self._request("watch", path):
            items, version = self.list_at(path, labels, fields)
        for item in items:
            yield {"type": "ADDED", "object": item}
        yield {"type": "SYNCED", "object": {}}
        yield from self.events_since(version, path, labels, fields)

    def list_at(self, path: str, labels: str = "", fields: str = "") -> tuple[list[Json], int]:
        """Return the items of a collection, and the resourceVersion of the list."""
        with self._state(write=False) as state:
            self._watches_open = True
            return self._list(state, path, labels, fields), state.version

    def events_since(self, version: int, path: str, labels: str = "", fields: str = "") -> Iterator[Json]:
        """Yield the watch events of a collection behind a resourceVersion, until `close_watches`."""
        with self._changed:
            position = next((i for i, e in enumerate(self._events) if e.version > version), len(self._events))
        while True:
            with self._changed:
                self._changed.wait_for(lambda at=position: len(self._events) > at or not self._watches_open)  # type: ignore[misc]
                if not self._watches_open:
                    return
                events, position = self._events[position:], len(self._events)
            for event in events:
                if path in _collections(event.key) and (
                    answer := _watch_event(event.old, event.new, labels, fields)
                ):
                    yield answer

    # Inside.

    @contextmanager
    def _request(self, verb: str, path: str, body: Any = None, manager: str | None = None) -> Iterator[Any]:
        """Log the request, do first what is to happen at it, and yield its body as JSON has it."""
        _match(path)
        body = json.loads(json.dumps(body))
        with self._changed:
            if self._file is None:
                self.requests.append(Request(verb, path, body, manager or self._manager))
            matching = [
                i
                for i in self._interruptions
                if i.verb == verb and i.times > 0 and re.search(i.pattern, path)
            ]
            for interruption in matching:
                interruption.times -= 1
        for interruption in matching:
            if interruption.action:
                interruption.action()
            elif interruption.error and not interruption.answer_lost:
                raise interruption.error
        yield copy_json(body)
        for interruption in matching:
            if interruption.answer_lost and interruption.error:
                raise interruption.error

    @contextmanager
    def _state(self, write: bool) -> Iterator[_State]:
        """Hold the lock, and read (and after a `write` without an exception store) all objects."""
        with self._changed:
            if self._file is None:
                yield self._memory
            else:
                with self._file.with_suffix(".lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    state = _State({}, {})
                    if self._file.exists():
                        state = _State(**json.loads(self._file.read_text()))
                    yield state
                    if write:
                        new_file = self._file.with_suffix(".new")
                        new_file.write_text(json.dumps(vars(state)))
                        new_file.rename(self._file)
            if write:
                self._changed.notify_all()
        if write:
            self.on_write()

    @staticmethod
    def _existing(state: _State, path: str) -> Json:
        key = _key(path)
        if key not in state.objects:
            raise ApiError(404, "NotFound", f"{key} not found")
        return state.objects[key]

    @staticmethod
    def _list(state: _State, path: str, labels: str, fields: str) -> list[Json]:
        return [
            copy_json(body)
            for key, body in sorted(state.objects.items())
            if path in _collections(key) and is_selected(body, labels, fields)
        ]

    def _insert(self, state: _State, key: str, body: Mapping[str, Any]) -> Json:
        match = _match(key)
        state.version += 1
        generated: Json = {"uid": str(uuid.uuid4()), "creationTimestamp": self._timestamp()}
        if match["namespace"]:
            generated["namespace"] = match["namespace"]
        if match["plural"] in _WITH_GENERATION:
            generated["generation"] = 1
        created = copy_json(dict(body))
        if match["plural"] == "services":
            created["spec"] = {"ipFamilies": [self.ip_family], **(created.get("spec") or {})}
        created["metadata"] = {**generated, **created["metadata"], "resourceVersion": str(state.version)}
        state.objects[key] = created
        self._events.append(Event(state.version, key, None, created))
        return copy_json(created)

    def _update(self, state: _State, path: str, old: Json, new: Json) -> Json:
        """Write the object; what changed is no longer anybody's who applied it."""
        key, written = _key(path), self._write(state, path, new)
        if key in state.applied:
            state.applied[key] = {
                owner: [p for p in owned if value_at(old, tuple(p)) == value_at(written, tuple(p))]
                for owner, owned in state.applied[key].items()
            }
        return written

    def _write(self, state: _State, path: str, new: Json, touched: bool = False) -> Json:
        """Store the object in place of the old one, as far as a request to this path may change it.

        One that changes nothing is no write, unless other managers own its fields now (`touched`).
        """
        key, match = _key(path), _match(path)
        old = state.objects[key]
        if match["plural"] in _WITH_STATUS:
            changed, kept_body = ({"status": new.get("status")}, old) if match["sub"] else ({}, new)
            new = {**kept_body, "status": old.get("status"), **changed}
            if new["status"] is None:
                del new["status"]
        kept = {field: old["metadata"][field] for field in _SERVER_FIELDS if field in old["metadata"]}
        new = {**new, "metadata": {**_client_fields(new["metadata"]), **kept}}
        if kept.get("deletionTimestamp"):
            added = set(new["metadata"].get("finalizers") or ()) - set(
                old["metadata"].get("finalizers") or ()
            )
            if added:
                text = f"metadata.finalizers: Forbidden: no new finalizers can be added: {sorted(added)}"
                raise ApiError(422, "Invalid", text)
        if match["plural"] == "endpointslices" and new.get("addressType") != old.get("addressType"):
            raise ApiError(422, "Invalid", f"{key}: addressType: Invalid value: field is immutable")
        if new == old and not touched:
            return copy_json(old)
        if "generation" in kept and new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] += 1
        state.version += 1
        new["metadata"]["resourceVersion"] = str(state.version)
        self._store(state, key, old, new)
        return copy_json(new)

    def _delete(self, state: _State, key: str) -> None:
        old = state.objects[key]
        if old["metadata"].get("deletionTimestamp"):
            return
        state.version += 1
        new = copy_json(old)
        new["metadata"] |= {
            "deletionTimestamp": self._timestamp(),
            "resourceVersion": str(state.version),
        }
        if "generation" in new["metadata"]:
            new["metadata"]["generation"] += 1
        self._store(state, key, old, new)

    def _store(self, state: _State, key: str, old: Json, new: Json) -> None:
        """Store the object; remove it if it is being deleted and nothing holds it any more."""
        # kubelet removes the object of a pod that it runs.
        runs = _match(key)["plural"] == "pods" and (new.get("spec") or {}).get("nodeName")
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers") and not runs:
            self._remove(state, key)
            return
        state.objects[key] = copy_json(new)
        self._events.append(Event(state.version, key, old, state.objects[key]))

    def _remove(self, state: _State, key: str) -> None:
        old = state.objects.pop(key, None)
        state.applied.pop(key, None)
        if old is not None:
            state.version += 1
            self._events.append(Event(state.version, key, old, None))

    def _timestamp(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")


def _key(path: str) -> str:
    return path.removesuffix("/status")


def _client_fields(meta: Mapping[str, Any]) -> Json:
    """Return the name and those fields of the metadata that a client may set."""
    return {key: value for key, value in meta.items() if key == "name" or key not in _SERVER_FIELDS}


def _is_managed(place: tuple[str, ...]) -> bool:
    """Return True if the field has managers: not the fields that name the object."""
    return place[0] not in ("apiVersion", "kind") and place[:2] not in (
        ("metadata", "name"),
        ("metadata", "namespace"),
        ("metadata", "uid"),
    )


def _watch_event(old: Json | None, new: Json | None, labels: str, fields: str) -> Json | None:
    """Return the event that a watch with these selectors gets of a write; None if it gets none."""
    was = old is not None and is_selected(old, labels, fields)
    if new is not None and is_selected(new, labels, fields):
        return {"type": "MODIFIED" if was else "ADDED", "object": copy_json(new)}
    return {"type": "DELETED", "object": copy_json(new or old)} if was else None
