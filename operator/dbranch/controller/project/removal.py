"""The deletion of a project: its restores, branches and snapshots go, then what was made for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.api.project import Project
from dbranch.api.snapshot import parse_snapshot
from dbranch.controller import timing
from dbranch.controller.cache import Cache
from dbranch.controller.credentials import CredentialSecrets
from dbranch.controller.events import EmitEvent
from dbranch.controller.failure import is_refusal
from dbranch.controller.finalizers import AbandonmentRefusals, release_if_abandoned
from dbranch.controller.manifests import Release
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.deletion_records import DeletionRecords
from dbranch.controller.project.plan import desired_objects, held_status
from dbranch.controller.pull_secrets import PullSecrets
from dbranch.kube.client import Cluster, branch_path, object_path, path_of
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.result import DONE, Result

logger = logging.getLogger(__name__)

_RBAC: Final = "rbac.authorization.k8s.io/v1"


class ProjectRemoval:
    """Removes projects that are being deleted. A step that was cut off is repeated by the next reconcile."""

    def __init__(
        self,
        cluster: Cluster,
        release: Release,
        owned: OwnedObjects,
        credential_secrets: CredentialSecrets,
        pull_secrets: PullSecrets,
        emit_event: EmitEvent,
    ) -> None:
        self._cluster, self._release, self._owned = cluster, release, owned
        self._credential_secrets, self._pull_secrets = credential_secrets, pull_secrets
        self._abandonment_refusals = AbandonmentRefusals(emit_event)
        self._records = DeletionRecords(cluster)

    def remove(self, project: Project, cache: Cache, spec: Mapping[str, Any]) -> Result:
        """Delete the project's branches, its snapshots, then what was made for it; let go of it in the end.

        The event of the last branch's or snapshot's deletion leads here again.
        """
        node = cache.node(project.node_name) if project.node_name else None
        release_if_abandoned(self._cluster, project, node)
        self._abandonment_refusals.report(project, node)
        if names.CONTROLLER_FINALIZER not in project.finalizers:
            held = held_status(project, now_rfc3339())
            if held:
                patch_status(self._cluster, project, held)
            return DONE
        # Restores first: one that exchanges a branch's data now comes to its end.
        if self._delete_restores(project):
            return Result(timing.DELETION_RESYNC_SECONDS)
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        remaining = [b for b in self._cluster.find(path) if b["spec"]["project"] == project.name]
        # Before the first of them goes.
        if not self._records.ensure(project, node, spec, remaining):
            longest = timing.REFUSED_LONGEST_RETRY_SECONDS
            return Result(timing.REFUSED_RETRY_SECONDS, unfinished=True, longest=longest)
        refused = False
        for body in remaining:
            meta = body["metadata"]
            if not meta.get("deletionTimestamp"):
                path = branch_path(meta["namespace"], meta["name"])
                refused = not self._delete(path, meta["uid"]) or refused
        if refused:
            longest = timing.REFUSED_LONGEST_RETRY_SECONDS
            return Result(timing.POLICY_LAG_RETRY_SECONDS, unfinished=True, longest=longest)
        # The snapshots behind the branches: none is taken any more, and what is being made of one is gone.
        if remaining or self._delete_snapshots(project):
            return Result(timing.DELETION_RESYNC_SECONDS)
        for api, plural, manifest in reversed(desired_objects(project, self._release)):
            if manifest["metadata"]["namespace"] == project.namespace:
                name = manifest["metadata"]["name"]
                self._owned.delete(api, plural, project.namespace, name, project.uid)
        self._credential_secrets.delete(project)
        self._pull_secrets.delete(project)
        for plural in ("rolebindings", "roles"):
            access = names.node_access_name(project.uid)
            self._owned.delete(_RBAC, plural, self._release.nodes_namespace, access)
        # The last project of a namespace takes the NetworkPolicy along. One that is being deleted needs it no more.
        others = (p for p in cache.all_projects() if p.namespace == project.namespace and not p.deleting)
        if not any(other.uid != project.uid for other in others):
            nodes_namespace, name = self._release.nodes_namespace, f"allow-{project.namespace}"
            self._owned.delete("networking.k8s.io/v1", "networkpolicies", nodes_namespace, name)
        remove_finalizer(self._cluster, object_path(project), project.uid, names.CONTROLLER_FINALIZER)
        return DONE

    def _delete(self, path: str, uid: str) -> bool:
        """Delete a branch of a project that is being deleted; return False if that is refused.

        The deletion policy holds the controller, too, and may not have heard of the project's deletion yet.
        """
        try:
            self._cluster.delete(path, uid=uid)
        except ApiError as error:
            if not is_refusal(error):
                raise
            logger.info("%s: %s", path, error)
            return False
        return True

    def _delete_snapshots(self, project: Project) -> bool:
        """Delete the project's snapshots; return True while some of them still exist."""
        return bool(self._delete_all(names.SNAPSHOTS, project))

    def _delete_restores(self, project: Project) -> bool:
        """Delete the project's restores; return True while one of them cannot go yet."""
        return any(body["metadata"].get("finalizers") for body in self._delete_all(names.RESTORES, project))

    def _delete_all(self, plural: str, project: Project) -> list[dict[str, Any]]:
        """Delete the project's objects of a kind; return those that there were."""
        path = path_of(names.API_VERSION, plural, project.namespace)
        remaining = self._cluster.find(path, fields=f"spec.project={project.name}")
        if plural == names.SNAPSHOTS:
            # The records of deleted projects are none of them: this one's, and those of others that had its name.
            remaining = [body for body in remaining if not parse_snapshot(body).origin_project_uid]
        for body in remaining:
            meta = body["metadata"]
            if not meta.get("deletionTimestamp"):
                self._cluster.delete(f"{path}/{meta['name']}", uid=meta["uid"])
        return remaining
