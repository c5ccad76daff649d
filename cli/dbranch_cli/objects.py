"""DBProjects, DBBranches, DBSnapshots and DBRestores of one namespace. Bodies are the API server's JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dbranch.api import names
from dbranch.api.conditions import Condition, Reason, find_condition
from dbranch.api.enums import SnapshotReason
from dbranch.api.errors import ApiError
from dbranch.api.gitops import gitops_manager
from dbranch.api.secrets import secret_texts
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_age
from dbranch_cli.naming import did_you_mean
from dbranch_cli.ownership import merge_maps, owned_fields

if TYPE_CHECKING:
    from dbranch_cli.connection import Connection

Body = dict[str, Any]
_APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"
_MERGE = "application/merge-patch+json"


def resource_path(plural: str, namespace: str, name: str | None = None) -> str:
    """Return the URL path of a namespace's list of a resource, or of one object."""
    path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{plural}"
    return path if name is None else f"{path}/{name}"


def manifest(kind: str, namespace: str, name: str, spec: Mapping[str, Any]) -> Body:
    """Return an object to apply."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }


def plural_for(kind: str) -> str:
    """Return the resource name of a kind: `dbprojects`, `dbbranches`, `dbsnapshots` or `dbrestores`."""
    plurals = {
        names.PROJECT_KIND: names.PROJECTS,
        names.SNAPSHOT_KIND: names.SNAPSHOTS,
        names.RESTORE_KIND: names.RESTORES,
    }
    return plurals.get(kind, names.BRANCHES)


def branch_name_of(body: Mapping[str, Any]) -> str:
    """Return the branch's name of a DBBranch, which is named `<project>-<branch>`."""
    return names.branch_name(body["spec"]["project"], body["metadata"]["name"])


def deleted_project_uid(snapshot: Mapping[str, Any]) -> str | None:
    """Return the UID of the deleted project whose record a DBSnapshot is; None if it is none."""
    return (snapshot["spec"].get("origin") or {}).get("projectUID")


def deleted_among(snapshots: Sequence[Body], branch: str | None = None) -> list[Body]:
    """Return the snapshots with the data of deleted branches (of this name), the last deleted first."""
    records = [
        body
        for body in snapshots
        if (body["spec"].get("origin") or {}).get("reason") == SnapshotReason.DELETION
        and not body["metadata"].get("deletionTimestamp")
        and branch in (None, body["spec"]["branch"])
    ]
    return sorted(records, key=lambda body: body["metadata"].get("creationTimestamp", ""), reverse=True)


def _is_lost(snapshot: Mapping[str, Any]) -> bool:
    ready = find_condition(snapshot.get("status"), Condition.READY)
    return ready is not None and ready.get("reason") == Reason.SNAPSHOT_LOST


def source_of(branch: Mapping[str, Any]) -> str | None:
    """Return what a branch was made from: a branch's name, or `snapshot/` and a DBSnapshot's; None for the root."""
    spec = branch["spec"]
    return f"snapshot/{spec['sourceSnapshot']}" if spec.get("sourceSnapshot") else spec.get("source")


def active_branch_of(project: Mapping[str, Any]) -> str:
    """Return the branch of `status.route`; before the first route `spec.activeBranch`."""
    route = (project.get("status") or {}).get("route") or {}
    return str(route.get("branch") or project["spec"].get("activeBranch") or names.ROOT_BRANCH)


def desired_branch_of(project: Mapping[str, Any]) -> str:
    """Return the branch of `spec.activeBranch`."""
    return str(project["spec"].get("activeBranch") or names.ROOT_BRANCH)


def sorted_branches(project: str, branches: Iterable[Body]) -> list[Body]:
    """Return a project's branches in order: the root branch, then the others by age."""
    root = names.branch_object_name(project, names.ROOT_BRANCH)
    return sorted(
        branches,
        key=lambda b: (
            b["metadata"]["name"] != root,
            b["metadata"].get("creationTimestamp", ""),
            b["metadata"]["name"],
        ),
    )


class Store:
    """The objects of one namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self.connection, self.namespace = connection, namespace

    def server_time(self) -> datetime:
        """Return the time of day by the API server's clock, by which things expire."""
        return self.connection.server_time()

    def find(self, plural: str, name: str) -> Body | None:
        """Return an object, or None if it does not exist."""
        try:
            return self.connection.get(resource_path(plural, self.namespace, name))
        except ApiError as error:
            if error.status == 404 and error.reason == "NotFound":
                return None
            raise

    def projects(self) -> list[Body]:
        return self._list(names.PROJECTS)

    def project(self, name: str, set_by: str = "") -> Body:
        """Return a project. Raise Failure if it does not exist; `set_by` says which setting named it."""
        body = self.find(names.PROJECTS, name)
        if body is not None:
            return body
        existing = [other["metadata"]["name"] for other in self.projects()]
        origin = f" (set by {set_by})" if set_by else ""
        raise Failure(
            ExitCode.NOT_FOUND,
            "NotFound",
            f"project {name} not found in namespace {self.namespace}{origin}"
            + (
                self._way_back(lambda: self.deleted_projects(name), f"undelete-project {name}")
                or did_you_mean(name, existing)
                or f"; create it with 'dbranch init {name}'"
            ),
        )

    def branches(self, project: str) -> list[Body]:
        """Return a project's branches: the root branch, then the others by age."""
        return sorted_branches(project, self._list(names.BRANCHES, fieldSelector=f"spec.project={project}"))

    def snapshots(self, project: str) -> list[Body]:
        """Return a project's snapshots by age. The records of deleted projects of its name are none of them."""
        return [body for body in self._by_age(names.SNAPSHOTS, project) if not deleted_project_uid(body)]

    def restores(self, project: str) -> list[Body]:
        """Return a project's DBRestores by age."""
        return self._by_age(names.RESTORES, project)

    def _by_age(self, plural: str, project: str) -> list[Body]:
        listed = self._list(plural, fieldSelector=f"spec.project={project}")
        return sorted(
            listed, key=lambda b: (b["metadata"].get("creationTimestamp", ""), b["metadata"]["name"])
        )

    def deleted_projects(self, name: str | None = None) -> list[Body]:
        """Return the DBSnapshots that are records of deleted projects (of this name), the last deleted first."""
        selector = f"{names.LABEL_ORIGIN}={SnapshotReason.DELETION.value}"
        fields = {"fieldSelector": f"spec.project={name}"} if name else {}
        listed = self._list(names.SNAPSHOTS, labelSelector=selector, **fields)
        records = [
            body
            for body in listed
            if deleted_project_uid(body) and not body["metadata"].get("deletionTimestamp")
        ]
        return sorted(records, key=lambda body: body["metadata"].get("creationTimestamp", ""), reverse=True)

    def find_branch(self, project: str, branch: str) -> Body | None:
        """Return a branch, or None if it does not exist."""
        body = self.find(names.BRANCHES, names.branch_object_name(project, branch))
        return body if body is not None and body["spec"]["project"] == project else None

    def branch(self, project: str, branch: str) -> Body:
        """Return a branch. Raise Failure with a similar name if it does not exist."""
        body = self.find_branch(project, branch)
        if body is not None:
            return body
        existing = [branch_name_of(other) for other in self.branches(project)]
        if not existing:
            self.project(project)
        raise Failure(
            ExitCode.NOT_FOUND,
            "NotFound",
            f"branch {branch} not found in project {project}"
            + (
                self._way_back(lambda: deleted_among(self.snapshots(project), branch), f"undelete {branch}")
                or did_you_mean(branch, existing)
            ),
        )

    def _way_back(self, find_records: Callable[[], Sequence[Body]], command: str) -> str:
        """Return a clause for an error message about what is missing: that it was deleted, and what undoes that.

        Empty if no record of its deletion is kept, or if it may not be seen.
        """
        try:
            records = [body for body in find_records() if not _is_lost(body)]
        except ApiError:
            return ""
        if not records:
            return ""
        age = format_age(records[0]["metadata"].get("creationTimestamp"))
        return f"; it was deleted {age} ago; 'dbranch {command}' brings it back"

    def create(self, body: Mapping[str, Any]) -> Body:
        """Create an object. Raise ApiError (409, AlreadyExists) if another request was first.

        By POST: of several who create it at once exactly one does.
        """
        return self.connection.request(
            "POST",
            resource_path(plural_for(body["kind"]), self.namespace),
            {"fieldManager": names.CLI_MANAGER, "fieldValidation": "Strict"},
            dict(body),
        )

    def apply(self, body: Mapping[str, Any], live: Mapping[str, Any] | None = None) -> Body:
        """Apply `body` by server-side apply, together with what this command line owns of `live` already."""
        kind, name = body["kind"], body["metadata"]["name"]
        applied = dict(body)
        if live is not None:
            owned = owned_fields(live)
            # A request in an annotation stays, too: it may not have been obeyed yet.
            annotations = (owned.get("metadata") or {}).get("annotations") or {}
            kept = {"spec": owned.get("spec") or {}} | (
                {"metadata": {"annotations": annotations}} if annotations else {}
            )
            applied = merge_maps(kept, body)
            # The UID: an object that was recreated under this name is another database.
            applied["metadata"] = {**applied["metadata"], "uid": live["metadata"]["uid"]}
        return self.connection.request(
            "PATCH",
            resource_path(plural_for(kind), self.namespace, name),
            {"fieldManager": names.CLI_MANAGER, "force": "true", "fieldValidation": "Strict"},
            applied,
            _APPLY,
        )

    def set_field(self, live: Mapping[str, Any], field: str, value: str, force: bool) -> Body:
        """Set `spec.<field>` of an object. Raise Failure if Argo CD, Flux or Helm owns it, unless `force`."""
        self._refuse_of_git(live, field, f"set it to {value}", force)
        kind, name = live["kind"], live["metadata"]["name"]
        return self.apply(manifest(kind, self.namespace, name, {field: value}), live)

    def clear_field(self, live: Mapping[str, Any], field: str, force: bool) -> Body:
        """Take `spec.<field>` away, whoever has set it: not by server-side apply, which leaves what others have set.

        Raise Failure if Argo CD, Flux or Helm owns it, unless `force`.
        """
        self._refuse_of_git(live, field, "take it away", force)
        return self.connection.request(
            "PATCH",
            resource_path(plural_for(live["kind"]), self.namespace, live["metadata"]["name"]),
            {"fieldManager": names.CLI_MANAGER, "fieldValidation": "Strict"},
            {"metadata": {"uid": live["metadata"]["uid"]}, "spec": {field: None}},
            _MERGE,
        )

    def _refuse_of_git(self, live: Mapping[str, Any], field: str, remedy: str, force: bool) -> None:
        manager = gitops_manager(live, "spec", field)
        if manager and not force:
            kind, name = live["kind"], live["metadata"]["name"]
            raise Failure(
                ExitCode.REFUSED,
                "ManagedByGit",
                f"spec.{field} of {kind} {name} is managed by {manager}, which would revert the change;"
                f" {remedy} in Git, or write it anyway with --force",
            )

    def apply_schedules(self, live: Mapping[str, Any], spec: Mapping[str, Any], force: bool) -> Body:
        """Set fields of spec.snapshots (entries by name) and spec.refresh of a branch, and of none but those named.

        Raise Failure if Argo CD, Flux or Helm owns one of the two, unless `force`.
        """
        for field in spec:
            self._refuse_of_git(live, field, "change it", force)
        changed = {str(entry["name"]): entry for entry in spec.get("snapshots") or ()}
        if changed:
            owned = (owned_fields(live).get("spec") or {}).get("snapshots") or ()
            entries = {str(entry["name"]): entry for entry in owned}
            entries |= {name: merge_maps(entries.get(name) or {}, entry) for name, entry in changed.items()}
            spec = {**spec, "snapshots": list(entries.values())}
        return self.apply(manifest(live["kind"], self.namespace, live["metadata"]["name"], spec), live)

    def remove_schedules(
        self, live: Mapping[str, Any], snapshots: Sequence[str], refresh: bool, force: bool
    ) -> Body:
        """Remove entries of spec.snapshots by name, and spec.refresh, whoever has set them, if nothing has changed.

        Raise Failure if Argo CD, Flux or Helm owns one of the two, unless `force`.
        """
        entries = live["spec"].get("snapshots") or []
        operations: list[Body] = [
            {"op": "test", "path": "/metadata/uid", "value": live["metadata"]["uid"]},
        ]
        if snapshots:
            self._refuse_of_git(live, "snapshots", "remove it", force)
            left = [entry for entry in entries if entry["name"] not in snapshots]
            operations.append({"op": "test", "path": "/spec/snapshots", "value": entries})
            change = {"op": "replace", "value": left} if left else {"op": "remove"}
            operations.append({"path": "/spec/snapshots", **change})
        if refresh:
            self._refuse_of_git(live, "refresh", "remove it", force)
            operations.append({"op": "remove", "path": "/spec/refresh"})
        path = resource_path(plural_for(live["kind"]), self.namespace, live["metadata"]["name"])
        params = {"fieldManager": names.CLI_MANAGER}
        return self.connection.request("PATCH", path, params, operations, _JSON_PATCH)

    def request_restart(self, live: Mapping[str, Any], restarted_at: str, reset_alter_system: bool) -> Body:
        """Request one restart of a branch's Postgres, also without what ALTER SYSTEM has set in it.

        `restarted_at`: RFC 3339, another one for each restart.
        """
        name = live["metadata"]["name"]
        body = manifest(live["kind"], self.namespace, name, {})
        body["metadata"]["annotations"] = {names.RESTARTED_AT: restarted_at}
        if reset_alter_system:
            body["metadata"]["annotations"][names.ALTER_SYSTEM_RESET_AT] = restarted_at
        return self.apply(body, live)

    def delete(self, live: Mapping[str, Any]) -> None:
        """Delete exactly this object, by its UID."""
        self._delete(live, {})

    def check_deletion(self, live: Mapping[str, Any]) -> None:
        """Let the API server refuse the deletion of this object, as far as it would. Raise ApiError if it does."""
        self._delete(live, {"dryRun": ["All"]})

    def _delete(self, live: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        # In the body: with one the API server does not read options in the URL.
        self.connection.request(
            "DELETE",
            resource_path(plural_for(live["kind"]), self.namespace, live["metadata"]["name"]),
            body={
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "preconditions": {"uid": live["metadata"]["uid"]},
                **options,
            },
        )

    def secret(self, object_name: str) -> dict[str, str]:
        """Return the data of Secret `<object>-conn`: host, port, username, password, database, uri."""
        return self._connection_secret(names.conn_secret_name(object_name))

    def superuser_secret(self, project: str) -> dict[str, str]:
        """Return the data of Secret `<project>-superuser-conn`; its keys are those of `secret`."""
        return self._connection_secret(names.superuser_secret_name(project))

    def _connection_secret(self, name: str) -> dict[str, str]:
        try:
            body = self.connection.get(f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            raise Failure(
                ExitCode.NOT_FOUND,
                "SecretNotFound",
                f"Secret {name} does not exist (yet); dbranch creates it with the project, see 'dbranch status'",
            ) from error
        return secret_texts(body)

    def events(self, live: Mapping[str, Any]) -> list[Body]:
        """Return the Events of an object, oldest first."""
        response = self.connection.get(
            f"/api/v1/namespaces/{self.namespace}/events",
            fieldSelector=f"involvedObject.uid={live['metadata']['uid']}",
        )
        return sorted(response["items"], key=event_time)

    def _list(self, plural: str, **params: str) -> list[Body]:
        response = self.connection.get(resource_path(plural, self.namespace), **params)
        kind = str(response["kind"]).removesuffix("List")
        return [{"apiVersion": names.API_VERSION, "kind": kind, **item} for item in response["items"]]


def event_time(event: Mapping[str, Any]) -> str:
    """Return the time of an Event's last occurrence (RFC 3339), or an empty string."""
    return str(
        event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )
