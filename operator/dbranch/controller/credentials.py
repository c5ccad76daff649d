"""A project's password: read from the user's Secret or generated, written into the Secrets that need it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import Project
from dbranch.api.scram import is_verifier_of, verifier_of, version_of
from dbranch.api.secrets import secret_text
from dbranch.controller import manifests
from dbranch.controller.manifests import Credentials, Release
from dbranch.controller.owned import OwnedObjects
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.limited import LimitedDict

# Of projects; others are read again from their Secrets.
_MAX_PASSWORDS: Final = 1000


@dataclass(frozen=True)
class _Password:
    """A project's password, its verifier, and the (Secret, key) that the password was read from or belongs in."""

    secret_ref: tuple[str, str]
    text: str
    verifier: str


class CredentialSecrets:
    """The Secrets that hold a project's credentials. Call it under the project's lock.

    What was read is remembered by project UID, until `bypass_cache` or a change of `spec.postgres.passwordSecret`.
    """

    def __init__(self, cluster: Cluster, release: Release, owned: OwnedObjects) -> None:
        self._cluster, self._release, self._owned = cluster, release, owned
        self._passwords: LimitedDict[str, _Password] = LimitedDict(_MAX_PASSWORDS)

    def apply(self, project: Project, bypass_cache: bool) -> str | Finding:
        """Apply the project's connection Secret and its verifier Secret; return the password's version.

        Returns a finding if the user's Secret does not have the password. Raises NameTaken if another owner's Secret
        has the name of one of them.
        """
        user_secret = project.postgres.password_secret
        secret_ref = (
            (user_secret.name, user_secret.key)
            if user_secret
            else (names.conn_secret_name(project.name), "password")
        )
        password = self._passwords.get(project.uid)
        if password is None or bypass_cache or password.secret_ref != secret_ref:
            read = self._read(project, secret_ref)
            if isinstance(read, Finding):
                self._passwords.pop(project.uid, None)
                return read
            password = read
        credentials = Credentials(project.postgres.user, password.text, project.postgres.database)
        conn_secret = manifests.conn_secret(project, self._release, credentials)
        self._owned.apply("v1", "secrets", conn_secret, bypass_cache)
        verifier_secret = manifests.verifier_secret(project, self._release, password.verifier)
        self._owned.apply("v1", "secrets", verifier_secret, bypass_cache)
        # Remembered only once written: a generated password that was not would be another one the next time.
        self._passwords[project.uid] = password
        return version_of(password.verifier)

    def delete(self, project: Project) -> None:
        """Delete the verifier Secret. The connection Secret goes with its owner, the project."""
        self._passwords.pop(project.uid, None)
        nodes_namespace = self._release.nodes_namespace
        self._owned.delete("v1", "secrets", nodes_namespace, names.verifier_secret_name(project.uid))

    def _read(self, project: Project, secret_ref: tuple[str, str]) -> _Password | Finding:
        """Read the user's password or the one generated earlier, else generate one; keep a verifier that fits."""
        text = self._secret_text(project.namespace, *secret_ref)
        if not text and project.postgres.password_secret:
            name, key = secret_ref
            missing = f'Secret "{name}" with the key "{key}" does not exist in {project.namespace}'
            return Finding(Reason.SECRET_NOT_FOUND, f"{missing}; no database is made before; create it")
        text = text or secrets.token_urlsafe(24)
        verifier = self._secret_text(
            self._release.nodes_namespace, names.verifier_secret_name(project.uid), "verifier"
        )
        if not verifier or not is_verifier_of(verifier, text):
            verifier = verifier_of(text, secrets.token_bytes(16))
        return _Password(secret_ref, text, verifier)

    def _secret_text(self, namespace: str, name: str, key: str) -> str | None:
        return secret_text(self._cluster.get(path_of("v1", "secrets", namespace, name)), key)
