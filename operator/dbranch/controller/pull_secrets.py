"""Pull secrets: copied from a project's namespace into the nodes', under the project's UID."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, BeingDeleted, NameTaken, ObjectRefused
from dbranch.api.project import Project
from dbranch.controller import manifests
from dbranch.controller.failure import is_refusal, refusal_finding
from dbranch.controller.manifests import Release
from dbranch.controller.owned import OwnedObjects
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.limited import LimitedDict

# The types of Secrets that kubelet pulls images with, and the key that it reads of each. Nothing else is copied.
_KEYS: Final[Mapping[str, str]] = {
    "kubernetes.io/dockerconfigjson": ".dockerconfigjson",
    "kubernetes.io/dockercfg": ".dockercfg",
}
_MAX_REMEMBERED: Final = 1000
_EFFECT: Final = "images are pulled without it"


class PullSecrets:
    """Copies the Secrets in `spec.postgres.imagePullSecrets`. Call it under the project's lock.

    That all of them were copied is remembered by project UID, until `bypass_cache` or a change of the names.
    """

    def __init__(self, cluster: Cluster, release: Release, owned: OwnedObjects) -> None:
        self._cluster, self._release, self._owned = cluster, release, owned
        self._copied: LimitedDict[str, tuple[str, ...]] = LimitedDict(_MAX_REMEMBERED)

    def apply(self, project: Project, bypass_cache: bool) -> Finding | None:
        """Copy the project's pull secrets; return a finding about the first one that cannot be."""
        listed = project.postgres.image_pull_secrets
        if not listed or (self._copied.get(project.uid) == listed and not bypass_cache):
            return None
        findings = [self._copy(project, name, bypass_cache) for name in listed]
        problem = next(filter(None, findings), None)
        if problem:
            self._copied.pop(project.uid, None)
        else:
            self._copied[project.uid] = listed
        return problem

    def delete(self, project: Project) -> None:
        """Delete the copies of a project that ends; the sweep deletes those that it named earlier."""
        self._copied.pop(project.uid, None)
        for name in project.postgres.image_pull_secrets:
            copy = names.pull_secret_name(project.uid, name)
            self._owned.delete("v1", "secrets", self._release.nodes_namespace, copy)

    def _copy(self, project: Project, name: str, bypass_cache: bool) -> Finding | None:
        subject = f'pull secret "{name}"'
        try:
            secret = self._cluster.get(path_of("v1", "secrets", project.namespace, name))
            if secret is None:
                missing = f"{subject} does not exist in {project.namespace}"
                return Finding(Reason.PULL_SECRET_NOT_FOUND, f"{missing}; {_EFFECT}; create it there")
            secret_type, data = _content(secret)
            if not data:
                text = f"{subject} in {project.namespace} is none for pulling images"
                advice = "make it of type kubernetes.io/dockerconfigjson"
                return Finding(Reason.PULL_SECRET_NOT_FOUND, f"{text}; {_EFFECT}; {advice}")
            copy = manifests.pull_secret(project, self._release, name, secret_type, data)
            self._owned.apply("v1", "secrets", copy, bypass_cache)
        except (NameTaken, BeingDeleted, ObjectRefused) as error:
            return refusal_finding(error, _EFFECT)
        except ApiError as error:
            if not is_refusal(error):
                raise
            return refusal_finding(ObjectRefused(f"{subject} cannot be read", error), _EFFECT)
        return None


def _content(secret: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return a Secret's type and, of its data, what kubelet reads; nothing if it is of another type."""
    secret_type = str(secret.get("type", ""))
    key = _KEYS.get(secret_type)
    value = (secret.get("data") or {}).get(key) if key else None
    return secret_type, ({key: value} if key and value else {})
