"""Remove what is left in the nodes' namespace of projects whose finalizers others have removed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch.api.project import parse_project
from dbranch.controller import manifests
from dbranch.controller.manifests import Release
from dbranch.controller.owned import OwnedObjects
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)

_RBAC: Final = "rbac.authorization.k8s.io/v1"
# What the nodes' namespace has one of for each project: API, plural, and its name by the project's UID.
_OF_PROJECTS: Final[tuple[tuple[str, str, Callable[[str], str]], ...]] = (
    (_RBAC, "rolebindings", names.node_access_name),
    (_RBAC, "roles", names.node_access_name),
    ("v1", "secrets", names.verifier_secret_name),
)
_POLICIES: Final = ("networking.k8s.io/v1", "networkpolicies")


class Sweeper:
    """Sweeps verifiers and access to them, pull secrets and NetworkPolicies. All lists are uncached."""

    def __init__(self, cluster: Cluster, release: Release, owned: OwnedObjects) -> None:
        self._cluster, self._release, self._owned = cluster, release, owned

    def run(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Sweep for ever, every so many seconds."""
        while True:
            for sweep in (self.sweep_of_projects, self.sweep_pull_secrets, self.sweep_policies):
                try:
                    sweep()
                except Exception as error:  # noqa: BLE001 - the next round tries it again
                    log_error(logger, error, "sweep of the nodes' namespace")
            sleep(seconds)

    def sweep_of_projects(self) -> None:
        """Delete the verifiers of projects that do not exist, and what lets nodes read them.

        A project is there before these, so one that is not in a later list is gone.
        """
        listed = [
            (api, plural, uid, name)
            for api, plural, name_of in _OF_PROJECTS
            for uid, name in self._list(api, plural, names.LABEL_PROJECT_UID).items()
            if name == name_of(uid)
        ]
        projects = {body["metadata"]["uid"] for body in self._projects()}
        for api, plural, uid, name in listed:
            if uid not in projects:
                logger.warning("%s %s has no DBProject; it is deleted", plural, name)
                self._owned.delete(api, plural, self._release.nodes_namespace, name)

    def sweep_pull_secrets(self) -> None:
        """Delete the copies of pull secrets that no project names (any more).

        A project names a Secret before that is copied, so one that no later list of projects names is not needed.
        """
        nodes_namespace = self._release.nodes_namespace
        labels = f"{names.LABEL_MANAGED_BY}=dbranch,{names.LABEL_PULL_SECRET}"
        copies = self._cluster.find(path_of("v1", "secrets", nodes_namespace), labels=labels)
        projects = map(parse_project, self._projects() if copies else ())
        needed = {
            names.pull_secret_name(project.uid, name)
            for project in projects
            for name in project.postgres.image_pull_secrets
        }
        for name in sorted(body["metadata"]["name"] for body in copies):
            if name not in needed:
                logger.warning(
                    "no DBProject names the pull secret of which %s is a copy; it is deleted", name
                )
                self._owned.delete("v1", "secrets", nodes_namespace, name)

    def sweep_policies(self) -> None:
        """Delete the policies that admit namespaces without a project.

        A project may be made meanwhile, and its reconcile take the policy for existing: then it is applied again.
        """
        listed = self._list(*_POLICIES, names.LABEL_NAMESPACE)
        policies = [namespace for namespace, name in listed.items() if name == f"allow-{namespace}"]
        existing = _namespaces(self._projects())
        removed = {namespace for namespace in policies if namespace not in existing}
        for namespace in sorted(removed):
            logger.warning(
                "NetworkPolicy allow-%s admits a namespace without DBProjects; it is deleted", namespace
            )
            self._owned.delete(*_POLICIES, self._release.nodes_namespace, f"allow-{namespace}")
        for namespace in sorted(removed & _namespaces(self._projects() if removed else ())):
            self._owned.apply(*_POLICIES, manifests.allow_policy(namespace, self._release), bypass_cache=True)

    def _list(self, api: str, plural: str, label: str) -> dict[str, str]:
        """Return the names of what the controller made of this resource, by the value of a label that they have."""
        path = path_of(api, plural, self._release.nodes_namespace)
        bodies = self._cluster.find(path, labels=f"{names.LABEL_MANAGED_BY}=dbranch,{label}")
        return {body["metadata"]["labels"][label]: body["metadata"]["name"] for body in bodies}

    def _projects(self) -> list[dict[str, Any]]:
        return self._cluster.find(path_of(names.API_VERSION, names.PROJECTS))


def _namespaces(projects: Iterable[Mapping[str, Any]]) -> set[str]:
    return {body["metadata"]["namespace"] for body in projects}
