"""Follow objects: list, watch, and list again when a watch ends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dbranch.api import names
from dbranch.api.errors import ClusterUnreachable
from dbranch_cli.objects import Body, Store, resource_path

_WATCH_SECONDS: Final = 300
_MAX_RECONNECTS: Final = 5
_RECONNECT_DELAY_SECONDS: Final = 0.5  # times the number of failures so far


@dataclass(frozen=True)
class Change:
    """A version of an object, or with `deleted` its last one."""

    body: Body
    deleted: bool = False


def follow(
    store: Store, plural: str, selector: Mapping[str, str], existing: Iterable[Mapping[str, Any]] = ()
) -> Iterator[Change]:
    """Yield each version of the namespace's objects of a resource for ever, at first the present ones.

    `selector`: query parameters as `fieldSelector`. One of `existing` that does not exist any more is yielded as
    deleted. Raises ApiError, and ClusterUnreachable after several attempts.
    """
    path = resource_path(plural, store.namespace)
    # By UID: what was yielded last.
    seen: dict[str, Body] = {body["metadata"]["uid"]: dict(body) for body in existing}
    versions: dict[str, str] = {}
    failures = 0
    while True:
        try:
            listed = store.connection.get(path, **selector)
            failures = 0
            present = [_typed(listed, item) for item in listed["items"]]
            uids = {body["metadata"]["uid"] for body in present}
            for gone in [uid for uid in seen if uid not in uids]:
                versions.pop(gone, None)
                yield Change(seen.pop(gone), deleted=True)
            for body in present:
                uid, version = body["metadata"]["uid"], body["metadata"]["resourceVersion"]
                if versions.get(uid) != version:
                    seen[uid], versions[uid] = body, version
                    yield Change(body)
            position = {"resourceVersion": listed["metadata"]["resourceVersion"]}
            for event in store.connection.watch(path, {**selector, **position}, _WATCH_SECONDS):
                if event["type"] == "ERROR":
                    break  # the resourceVersion is too old: list again
                if event["type"] == "BOOKMARK":
                    continue
                body = event["object"]
                uid, deleted = body["metadata"]["uid"], event["type"] == "DELETED"
                if deleted:
                    seen.pop(uid, None)
                    versions.pop(uid, None)
                else:
                    seen[uid], versions[uid] = body, body["metadata"]["resourceVersion"]
                yield Change(body, deleted)
        except ClusterUnreachable:
            failures += 1
            if failures > _MAX_RECONNECTS:
                raise
            time.sleep(_RECONNECT_DELAY_SECONDS * failures)
        except (ValueError, KeyError) as error:
            raise ClusterUnreachable(f"cannot parse the API server's watch: {error!r}") from error


def _typed(listed: Mapping[str, Any], item: Body) -> Body:
    """Return an item of a list with the kind that the list has for all of them."""
    kind = str(listed.get("kind", "")).removesuffix("List")
    return {"apiVersion": names.API_VERSION, "kind": kind, **item}
