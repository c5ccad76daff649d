"""Objects of the controller's own: applied when they differ, never taken from somebody else."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch.api.errors import ApiError, NameTaken
from dbranch.kube.client import Cluster, path_of

# What was applied last, so that an object which is as it should be costs one read and no write.
_APPLIED: Final = f"{names.GROUP}/applied"


class OwnedObjects:
    """Remembers what it applied, and to which object; with `fresh`, it looks again."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._guard = threading.Lock()
        self._known: dict[str, tuple[str, str]] = {}

    def remember(self, api: str, plural: str) -> None:
        """What an earlier process applied of this kind, anywhere, by one request: it costs none again."""
        for body in self._cluster.find(path_of(api, plural), labels=f"{names.LABEL_MANAGED_BY}=dbranch"):
            meta = body["metadata"]
            applied = (meta.get("annotations") or {}).get(_APPLIED)
            if applied:
                path = path_of(api, plural, meta["namespace"], meta["name"])
                with self._guard:
                    # The digest is of our owner reference, too; without a UID: before it is written to, whose it
                    # is is looked at.
                    self._known.setdefault(path, (applied, ""))

    def ensure(
        self, api: str, plural: str, body: Mapping[str, Any], fresh: bool = False, new: bool = False
    ) -> None:
        """The object is as `body` says. NameTaken where one of somebody else has its name.

        Ours is what has our owner reference's UID, or, without one, our managed-by label. `new`: there is
        probably none yet. What is new, and what is known to be ours, costs one request.
        """
        meta = body["metadata"]
        path = path_of(api, plural, meta["namespace"], meta["name"])
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]
        with self._guard:
            known, uid = self._known.get(path, ("", ""))
        if known == digest and not fresh:
            return
        marked = {**meta, "annotations": {**(meta.get("annotations") or {}), _APPLIED: digest}}
        there: Mapping[str, Any] | None = None
        try:
            if new:
                there = self._cluster.create(
                    path_of(api, plural, meta["namespace"]), {**body, "metadata": marked}
                )
            elif uid and not fresh:
                # With its UID: another object of that name is refused.
                there = self._cluster.apply(path, {**body, "metadata": {**marked, "uid": uid}})
        except ApiError as error:
            if error.status != 409:
                raise
        if there is None:
            there = self._cluster.get(path)
            if there is not None:
                _check_ours(there, body)
            applied = ((there or {}).get("metadata", {}).get("annotations") or {}).get(_APPLIED)
            if there is None or applied != digest:
                there = self._cluster.apply(path, {**body, "metadata": marked})
        with self._guard:
            self._known[path] = digest, there["metadata"]["uid"]

    def drop(self, api: str, plural: str, namespace: str, name: str, uid: str | None = None) -> None:
        """The object is gone, if it is ours (its owner is `uid`, or there is none to ask for)."""
        path = path_of(api, plural, namespace, name)
        with self._guard:
            self._known.pop(path, None)
        there = self._cluster.get(path)
        if there is None or (uid and uid not in _owners(there)):
            return
        try:
            self._cluster.delete(path, uid=there["metadata"]["uid"])
        except ApiError as error:
            if error.status != 404:
                raise


def _owners(body: Mapping[str, Any]) -> set[str]:
    return {owner.get("uid", "") for owner in body["metadata"].get("ownerReferences") or ()}


def _check_ours(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    mine = _owners(wanted)
    labels = there["metadata"].get("labels") or {}
    ours = bool(mine & _owners(there)) if mine else labels.get(names.LABEL_MANAGED_BY) == "dbranch"
    if not ours:
        meta = wanted["metadata"]
        raise NameTaken(
            f"{wanted['kind']} {meta['name']} in namespace {meta['namespace']} belongs to somebody else; "
            "it is left alone; delete or rename it"
        )
