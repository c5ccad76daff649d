"""A project's passwords: read from the user's Secret or generated, written into the Secrets that need them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, BeingDeleted, InvalidInput, NameTaken, ObjectRefused
from dbranch.api.project import Project
from dbranch.api.scram import (
    is_verifier_of,
    joined_version,
    parse_branch_verifiers,
    split_version,
    verifier_of,
)
from dbranch.api.secrets import secret_text
from dbranch.controller import manifests
from dbranch.controller.events import PASSWORD_GENERATED, EmitEvent
from dbranch.controller.failure import is_refusal, refusal_finding
from dbranch.controller.manifests import Credentials, Release
from dbranch.controller.owned import OwnedObjects
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.limited import LimitedDict

# Of projects; others are read again from their Secrets.
_MAX_PASSWORDS: Final = 1000
# A branch takes its own verifiers when it is ready: some are kept for that, and made several at a time, since each
# costs a millisecond and a write. A Secret holds a mebibyte; further branches have the project's.
_SPARE_VERIFIERS: Final = 4
_VERIFIERS_AT_ONCE: Final = 8
_MAX_OF_BRANCHES: Final = 1024
_UNCHANGED: Final = "the password stays as it was"


@dataclass(frozen=True)
class _Password:
    """A password, its verifier, and the (Secret, key) that it was read from or belongs in.

    `is_new`: it was generated just now.
    """

    secret_ref: tuple[str, str]
    text: str
    verifier: str
    is_new: bool = False


@dataclass(frozen=True)
class _Passwords:
    """A project's passwords; `superuser` is None where the application's role is the superuser, or it is unknown.

    `of_branches`: verifiers of these passwords with other salts, one for each role; each branch takes its own.
    """

    application: _Password
    superuser: _Password | None
    of_branches: tuple[tuple[str, ...], ...] = ()

    @property
    def version(self) -> str:
        """The value of `status.passwordVersion`: the agent sets the passwords when it changes."""
        return joined_version(*(password.verifier for password in self._each))

    @property
    def _each(self) -> tuple[_Password, ...]:
        return (self.application, self.superuser) if self.superuser else (self.application,)

    @property
    def remembered(self) -> _Passwords:
        """The same passwords, none of them new any more."""
        superuser = replace(self.superuser, is_new=False) if self.superuser else None
        return _Passwords(replace(self.application, is_new=False), superuser, self.of_branches)

    def with_verifiers_for(self, branches: int) -> _Passwords:
        """Return the same passwords with verifiers for so many branches, and for some that are made next."""
        count = min(
            _MAX_OF_BRANCHES, -(-(branches + _SPARE_VERIFIERS) // _VERIFIERS_AT_ONCE) * _VERIFIERS_AT_ONCE
        )
        added = (
            tuple(verifier_of(password.text, secrets.token_bytes(16)) for password in self._each)
            for _ in range(len(self.of_branches), count)
        )
        return replace(self, of_branches=(*self.of_branches, *added))


class CredentialSecrets:
    """The Secrets that hold a project's credentials. Call it under the project's lock.

    What was read is remembered by project UID, until `bypass_cache`, or a change of `spec.postgres.passwordSecret` or
    of what is known of the superuser.
    """

    def __init__(
        self, cluster: Cluster, release: Release, owned: OwnedObjects, emit_event: EmitEvent
    ) -> None:
        self._cluster, self._release, self._owned = cluster, release, owned
        self._emit_event = emit_event
        self._passwords: LimitedDict[str, _Passwords] = LimitedDict(_MAX_PASSWORDS)

    def apply(self, project: Project, bypass_cache: bool) -> str | Finding:
        """Apply the project's connection Secrets and its verifier Secret; return the passwords' version.

        Returns a finding if the user's Secret does not have the password, or if one of the Secrets cannot be applied:
        then the passwords stay as they were.
        """
        passwords = self._passwords.get(project.uid)
        if passwords is None or bypass_cache or not _fits(passwords, project):
            read = self._read(project, passwords)
            if isinstance(read, Finding):
                self._passwords.pop(project.uid, None)
                return read
            # Those for the first branches cost no write of their own.
            passwords = read if read.of_branches else read.with_verifiers_for(0)
        try:
            for secret in self._secrets_of(project, passwords):
                self._owned.apply("v1", "secrets", secret, bypass_cache)
        except (NameTaken, BeingDeleted, ObjectRefused) as error:
            return refusal_finding(error, _UNCHANGED)
        # Remembered only once written: a generated password that was not would be another one the next time.
        self._passwords[project.uid] = passwords.remembered
        self._emit_generated(project, passwords)
        return passwords.version

    def apply_for_branches(self, project: Project, branches: int) -> None:
        """Add verifiers to the project's Secret until there are enough for so many branches. Nobody waits for it.

        No-op until `apply` has set the passwords, which also reports what the API server refuses.
        """
        passwords = self._passwords.get(project.uid)
        extended = passwords.with_verifiers_for(branches) if passwords else None
        if extended is None or extended == passwords:
            return
        try:
            self._owned.apply("v1", "secrets", self._verifier_secret(project, extended))
        except (NameTaken, BeingDeleted, ObjectRefused):
            return
        self._passwords[project.uid] = extended

    def _secrets_of(self, project: Project, passwords: _Passwords) -> list[dict[str, Any]]:
        """Return the manifests of the Secrets with these passwords."""
        application, superuser = passwords.application, passwords.superuser
        credentials = Credentials(project.postgres.user, application.text, project.postgres.database)
        secrets_of = [manifests.conn_secret(project, self._release, credentials)]
        if project.superuser:
            text = (superuser or application).text
            credentials = Credentials(project.superuser, text, project.postgres.database)
            secrets_of.append(manifests.superuser_secret(project, self._release, credentials))
        return [*secrets_of, self._verifier_secret(project, passwords)]

    def _verifier_secret(self, project: Project, passwords: _Passwords) -> dict[str, Any]:
        application, superuser = passwords.application, passwords.superuser
        superuser_verifier = superuser.verifier if superuser else None
        return manifests.verifier_secret(
            project, self._release, application.verifier, superuser_verifier, passwords.of_branches
        )

    def _emit_generated(self, project: Project, passwords: _Passwords) -> None:
        """Emit an Event for each password in force whose Secret was gone, so that another one was generated."""
        in_force = len(split_version(project.password_version or ""))
        for number, password in enumerate((passwords.application, passwords.superuser), 1):
            if password and password.is_new and in_force >= number:
                text = (
                    f"Secret {password.secret_ref[0]} was gone; a new password is set on every branch; "
                    "give it to the clients that keep their own copy"
                )
                self._emit_event(project, "Warning", PASSWORD_GENERATED, text)

    def delete(self, project: Project) -> None:
        """Delete the project's connection Secrets and its verifier Secret."""
        self.forget(project)
        for name in (names.conn_secret_name(project.name), names.superuser_secret_name(project.name)):
            self._owned.delete("v1", "secrets", project.namespace, name, project.uid)
        verifier_name = names.verifier_secret_name(project.uid)
        self._owned.delete("v1", "secrets", self._release.nodes_namespace, verifier_name)

    def forget(self, project: Project) -> None:
        """Forget the password of a project that is gone."""
        self._passwords.pop(project.uid, None)

    def _read(self, project: Project, remembered: _Passwords | None) -> _Passwords | Finding:
        """Read the user's password and those generated earlier, else generate them; keep verifiers that fit.

        A generated password whose Secret is gone is written back from memory (`remembered`).
        """
        secret_ref, nodes_namespace = _secret_ref(project), self._release.nodes_namespace
        verifiers = self._cluster.get(
            path_of("v1", "secrets", nodes_namespace, names.verifier_secret_name(project.uid))
        )
        verifier = _own_text(verifiers, "verifier")
        if project.postgres.password_secret:
            text = self._users_text(project, secret_ref, verifier)
            if isinstance(text, Finding):
                return text
            application = _password(secret_ref, text, verifier)
        else:
            former = remembered.application if remembered else None
            application = self._generated(project, secret_ref, former, verifier)
        if not _has_superuser(project):
            return _with_branches_of(verifiers, _Passwords(application, None))
        secret_ref = names.superuser_secret_name(project.name), "password"
        former = remembered.superuser if remembered else None
        superuser = self._generated(project, secret_ref, former, _own_text(verifiers, "superuser"))
        return _with_branches_of(verifiers, _Passwords(application, superuser))

    def _generated(
        self, project: Project, secret_ref: tuple[str, str], former: _Password | None, verifier: str | None
    ) -> _Password:
        """Read a password that was generated earlier, else take the `former` one; without either, generate one."""
        name, key = secret_ref
        text = _own_text(self._cluster.get(path_of("v1", "secrets", project.namespace, name)), key)
        if not text and former and former.secret_ref == secret_ref:
            text = former.text
        return _password(secret_ref, text, verifier)

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


def _own_text(secret: Mapping[str, Any] | None, key: str) -> str | None:
    """Return a text in a Secret of ours; None if it is missing, or no text (any more)."""
    try:
        return secret_text(secret, key)
    except InvalidInput:
        return None


def _with_branches_of(secret: Mapping[str, Any] | None, passwords: _Passwords) -> _Passwords:
    """Return the passwords with the branches' verifiers in the Secret, if those are of the same passwords."""
    text = _own_text(secret, "branches")
    return replace(passwords, of_branches=parse_branch_verifiers(text, passwords.version))


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
    is_new, text = not text, text or secrets.token_urlsafe(24)
    if not verifier or not is_verifier_of(verifier, text):
        verifier = verifier_of(text, secrets.token_bytes(16))
    return _Password(secret_ref, text, verifier, is_new)


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
