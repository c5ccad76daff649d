"""The objects that the controller owns: applied when they differ; another owner's object is left alone."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch.api.errors import ApiError, NameTaken
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.limited import LimitedDict

# Annotation: hash of the manifest that was applied last, so that an unchanged object costs one read and no write.
_APPLIED_HASH: Final = f"{names.GROUP}/applied"
# Some 300 bytes each: what ten thousand branches need. An object beyond that costs one read more.
_MAX_REMEMBERED: Final = 40_000


class OwnedObjects:
    """Applies and deletes objects, and remembers which manifest was applied to which UID. Thread-safe."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._guard = threading.Lock()
        # By path: hash of the manifest, and the object's UID or "".
        self._applied: LimitedDict[str, tuple[str, str]] = LimitedDict(_MAX_REMEMBERED)

    def preload(self, api: str, plural: str) -> None:
        """Remember what an earlier process applied of this resource in all namespaces, by one request."""
        for body in self._cluster.find(path_of(api, plural), labels=f"{names.LABEL_MANAGED_BY}=dbranch"):
            meta = body["metadata"]
            applied_hash = (meta.get("annotations") or {}).get(_APPLIED_HASH)
            if applied_hash:
                path = path_of(api, plural, meta["namespace"], meta["name"])
                with self._guard:
                    # The hash covers our owner reference, too. Without a UID, the owner is checked before a write.
                    self._applied.setdefault(path, (applied_hash, ""))

    def apply(
        self,
        api: str,
        plural: str,
        manifest: Mapping[str, Any],
        bypass_cache: bool = False,
        probably_new: bool = False,
    ) -> None:
        """Make the object equal to its manifest. Raises NameTaken if another owner's object has its name.

        An object is ours if it has our owner reference's UID or, where the manifest has none, our managed-by label.
        `bypass_cache`: do not trust what is remembered, read the object. An object that is `probably_new`, or that is
        remembered, costs one request.
        """
        meta = manifest["metadata"]
        path = path_of(api, plural, meta["namespace"], meta["name"])
        manifest_hash = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:32]
        with self._guard:
            applied_hash, uid = self._applied.get(path, ("", ""))
        if applied_hash == manifest_hash and not bypass_cache:
            return
        annotated = {**meta, "annotations": {**(meta.get("annotations") or {}), _APPLIED_HASH: manifest_hash}}
        existing: Mapping[str, Any] | None = None
        try:
            if probably_new:
                collection = path_of(api, plural, meta["namespace"])
                existing = self._cluster.create(collection, {**manifest, "metadata": annotated})
            elif uid and not bypass_cache:
                # With its UID, so that another object of that name is rejected.
                existing = self._cluster.apply(path, {**manifest, "metadata": {**annotated, "uid": uid}})
        except ApiError as error:
            if error.status != 409:
                raise
        if existing is None:
            existing = self._cluster.get(path)
            if existing is not None and _is_garbage(existing, manifest):
                # The garbage collector may take seconds.
                self._cluster.delete(path, uid=existing["metadata"]["uid"])
                existing = None
            if existing is not None:
                _check_owner(existing, manifest)
            desired = {**manifest, "metadata": annotated}
            if existing is None or not _has(existing, desired):
                existing = self._cluster.apply(path, desired)
        with self._guard:
            self._applied[path] = manifest_hash, existing["metadata"]["uid"]

    def delete(self, api: str, plural: str, namespace: str, name: str, owner_uid: str | None = None) -> None:
        """Delete an object; do nothing if it does not exist or, with `owner_uid`, has another owner."""
        path = path_of(api, plural, namespace, name)
        with self._guard:
            self._applied.pop(path, None)
        existing = self._cluster.get(path)
        if existing is None or (owner_uid and owner_uid not in owner_uids(existing)):
            return
        try:
            self._cluster.delete(path, uid=existing["metadata"]["uid"])
        except ApiError as error:
            if error.status != 404:
                raise


def owner_uids(body: Mapping[str, Any]) -> set[str]:
    """Return the UIDs in an object's owner references."""
    return {owner.get("uid", "") for owner in body["metadata"].get("ownerReferences") or ()}


def _has(existing: Any, desired: Any) -> bool:
    """Return True if an object has all that a manifest says; the API server and others may have added to it."""
    if isinstance(desired, Mapping):
        return isinstance(existing, Mapping) and all(_has(existing.get(k), v) for k, v in desired.items())
    if isinstance(desired, list):
        if not desired:
            return not existing
        same_length = isinstance(existing, list) and len(existing) == len(desired)
        return same_length and all(map(_has, existing, desired))
    return bool(existing == desired)


def _is_garbage(existing: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Return True if the object's only owner had the name of the manifest's, so that it cannot exist any more."""
    theirs, ours = _owner_names(existing), _owner_names(manifest)
    return theirs == ours != [] and not owner_uids(existing) & owner_uids(manifest)


def _owner_names(body: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    owners = body["metadata"].get("ownerReferences") or ()
    named = (owner for owner in owners if owner.get("name"))
    return [(owner["apiVersion"], owner["kind"], owner["name"]) for owner in named]


def _check_owner(existing: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    expected = owner_uids(manifest)
    labels = existing["metadata"].get("labels") or {}
    managed_by_us = labels.get(names.LABEL_MANAGED_BY) == "dbranch"
    ours = bool(expected & owner_uids(existing)) if expected else managed_by_us
    if not ours:
        meta = manifest["metadata"]
        raise NameTaken(
            f"{manifest['kind']} {meta['name']} in namespace {meta['namespace']} belongs to somebody else; "
            "it is left alone; delete or rename it"
        )
