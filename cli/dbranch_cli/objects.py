"""Projects and branches in the API server: found, applied, deleted. Bodies are the API server's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.api.secrets import secret_texts
from dbranch_cli.connection import APPLY_CONTENT_TYPE, Connection
from dbranch_cli.failure import NOT_FOUND, REFUSED, Failure
from dbranch_cli.ownership import gitops_manager, merge_maps, owned_fields
from dbranch_cli.naming import did_you_mean

Body = dict[str, Any]


def resource_path(plural: str, namespace: str, name: str | None = None) -> str:
    """The path of a kind's list in a namespace, or of one object."""
    path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{plural}"
    return path if name is None else f"{path}/{name}"


def manifest(kind: str, namespace: str, name: str, spec: Mapping[str, Any]) -> Body:
    """What is applied, as one would write it."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }


def plural_for(kind: str) -> str:
    return names.PROJECTS if kind == names.PROJECT_KIND else names.BRANCHES


def branch_name_of(body: Mapping[str, Any]) -> str:
    """The branch's name of a DBBranch."""
    return names.branch_name(body["spec"]["project"], body["metadata"]["name"])


def active_branch_of(project: Mapping[str, Any]) -> str:
    """The branch that the connection string reaches now, or, before the first route, shall reach."""
    route = (project.get("status") or {}).get("route") or {}
    return str(route.get("branch") or project["spec"].get("activeBranch") or names.ROOT_BRANCH)


class Store:
    """The objects of one namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self.connection, self.namespace = connection, namespace

    def find(self, plural: str, name: str) -> Body | None:
        try:
            return self.connection.get(resource_path(plural, self.namespace, name))
        except ApiError as error:
            if error.status == 404 and error.reason == "NotFound":
                return None
            raise

    def projects(self) -> list[Body]:
        return self._list(names.PROJECTS)

    def project(self, name: str, named_by: str = "") -> Body:
        """A project that is there. `said_by` tells where its name was taken from."""
        body = self.find(names.PROJECTS, name)
        if body is not None:
            return body
        known = [other["metadata"]["name"] for other in self.projects()]
        origin = f" (named by {said_by})" if named_by else ""
        raise Failure(
            NOT_FOUND,
            "NotFound",
            f"there is no project {name} in namespace {self.namespace}{origin}"
            + (did_you_mean(name, known) or f"; make it: dbranch init {name}"),
        )

    def branches(self, project: str) -> list[Body]:
        """The project's branches: the root first, then as they were made."""
        found = self._list(names.BRANCHES, fieldSelector=f"spec.project={project}")
        return sorted(
            found,
            key=lambda b: (
                bool(b["spec"].get("source")),
                b["metadata"].get("creationTimestamp", ""),
                b["metadata"]["name"],
            ),
        )

    def find_branch(self, project: str, branch: str) -> Body | None:
        body = self.find(names.BRANCHES, names.branch_object_name(project, branch))
        return body if body is not None and body["spec"]["project"] == project else None

    def branch(self, project: str, branch: str) -> Body:
        """A branch that is there; else a failure that names the one probably meant."""
        body = self.find_branch(project, branch)
        if body is not None:
            return body
        known = [branch_name_of(other) for other in self.branches(project)]
        if not known:
            self.project(project)
        raise Failure(
            NOT_FOUND,
            "NotFound",
            f"there is no branch {branch} in project {project}{did_you_mean(branch, known)}",
        )

    def apply(self, body: Mapping[str, Any], live: Mapping[str, Any] | None = None) -> Body:
        """Server-side apply of `body` on top of what this command line owns already of `live`."""
        kind, name = body["kind"], body["metadata"]["name"]
        sent = dict(body)
        if live is not None:
            sent = {**merge_maps({"spec": owned_fields(live).get("spec") or {}}, body)}
            # Only this very object: one that was made anew under the name is another database.
            sent["metadata"] = {**body["metadata"], "uid": live["metadata"]["uid"]}
        return self.connection.request(
            "PATCH",
            resource_path(plural_for(kind), self.namespace, name),
            {"fieldManager": names.CLI_MANAGER, "force": "true", "fieldValidation": "Strict"},
            sent,
            APPLY_CONTENT_TYPE,
        )

    def set_field(self, live: Mapping[str, Any], field: str, value: str, force: bool) -> Body:
        """`spec.<field>` of an object. Refuses what a tool keeps as Git says, unless forced."""
        kind, name = live["kind"], live["metadata"]["name"]
        manager = gitops_manager(live, "spec", field)
        if manager and not force:
            raise Failure(
                REFUSED,
                "ManagedByGit",
                f"spec.{field} of {kind} {name} is kept by {manager}, which would undo the change;"
                f" set it to {value} in Git, or write it here with --force",
            )
        return self.apply(manifest(kind, self.namespace, name, {field: value}), live)

    def request_restart(self, live: Mapping[str, Any], when: str) -> Body:
        """Asks for one restart of a branch's Postgres. `when`: RFC 3339, another one for each restart."""
        name = live["metadata"]["name"]
        body = manifest(live["kind"], self.namespace, name, {})
        body["metadata"]["annotations"] = {names.RESTARTED_AT: when}
        return self.apply(body, live)

    def delete(self, live: Mapping[str, Any]) -> None:
        """Delete this very object (by its UID)."""
        self.connection.request(
            "DELETE",
            resource_path(plural_for(live["kind"]), self.namespace, live["metadata"]["name"]),
            body={
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "preconditions": {"uid": live["metadata"]["uid"]},
            },
        )

    def secret(self, object_name: str) -> dict[str, str]:
        """The Secret `<object>-conn`: host, port, username, password, database, uri."""
        name = names.conn_secret_name(object_name)
        try:
            body = self.connection.get(f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            raise Failure(
                NOT_FOUND,
                "SecretNotFound",
                f"Secret {name} is not there (yet); dbranch makes it with the project: see dbranch status",
            ) from error
        return secret_texts(body)

    def events(self, live: Mapping[str, Any]) -> list[Body]:
        """The Events of an object, oldest first."""
        answer = self.connection.get(
            f"/api/v1/namespaces/{self.namespace}/events",
            fieldSelector=f"involvedObject.uid={live['metadata']['uid']}",
        )
        return sorted(answer["items"], key=event_time)

    def _list(self, plural: str, **params: str) -> list[Body]:
        answer = self.connection.get(resource_path(plural, self.namespace), **params)
        kind = str(answer["kind"]).removesuffix("List")
        return [{"apiVersion": names.API_VERSION, "kind": kind, **item} for item in answer["items"]]


def event_time(event: Mapping[str, Any]) -> str:
    return str(
        event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )
