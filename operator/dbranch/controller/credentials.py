"""A project's passwords: read from the user's Secret or generated, written into the Secrets that need them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import Project
from dbranch.api.scram import is_verifier_of, joined_version, verifier_of
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
    """A password, its verifier, and the (Secret, key) that it was read from or belongs in."""

    secret_ref: tuple[str, str]
    text: str
    verifier: str


@dataclass(frozen=True)
class _Passwords:
    """A project's passwords; `superuser` is None where the application's role is the superuser, or it is unknown."""

    application: _Password
    superuser: _Password | None

    @property
    def version(self) -> str:
        """The value of `status.passwordVersion`: the agent sets the passwords when it changes."""
        verifiers = [self.application.verifier] + ([self.superuser.verifier] if self.superuser else [])
        return joined_version(*verifiers)


class CredentialSecrets:
    """The Secrets that hold a project's credentials. Call it under the project's lock.

    What was read is remembered by project UID, until `bypass_cache`, or a change of `spec.postgres.passwordSecret` or
    of what is known of the superuser.
    """

    def __init__(self, cluster: Cluster, release: Release, owned: OwnedObjects) -> None:
        self._cluster, self._release, self._owned = cluster, release, owned
        self._passwords: LimitedDict[str, _Passwords] = LimitedDict(_MAX_PASSWORDS)

    def apply(self, project: Project, bypass_cache: bool) -> str | Finding:
        """Apply the project's connection Secrets and its verifier Secret; return the passwords' version.

        Returns a finding if the user's Secret does not have the password. Raises NameTaken if another owner's Secret
        has the name of one of them.
        """
        passwords = self._passwords.get(project.uid)
        if passwords is None or bypass_cache or not _fits(passwords, project):
            read = self._read(project)
            if isinstance(read, Finding):
                self._passwords.pop(project.uid, None)
                return read
            passwords = read
        application, superuser = passwords.application, passwords.superuser
        credentials = Credentials(project.postgres.user, application.text, project.postgres.database)
        conn_secret = manifests.conn_secret(project, self._release, credentials)
        self._owned.apply("v1", "secrets", conn_secret, bypass_cache)
        if project.superuser:
            text = (superuser or application).text
            credentials = Credentials(project.superuser, text, project.postgres.database)
            superuser_secret = manifests.superuser_secret(project, self._release, credentials)
            self._owned.apply("v1", "secrets", superuser_secret, bypass_cache)
        verifier_secret = manifests.verifier_secret(
            project, self._release, application.verifier, superuser.verifier if superuser else None
        )
        self._owned.apply("v1", "secrets", verifier_secret, bypass_cache)
        # Remembered only once written: a generated password that was not would be another one the next time.
        self._passwords[project.uid] = passwords
        return passwords.version

    def delete(self, project: Project) -> None:
        """Delete the verifier Secret. The connection Secrets go with their owner, the project."""
        self._passwords.pop(project.uid, None)
        nodes_namespace = self._release.nodes_namespace
        self._owned.delete("v1", "secrets", nodes_namespace, names.verifier_secret_name(project.uid))

    def _read(self, project: Project) -> _Passwords | Finding:
        """Read the user's password and those generated earlier, else generate them; keep verifiers that fit."""
        secret_ref = _secret_ref(project)
        text = secret_text(self._secret(project.namespace, secret_ref[0]), secret_ref[1])
        if not text and project.postgres.password_secret:
            name, key = secret_ref
            missing = f'Secret "{name}" with the key "{key}" does not exist in {project.namespace}'
            return Finding(Reason.SECRET_NOT_FOUND, f"{missing}; no database is made before; create it")
        verifiers = self._secret(self._release.nodes_namespace, names.verifier_secret_name(project.uid))
        application = _password(secret_ref, text, secret_text(verifiers, "verifier"))
        if not _has_superuser(project):
            return _Passwords(application, None)
        name = names.superuser_secret_name(project.name)
        text = secret_text(self._secret(project.namespace, name), "password")
        return _Passwords(
            application, _password((name, "password"), text, secret_text(verifiers, "superuser"))
        )

    def _secret(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        return self._cluster.get(path_of("v1", "secrets", namespace, name))


def _secret_ref(project: Project) -> tuple[str, str]:
    """Return the Secret and key that the application's password is read from."""
    user_secret = project.postgres.password_secret
    if user_secret:
        return user_secret.name, user_secret.key
    return names.conn_secret_name(project.name), "password"


def _has_superuser(project: Project) -> bool:
    """Return True if the project has a superuser of which is known that it is not the application's role."""
    return project.superuser not in (None, project.postgres.user)


def _fits(passwords: _Passwords, project: Project) -> bool:
    fits_superuser = (passwords.superuser is not None) == _has_superuser(project)
    return fits_superuser and passwords.application.secret_ref == _secret_ref(project)


def _password(secret_ref: tuple[str, str], text: str | None, verifier: str | None) -> _Password:
    """Return a password, generated without a text, with this verifier if it is one of it, else with a new one."""
    text = text or secrets.token_urlsafe(24)
    if not verifier or not is_verifier_of(verifier, text):
        verifier = verifier_of(text, secrets.token_bytes(16))
    return _Password(secret_ref, text, verifier)
