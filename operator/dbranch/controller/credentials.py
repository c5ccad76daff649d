"""The owner's password of a project: the user's or a drawn one, its Secret for people, its verifier for the agent."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import Project
from dbranch.api.scram import is_verifier_of, verifier_of, version_of
from dbranch.api.secrets import secret_text
from dbranch.controller import manifests
from dbranch.controller.manifests import Login, Release
from dbranch.controller.owned import OwnedObjects
from dbranch.kube.client import Cluster, path_of


@dataclass(frozen=True)
class _Known:
    """What the Secrets of a project said when they were read. `place`: of the password, its Secret and key."""

    place: tuple[str, str]
    password: str
    verifier: str


class Logins:
    """Remembers what it read; with `fresh`, it looks again. Call under the project's lock."""

    def __init__(self, cluster: Cluster, release: Release, owned: OwnedObjects) -> None:
        self._cluster, self._release, self._owned = cluster, release, owned
        self._known: dict[str, _Known] = {}

    def ensure(self, project: Project, fresh: bool) -> str | Finding:
        """The Secret `…-conn` and the verifier's Secret say the password. Its version, or why there is none yet.

        NameTaken where somebody else's Secret has the name.
        """
        asked = project.postgres.password_secret
        place = (asked.name, asked.key) if asked else (names.conn_secret_name(project.name), "password")
        known = self._known.get(project.uid)
        if known is None or fresh or known.place != place:
            read = self._read(project, place)
            if isinstance(read, Finding):
                self._known.pop(project.uid, None)
                return read
            known = read
        login = Login(project.postgres.user, known.password, project.postgres.database)
        conn = manifests.conn_secret(project, self._release, login)
        self._owned.ensure("v1", "secrets", conn, fresh)
        body = manifests.verifier_secret(project, self._release, known.verifier)
        self._owned.ensure("v1", "secrets", body, fresh)
        # Only what stands in the Secrets: one that was drawn and not written would be another the next time.
        self._known[project.uid] = known
        return version_of(known.verifier)

    def drop(self, project: Project) -> None:
        """The verifier's Secret is gone; the other one goes with its owner, the project."""
        self._known.pop(project.uid, None)
        nodes = self._release.nodes_namespace
        self._owned.drop("v1", "secrets", nodes, names.verifier_secret_name(project.uid))

    def _read(self, project: Project, place: tuple[str, str]) -> _Known | Finding:
        """The user's password, the one drawn earlier, or a new one; its verifier: the one there is, if it fits."""
        password = self._text(project.namespace, *place)
        if not password and project.postgres.password_secret:
            name, key = place
            missing = f'Secret "{name}" with the key "{key}" does not exist in {project.namespace}'
            return Finding(Reason.SECRET_NOT_FOUND, f"{missing}; no database is made before; create it")
        password = password or secrets.token_urlsafe(24)
        there = self._text(self._release.nodes_namespace, names.verifier_secret_name(project.uid), "verifier")
        fits = there is not None and is_verifier_of(there, password)
        verifier = there if there and fits else verifier_of(password, secrets.token_bytes(16))
        return _Known(place, password, verifier)

    def _text(self, namespace: str, name: str, key: str) -> str | None:
        return secret_text(self._cluster.get(path_of("v1", "secrets", namespace, name)), key)
