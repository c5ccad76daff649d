"""A kubeconfig user's credentials: which can be renewed, and whom the user impersonates.

An exec plugin's credential (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins)
and a token file are read again when they have expired, and when the API server refuses them.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

from dbranch.api.errors import ApiError
from dbranch_cli.failure import ExitCode, Failure

T = TypeVar("T")

_EXEC_PLUGIN_TIMEOUT_SECONDS: Final = 120
# A credential is renewed a little before its time; a token file, which the kubelet replaces, every minute.
_RENEWAL_MARGIN: Final = timedelta(seconds=10)
_TOKEN_FILE_LIFE: Final = timedelta(minutes=1)


@dataclass(frozen=True)
class Credential:
    """Fields of a kubeconfig's user, as `token`, and the time from which on they are not valid; None: not known."""

    fields: Mapping[str, str]
    expires: datetime | None = None


@dataclass
class Renewal:
    """Credentials that `load` gets anew. Thread-safe.

    `apply` puts the fields of a new credential where the requests take them from.
    """

    load: Callable[[], Credential]
    apply: Callable[[Mapping[str, str]], None] = lambda fields: None
    expires: datetime | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _generation: int = 0

    def renew_expired(self) -> None:
        """Get the credential anew if it has expired. Raises Failure."""
        if self.expires and datetime.now(UTC) > self.expires - _RENEWAL_MARGIN:
            self.renew(self._generation)

    def call(self, request: Callable[[], T]) -> T:
        """Return what `request` does. It is made once more, with a new credential, if it raises ApiError with 401."""
        self.renew_expired()
        generation = self._generation
        try:
            return request()
        except ApiError as error:
            if error.status != HTTPStatus.UNAUTHORIZED:
                raise
        self.renew(generation)
        return request()

    def renew(self, generation: int) -> None:
        """Get the credential anew, unless another thread has done so since it had this generation. Raises Failure."""
        with self._lock:
            if generation != self._generation:
                return
            credential = self.load()
            self.expires = credential.expires
            self.apply(credential.fields)
            self._generation += 1


def read_token_file(path: Path) -> Credential:
    """Return the token of a file. Raises Failure."""
    try:
        return Credential({"token": path.read_text().strip()}, datetime.now(UTC) + _TOKEN_FILE_LIFE)
    except OSError as error:
        message = f"cannot read the kubeconfig's tokenFile {path}: {error.strerror}"
        raise Failure(ExitCode.FORBIDDEN, "NotLoggedIn", message) from error


def run_exec_plugin(plugin: Mapping[str, Any], cluster: Mapping[str, Any]) -> Credential:
    """Run an exec plugin and return the user's fields: a token, or a client certificate and its key.

    Raise Failure with FORBIDDEN if the plugin is not installed or fails.
    """
    version = plugin.get("apiVersion", "client.authentication.k8s.io/v1")
    info: dict[str, Any] = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
    if plugin.get("provideClusterInfo"):
        info["spec"]["cluster"] = {"server": cluster.get("server", "")}
        if cluster.get("certificate-authority-data"):
            info["spec"]["cluster"]["certificate-authority-data"] = cluster["certificate-authority-data"]
    env = {**os.environ, "KUBERNETES_EXEC_INFO": json.dumps(info)}
    env.update({entry["name"]: entry["value"] for entry in plugin.get("env") or ()})
    argv = [plugin["command"], *(plugin.get("args") or ())]
    try:
        completed = subprocess.run(
            argv, env=env, stdout=subprocess.PIPE, check=True, timeout=_EXEC_PLUGIN_TIMEOUT_SECONDS
        )
        status = json.loads(completed.stdout)["status"]
        expires = status.get("expirationTimestamp")
        return Credential(
            _fields_of(status), datetime.fromisoformat(expires).astimezone(UTC) if expires else None
        )
    except FileNotFoundError as error:
        hint = f": {plugin['installHint'].strip()}" if plugin.get("installHint") else ""
        message = f"the kubeconfig's exec plugin {argv[0]} is not installed{hint}"
        raise Failure(ExitCode.FORBIDDEN, "NotLoggedIn", message) from error
    except (subprocess.SubprocessError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"the kubeconfig's exec plugin {' '.join(argv)} failed: {error}"
        raise Failure(ExitCode.FORBIDDEN, "NotLoggedIn", message) from error


def _fields_of(status: Mapping[str, Any]) -> dict[str, str]:
    if status.get("token"):
        return {"token": status["token"]}
    return {
        f"{field}-data": base64.b64encode(status[key].encode()).decode()
        for field, key in (
            ("client-certificate", "clientCertificateData"),
            ("client-key", "clientKeyData"),
        )
    }


def impersonation_headers(user: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the headers by which a kubeconfig's user acts as another one: as, as-uid, as-groups, as-user-extra.

    Raises Failure if a name cannot stand in a header.
    """
    headers = [("Impersonate-User", user.get("as")), ("Impersonate-Uid", user.get("as-uid"))]
    headers += [("Impersonate-Group", group) for group in user.get("as-groups") or ()]
    for key, values in (user.get("as-user-extra") or {}).items():
        headers += [(f"Impersonate-Extra-{key}", value) for value in values]
    for name, value in headers:
        if value and not (f"{name}{value}".isascii() and f"{name}{value}".isprintable()):
            message = f"the kubeconfig impersonates {value!r}, which cannot stand in the header {name}"
            raise Failure(ExitCode.USAGE, "InvalidInput", message)
    return [(name, str(value)) for name, value in headers if value]
