"""The objects that the controller owns: applied when they differ; another owner's object is left alone."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dbranch.api import names
from dbranch.api.errors import ApiError, BeingDeleted, NameTaken, ObjectRefused
from dbranch.controller.failure import is_refusal
from dbranch.controller.managed_fields import ownership_patch
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.limited import LimitedDict

logger = logging.getLogger(__name__)

Json = dict[str, Any]
# Annotation: hash of the manifest that was applied last, so that an unchanged object costs one read and no write.
_APPLIED_HASH: Final = f"{names.GROUP}/applied"
# Some 300 bytes each: what ten thousand branches need. An object beyond that costs one read more.
_MAX_REMEMBERED: Final = 40_000
# What cannot be changed in place, so that the object is made anew.
_IMMUTABLE: Final[Mapping[str, tuple[str, ...]]] = {
    "EndpointSlice": ("addressType",),
    "RoleBinding": ("roleRef",),
}
# Kinds whose manifests always have the same fields: a change of one costs one request, as a new branch needs it.
_SAME_FIELDS: Final = frozenset({"EndpointSlice"})
# Maps that the API server replaces as a whole: what others add to them is a change, too.
_ATOMIC_MAPS: Final = frozenset({"selector", "matchLabels"})
# An object that comes or goes between the look at it and the write is looked at once more.
_MAX_ATTEMPTS: Final = 3


class UpdateDeferred(Exception):
    """An object exists and would be changed, and `may_update` does not allow it now."""


@dataclass(frozen=True)
class _Applied:
    """What is remembered of an object: hash of its manifest, its UID or "", and its owners' UIDs.

    `is_created`: it was never applied, so that applying it would leave fields that the manifest has no more.
    """

    manifest_hash: str
    uid: str = ""
    owners: frozenset[str] = frozenset()
    is_created: bool = False


class OwnedObjects:
    """Applies and deletes objects, and remembers which manifest was applied to which UID. Thread-safe."""

    def __init__(self, cluster: Cluster, on_refused: Callable[[str], None] = lambda kind: None) -> None:
        """`on_refused` is called with the kind of each object that the API server rejects."""
        self._cluster, self._on_refused = cluster, on_refused
        self._guard = threading.Lock()
        self._applied: LimitedDict[str, _Applied] = LimitedDict(_MAX_REMEMBERED)
        # The first IP family of each Service that was seen, by path.
        self._ip_families: LimitedDict[str, str] = LimitedDict(_MAX_REMEMBERED)

    def preload(self, api: str, plural: str) -> None:
        """Remember what an earlier process applied of this resource in all namespaces, by one request."""
        for body in self._cluster.find(path_of(api, plural), labels=f"{names.LABEL_MANAGED_BY}=dbranch"):
            meta = body["metadata"]
            applied_hash = (meta.get("annotations") or {}).get(_APPLIED_HASH)
            if applied_hash and not meta.get("deletionTimestamp"):
                path = path_of(api, plural, meta["namespace"], meta["name"])
                with self._guard:
                    # The hash covers our owner reference, too. Without a UID, the owner is checked before a write.
                    self._applied.setdefault(path, _Applied(applied_hash, "", frozenset(owner_uids(body))))
                self._see(path, body)

    def is_remembered(self, api: str, plural: str, namespace: str, name: str) -> bool:
        """Return True if this process remembers an object of this name, of whatever owner."""
        with self._guard:
            return path_of(api, plural, namespace, name) in self._applied

    def apply(
        self,
        api: str,
        plural: str,
        manifest: Mapping[str, Any],
        bypass_cache: bool = False,
        probably_new: bool = False,
        may_update: Callable[[Mapping[str, Any]], bool] = lambda existing: True,
    ) -> None:
        """Make the object equal to its manifest.

        An object is ours if it has our owner reference's UID or, where the manifest has none, our managed-by label.
        Raises NameTaken if another owner's object has its name, BeingDeleted if one that is being deleted has it,
        ObjectRefused if the API server rejects it, UpdateDeferred if `may_update` of an object of ours that is not
        remembered and differs returns False.

        `bypass_cache`: do not trust what is remembered, read the object. An object that is `probably_new`, or that is
        remembered, costs one request.
        """
        meta = manifest["metadata"]
        path = path_of(api, plural, meta["namespace"], meta["name"])
        manifest_hash = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:32]
        with self._guard:
            remembered = self._applied.get(path, _Applied(""))
        if remembered.owners != owner_uids(manifest):
            # A project and a branch may need the same name.
            remembered = _Applied("")
        if remembered.manifest_hash == manifest_hash and not bypass_cache:
            return
        annotations = {**(meta.get("annotations") or {}), _APPLIED_HASH: manifest_hash}
        desired = {**manifest, "metadata": {**meta, "annotations": annotations}}
        applied: Mapping[str, Any] | None = None
        if probably_new:
            applied = self._create(path, desired)
        elif remembered.uid and not bypass_cache and not remembered.is_created:
            applied = self._apply_to(path, desired, remembered.uid)
        for _ in range(_MAX_ATTEMPTS):
            applied = applied or self._look_and_apply(path, desired, may_update)
        if applied is None:
            raise ApiError(409, "Conflict", f"{path} is written by others all the time")
        if applied["metadata"].get("deletionTimestamp"):
            self._forget(path)
            raise BeingDeleted(f"{_subject(desired)} is still being deleted")
        self._see(path, applied)
        owners, uid = frozenset(owner_uids(applied)), applied["metadata"]["uid"]
        is_created = manifest["kind"] not in _SAME_FIELDS and bool(
            ownership_patch(applied, names.CONTROLLER_MANAGER)
        )
        with self._guard:
            self._applied[path] = _Applied(manifest_hash, uid, owners, is_created)

    def _look_and_apply(
        self, path: str, desired: Json, may_update: Callable[[Mapping[str, Any]], bool]
    ) -> Mapping[str, Any] | None:
        """Read the object, and create or apply it; None if others have created, written or deleted it meanwhile."""
        existing = self._cluster.get(path)
        if existing is not None and _is_garbage(existing, desired):
            # The garbage collector may take seconds.
            self._cluster.delete(path, uid=existing["metadata"]["uid"])
            existing = self._cluster.get(path)
        if existing is not None and existing["metadata"].get("deletionTimestamp"):
            return existing
        if existing is not None:
            _check_owner(existing, desired)
            self._see(path, existing)
            if _has(existing, desired):
                return existing
            if not may_update(existing):
                raise UpdateDeferred
            fixed_fields = _IMMUTABLE.get(desired["kind"], ())
            if any(existing.get(field) != desired.get(field) for field in fixed_fields):
                self._cluster.delete(path, uid=existing["metadata"]["uid"])
                existing = None
        if existing is None:
            return self._create(path, desired)
        patch = ownership_patch(existing, names.CONTROLLER_MANAGER)
        try:
            if patch:
                self._cluster.json_patch(path, patch)
            return self._cluster.apply(path, _with_uid(desired, existing["metadata"]["uid"]))
        except ApiError as error:
            if error.status in (404, 409):
                return None
            raise self._refused(desired, "updated", error) from error

    def _create(self, path: str, desired: Json) -> Json | None:
        """Create the object; None if it exists. By POST, so that nothing of another owner is changed."""
        try:
            return self._cluster.create(path.rpartition("/")[0], desired)
        except ApiError as error:
            if error.status == 409:
                return None
            raise self._refused(desired, "created", error) from error

    def _apply_to(self, path: str, desired: Json, uid: str) -> Json | None:
        """Apply the object with this UID; None if it is another now, or the API server rejects the change."""
        try:
            return self._cluster.apply(path, _with_uid(desired, uid))
        except ApiError as error:
            # Another UID is an invalid change; what else is invalid is found again behind a look at the object.
            if error.status in (409, 422):
                return None
            raise self._refused(desired, "updated", error) from error

    def _refused(self, manifest: Mapping[str, Any], done: str, error: ApiError) -> ApiError:
        """Return what to raise for a rejected write: ObjectRefused, or the error itself if the object is not it."""
        if not is_refusal(error):
            return error
        self._on_refused(manifest["kind"])
        return ObjectRefused(f"{_subject(manifest)} cannot be {done}", error)

    def _see(self, path: str, body: Mapping[str, Any]) -> None:
        """Remember the IP family of a Service."""
        spec = body.get("spec")
        families = spec.get("ipFamilies") if isinstance(spec, Mapping) else None
        if families:
            with self._guard:
                self._ip_families[path] = families[0]

    def ip_family(self, namespace: str, service: str) -> str | None:
        """Return the first IP family (IPv4 or IPv6) of a Service of ours that was seen; None of another."""
        with self._guard:
            return self._ip_families.get(path_of("v1", "services", namespace, service))

    def forget_owner(self, uid: str) -> None:
        """Forget the objects of an owner that is gone."""
        with self._guard:
            for path in [path for path, applied in self._applied.items() if uid in applied.owners]:
                del self._applied[path]
                self._ip_families.pop(path, None)

    def delete(self, api: str, plural: str, namespace: str, name: str, owner_uid: str | None = None) -> None:
        """Delete an object; do nothing if it does not exist or, with `owner_uid`, has another owner.

        A deletion that the API server rejects is logged: what it was made for goes all the same.
        """
        path = path_of(api, plural, namespace, name)
        uid = self._forget(path)
        if not uid:
            existing = self._cluster.get(path)
            if existing is None or (owner_uid and owner_uid not in owner_uids(existing)):
                return
            uid = existing["metadata"]["uid"]
        try:
            self._cluster.delete(path, uid=uid)
        except ApiError as error:
            if not is_refusal(error):
                raise
            logger.warning("%s is not deleted: %s", path, error)

    def ensure_absent(
        self, api: str, plural: str, namespace: str, name: str, owner_uid: str, bypass_cache: bool = False
    ) -> None:
        """Delete an object of this owner as `delete` does; one request at first, none while that is remembered."""
        path, absent = path_of(api, plural, namespace, name), _Applied("", "", frozenset({owner_uid}))
        with self._guard:
            if self._applied.get(path) == absent and not bypass_cache:
                return
        self.delete(api, plural, namespace, name, owner_uid)
        with self._guard:
            self._applied[path] = absent

    def _forget(self, path: str) -> str:
        """Forget the object; return its UID, "" if that was not known."""
        with self._guard:
            self._ip_families.pop(path, None)
            return self._applied.pop(path, _Applied("")).uid


def owner_uids(body: Mapping[str, Any]) -> set[str]:
    """Return the UIDs in an object's owner references."""
    return {owner.get("uid", "") for owner in body["metadata"].get("ownerReferences") or ()}


def _with_uid(desired: Json, uid: str) -> Json:
    """Return the manifest for this very object: another one of its name is rejected."""
    return {**desired, "metadata": {**desired["metadata"], "uid": uid}}


def _subject(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _has(existing: Any, desired: Any, is_atomic: bool = False) -> bool:
    """Return True if an object has all that a manifest says; the API server and others may have added to it."""
    if isinstance(desired, Mapping):
        if not isinstance(existing, Mapping) or (is_atomic and existing.keys() != desired.keys()):
            return False
        return all(_has(existing.get(k), v, k in _ATOMIC_MAPS) for k, v in desired.items())
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
        owners = " and ".join(f"{kind} {name}" for _, kind, name in _owner_names(existing))
        raise NameTaken(
            f"{_subject(manifest)} in namespace {manifest['metadata']['namespace']} belongs to "
            f"{owners or 'somebody else'}; it is left alone; delete or rename it"
        )
