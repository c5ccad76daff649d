"""A project's password: read from the user's Secret or generated, written into the Secrets that need it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Final

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, BeingDeleted, InvalidInput, NameTaken, ObjectRefused
from dbranch.api.project import Project
from dbranch.api.scram import is_verifier_of, verifier_of, version_of
from dbranch.api.secrets import secret_text
from dbranch.controller import manifests
from dbranch.controller.events import PASSWORD_GENERATED, EmitEvent
from dbranch.controller.failure import is_refusal, refusal_finding
from dbranch.controller.manifests import Credentials, Release
from dbranch.controller.owned import OwnedObjects
from dbranch.kube.client import Cluster, path_of


@dataclass(frozen=True)
class _Password:
    """A project's password, its verifier, and the (Secret, key) that the password was read from or belongs in.

    `is_new`: it was generated just now.
    """

    secret_ref: tuple[str, str]
    text: str
    verifier: str
    is_new: bool = False


_UNCHANGED: Final = "the password stays as it was"


class CredentialSecrets:
    """The Secrets that hold a project's credentials. Call it under the project's lock.

    What was read is remembered by project UID, until `bypass_cache` or a change of `spec.postgres.passwordSecret`.
    """

    def __init__(
        self, cluster: Cluster, release: Release, owned: OwnedObjects, emit_event: EmitEvent
    ) -> None:
        self._cluster, self._release, self._owned = cluster, release, owned
        self._emit_event = emit_event
        self._passwords: dict[str, _Password] = {}

    def apply(self, project: Project, bypass_cache: bool) -> str | Finding:
        """Apply the project's connection Secret and its verifier Secret; return the password's version.

        Returns a finding if the user's Secret does not have the password, or if one of the two cannot be applied:
        then the password stays as it was.
        """
        user_secret = project.postgres.password_secret
        secret_ref = (
            (user_secret.name, user_secret.key)
            if user_secret
            else (names.conn_secret_name(project.name), "password")
        )
        password = self._passwords.get(project.uid)
        if password is None or bypass_cache or password.secret_ref != secret_ref:
            is_same = password is not None and password.secret_ref == secret_ref
            read = self._read(project, secret_ref, password.text if password and is_same else None)
            if isinstance(read, Finding):
                self._passwords.pop(project.uid, None)
                return read
            password = read
        credentials = Credentials(project.postgres.user, password.text, project.postgres.database)
        conn_secret = manifests.conn_secret(project, self._release, credentials)
        verifier_secret = manifests.verifier_secret(project, self._release, password.verifier)
        try:
            self._owned.apply("v1", "secrets", conn_secret, bypass_cache)
            self._owned.apply("v1", "secrets", verifier_secret, bypass_cache)
        except (NameTaken, BeingDeleted, ObjectRefused) as error:
            return refusal_finding(error, _UNCHANGED)
        # Remembered only once written: a generated password that was not would be another one the next time.
        self._passwords[project.uid] = replace(password, is_new=False)
        if password.is_new and project.password_version:
            text = (
                f"Secret {conn_secret['metadata']['name']} was gone; a new password is set on every branch; "
                "give it to the clients that keep their own copy"
            )
            self._emit_event(project, "Warning", PASSWORD_GENERATED, text)
        return version_of(password.verifier)

    def delete(self, project: Project) -> None:
        """Delete the project's connection Secret and its verifier Secret."""
        self.forget(project)
        conn_name, verifier_name = (
            names.conn_secret_name(project.name),
            names.verifier_secret_name(project.uid),
        )
        self._owned.delete("v1", "secrets", project.namespace, conn_name, project.uid)
        self._owned.delete("v1", "secrets", self._release.nodes_namespace, verifier_name)

    def forget(self, project: Project) -> None:
        """Forget the password of a project that is gone."""
        self._passwords.pop(project.uid, None)

    def _read(
        self, project: Project, secret_ref: tuple[str, str], remembered: str | None
    ) -> _Password | Finding:
        """Read the user's password or the one generated earlier, else generate one; keep a verifier that fits.

        A generated password whose Secret is gone is written back from memory (`remembered`).
        """
        verifier = self._own_text(
            self._release.nodes_namespace, names.verifier_secret_name(project.uid), "verifier"
        )
        read = (
            self._users_text(project, secret_ref, verifier)
            if project.postgres.password_secret
            else self._own_text(project.namespace, *secret_ref) or remembered
        )
        if isinstance(read, Finding):
            return read
        text = read or secrets.token_urlsafe(24)
        if not verifier or not is_verifier_of(verifier, text):
            verifier = verifier_of(text, secrets.token_bytes(16))
        return _Password(secret_ref, text, verifier, is_new=not read)

    def _users_text(
        self, project: Project, secret_ref: tuple[str, str], verifier: str | None
    ) -> str | Finding:
        """Read the password from the user's Secret; return a finding if it cannot be used."""
        name, key = secret_ref
        effect = _UNCHANGED if project.password_version else "no database is made before"
        try:
            secret = self._cluster.get(path_of("v1", "secrets", project.namespace, name))
        except ApiError as error:
            if not is_refusal(error):
                raise
            return refusal_finding(ObjectRefused(f"Secret {name} cannot be read", error), effect)
        if secret is None:
            missing = f'Secret "{name}" does not exist in {project.namespace}'
            return Finding(Reason.SECRET_NOT_FOUND, f"{missing}; {effect}; create it")
        if key not in (secret.get("data") or {}):
            missing = f'Secret "{name}" in {project.namespace} does not have the key "{key}"'
            return Finding(Reason.SECRET_NOT_FOUND, f"{missing}; {effect}; add it")
        try:
            text = secret_text(secret, key) or ""
            fault = password_fault(text)
        except InvalidInput:
            text, fault = "", "is not UTF-8 text"
        # One that an earlier release has set stays in force.
        if fault and not (text and verifier and is_verifier_of(verifier, text)):
            subject = f'Secret "{name}": the value of key "{key}" {fault}'
            return Finding(Reason.SECRET_INVALID, f"{subject}; {effect}; correct it")
        return text

    def _own_text(self, namespace: str, name: str, key: str) -> str | None:
        """Read a text from a Secret of ours; None if it is missing, or no text (any more)."""
        try:
            return secret_text(self._cluster.get(path_of("v1", "secrets", namespace, name)), key)
        except InvalidInput:
            return None


def password_fault(text: str) -> str | None:
    """Return what is wrong with a password, as in "is empty"; None if it can be one.

    >>> password_fault("pencil"), password_fault("")
    (None, 'is empty')
    """
    if not text:
        return "is empty"
    if "\0" in text:
        return "has a NUL character, which Postgres cannot store"
    # As a file has that an editor wrote: nobody types it.
    return "ends with a line break" if text.endswith(("\n", "\r")) else None
