"""The objects that a project is reached by, applied for its reconcile; and its root branch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.errors import ApiError, BeingDeleted, NameTaken, ObjectRefused
from dbranch.api.project import Project
from dbranch.controller import manifests, timing
from dbranch.controller.credentials import CredentialSecrets
from dbranch.controller.failure import is_refusal, refusal_finding
from dbranch.controller.keys import key_of
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects, UpdateDeferred
from dbranch.controller.project.plan import Applied, desired_objects, tls_finding, unwanted_objects
from dbranch.controller.proxy_pods import ProxyPod, refused_pods
from dbranch.controller.pull_secrets import PullSecrets
from dbranch.controller.rollouts import Rollouts, is_rolled_out
from dbranch.controller.routing import no_proxy_finding
from dbranch.kube.client import Cluster, branch_path, path_of

logger = logging.getLogger(__name__)

# What follows if an object of this kind is refused, and what is not applied if one has another owner: a Role or an
# account of somebody else's is given nothing, and gives nothing.
_EFFECTS: Final[Mapping[str, str]] = {
    "Service": "the connection string stays as it was",
    "NetworkPolicy": "clients may not reach Postgres",
    "PodDisruptionBudget": "a drain of nodes may end all proxies at once",
}
_NEEDS: Final[Mapping[str, frozenset[str]]] = {
    "RoleBinding": frozenset({"ServiceAccount", "Role"}),
    "Deployment": frozenset({"ServiceAccount"}),
}


class ProjectObjects:
    """Applies the objects of projects. `rollouts`: whose proxies are replaced now."""

    def __init__(
        self,
        cluster: Cluster,
        release: Release,
        owned: OwnedObjects,
        metrics: ControllerMetrics,
        credential_secrets: CredentialSecrets,
        pull_secrets: PullSecrets,
        rollouts: Rollouts,
    ) -> None:
        self._cluster, self._release, self._owned, self._metrics = cluster, release, owned, metrics
        self._credential_secrets, self._pull_secrets = credential_secrets, pull_secrets
        self._rollouts = rollouts
        # By project UID: when all that is made for it was last compared with what is there.
        self._checked: dict[str, float] = {}

    def forget(self, project: Project) -> None:
        """Forget a project that is gone."""
        self._checked.pop(project.uid, None)
        self._rollouts.end(key_of(project))

    def create_root(self, project: Project) -> Finding | None:
        """Create the root branch; return the finding of Routed if that cannot be."""
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        manifest = manifests.root_branch(project)
        name = manifest["metadata"]["name"]
        try:
            self._cluster.create(path, manifest)
        except ApiError as error:
            if is_refusal(error):
                self._metrics.refused(names.BRANCH_KIND)
                subject = f"{names.BRANCH_KIND} {name} cannot be created"
                return refusal_finding(ObjectRefused(subject, error), "no database is made")
            if error.reason != "AlreadyExists":
                raise
        else:
            return None
        existing = self._cluster.get(branch_path(project.namespace, name))
        owner = existing["spec"]["project"] if existing else project.name
        if owner == project.name:
            return None
        text = (
            f"{names.BRANCH_KIND} {name}, the root of project {project.name}, is a branch of project {owner}"
        )
        return Finding(Reason.NAME_TAKEN, f"{text}; no database is made; delete one of the two")

    def apply(
        self, project: Project, node: str | None, proxies: tuple[ProxyPod, ...], bypass_cache: bool
    ) -> Applied:
        """Apply all that the project is reached by; what is refused holds up only what depends on it."""
        bypass_objects = bypass_cache and self._is_check_due(project)
        problems: list[Finding] = []
        # Namespace and kind.
        foreign: set[tuple[str, str]] = set()
        for api, plural, manifest in desired_objects(project, self._release, node):
            kind, namespace = manifest["kind"], manifest["metadata"]["namespace"]
            if any((namespace, needed) in foreign for needed in _NEEDS.get(kind, ())):
                continue
            try:
                self._owned.apply(
                    api, plural, manifest, bypass_objects, may_update=self._may_update(project, kind)
                )
            except UpdateDeferred:
                logger.info("%s/%s: its proxies are replaced later", project.namespace, project.name)
            except (NameTaken, BeingDeleted, ObjectRefused) as error:
                foreign |= {(namespace, kind)} if isinstance(error, NameTaken) else set()
                is_proxys = namespace == project.namespace
                default = "the proxies stay as they were" if is_proxys else "its node gets no passwords"
                problems.append(refusal_finding(error, _EFFECTS.get(kind, default)))
        for api, plural, name in unwanted_objects(project):
            self._owned.ensure_absent(api, plural, project.namespace, name, project.uid, bypass_objects)
        version = self._credential_secrets.apply(project, bypass_cache)
        problems += [version] if isinstance(version, Finding) else []
        pull_problem = self._pull_secrets.apply(project, bypass_cache)
        problems += [pull_problem] if pull_problem else []
        tls = project.proxy.tls
        secret = path_of("v1", "secrets", project.namespace, tls.secret_name) if tls else None
        problem = tls_finding(project, self._cluster.get(secret) if secret else None)
        problems += [problem] if problem else []
        deployment = self._look_at_rollout(project, proxies)
        no_proxy = no_proxy_finding(project, refused_pods(deployment)) if not proxies else None
        in_force = project.password_version if isinstance(version, Finding) else version
        return Applied(in_force, problems[0] if problems else None, no_proxy)

    def _is_check_due(self, project: Project) -> bool:
        """Return True if all objects are to be compared, not only the password: that is read much more often."""
        now = time.monotonic()
        last = self._checked.get(project.uid)
        healthy = find_condition(project.status, Condition.READY) or {}
        polls_secret = healthy.get("status") == "True" and project.postgres.password_secret is not None
        if polls_secret and last is not None and now - last < timing.DRIFT_CHECK_SECONDS:
            return False
        self._checked[project.uid] = now
        return True

    def _may_update(self, project: Project, kind: str) -> Callable[[Mapping[str, Any]], bool]:
        """Return whether an object that differs may be updated: the proxies of a few projects at once."""
        return lambda existing: kind != "Deployment" or self._rollouts.begin(key_of(project))

    def _look_at_rollout(self, project: Project, proxies: tuple[ProxyPod, ...]) -> dict[str, Any] | None:
        """Read the proxies' Deployment while they are replaced, or none exists, and say when the former has ended."""
        is_running = self._rollouts.is_running(key_of(project))
        if not is_running and (proxies or not project.status.get("conditions")):
            return None
        path = path_of("apps/v1", "deployments", project.namespace, names.proxy_name(project.name))
        deployment = self._cluster.get(path)
        if is_running and is_rolled_out(deployment):
            self._rollouts.end(key_of(project))
        return deployment
