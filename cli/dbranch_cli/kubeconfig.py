"""The selected context of a kubeconfig, by kubectl's rules, as a configuration for pykube.

Certificates and keys embedded in the kubeconfig are written to a directory that only this user can
read, which is removed when the command ends.
"""

from __future__ import annotations

import atexit
import base64
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pykube
import yaml

from dbranch_cli.credentials import Renewal, impersonation_headers, read_token_file, run_exec_plugin
from dbranch_cli.failure import ExitCode, Failure

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_FILE_FIELDS = ("certificate-authority", "client-certificate", "client-key")


@dataclass(frozen=True)
class KubeContext:
    """A kubeconfig's context.

    `config` is for pykube, `name` the context's name, `source` the files (or else) that it was read from. `renewal`:
    how the user's credential is renewed, if it can be; `impersonation`: headers of every request; `proxy`: the URL of
    the HTTP proxy that the cluster is reached through.
    """

    config: Any
    name: str
    namespace: str
    source: str
    renewal: Renewal | None = None
    impersonation: Sequence[tuple[str, str]] = ()
    proxy: str = ""


def load_kube_context(kubeconfig: str | None, context: str | None, namespace: str | None) -> KubeContext:
    """Return the context to use; each argument is the value of its option, or None.

    Reads `--kubeconfig`, else `KUBECONFIG` (files separated by ":"), else `~/.kube/config`, else the
    service account of the pod that this command runs in. Raise Failure if none of them is usable.
    """
    if kubeconfig:
        paths = [Path(kubeconfig).expanduser()]
        if not paths[0].is_file():
            raise Failure(ExitCode.USAGE, "InvalidInput", f"kubeconfig {kubeconfig} does not exist")
    else:
        variable = os.environ.get("KUBECONFIG") or "~/.kube/config"
        paths = [Path(p).expanduser() for p in variable.split(os.pathsep) if p]
    existing = [path for path in paths if path.is_file()]
    if not existing:
        if (_SERVICE_ACCOUNT / "token").is_file() and not context:
            return _in_cluster_context(namespace)
        raise Failure(
            ExitCode.OTHER,
            "NoKubeconfig",
            f"no kubeconfig: {os.pathsep.join(map(str, paths))} does not exist;"
            " set one with --kubeconfig or KUBECONFIG",
        )
    source = os.pathsep.join(map(str, existing))
    doc = _merge_kubeconfigs(existing)
    selected = context or doc["current-context"]
    contexts = {entry["name"]: entry.get("context") or {} for entry in doc["contexts"]}
    if not selected:
        raise Failure(
            ExitCode.USAGE, "NoContext", f"{source} has no current context; choose one with --context"
        )
    if selected not in contexts:
        raise Failure(
            ExitCode.USAGE,
            "NoContext",
            f'{source} has no context "{selected}"; available: {", ".join(contexts) or "none"}',
        )
    namespace = namespace or contexts[selected].get("namespace") or "default"
    return _build_context(doc, selected, namespace, source)


def _in_cluster_context(namespace: str | None) -> KubeContext:
    config = pykube.KubeConfig.from_service_account(str(_SERVICE_ACCOUNT))
    source, token = "this pod's service account", _SERVICE_ACCOUNT / "token"
    renewal = Renewal(lambda: read_token_file(token), lambda fields: _replace_credential(config, fields))
    renewal.expires = renewal.load().expires
    return KubeContext(config, "in-cluster", namespace or config.namespace, source, renewal)


def _merge_kubeconfigs(paths: list[Path]) -> dict[str, Any]:
    """Merge kubeconfigs as kubectl does: the first entry of a name and the first current context win."""
    merged: dict[str, Any] = {"clusters": [], "contexts": [], "users": [], "current-context": ""}
    for path in paths:
        try:
            doc = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            message = f"cannot read kubeconfig {path}: {error}"
            raise Failure(ExitCode.OTHER, "BadKubeconfig", message) from error
        if not isinstance(doc, dict):
            raise Failure(ExitCode.OTHER, "BadKubeconfig", f"{path} is not a kubeconfig")
        merged["current-context"] = merged["current-context"] or doc.get("current-context") or ""
        for section in ("clusters", "contexts", "users"):
            merged_names = {entry["name"] for entry in merged[section]}
            for entry in doc.get(section) or ():
                if entry["name"] not in merged_names:
                    _resolve_relative_paths(entry.get(section[:-1]) or {}, path.parent)
                    merged[section].append(entry)
    return merged


def _resolve_relative_paths(entry: dict[str, Any], directory: Path) -> None:
    """Make the file names of a kubeconfig's entry absolute; they are relative to the kubeconfig's directory."""
    for key in (*_FILE_FIELDS, "tokenFile"):
        if entry.get(key):
            entry[key] = str(directory / Path(entry[key]).expanduser())
    command = (entry.get("exec") or {}).get("command") or ""
    if os.sep in command:
        entry["exec"]["command"] = str(directory / command)


def _build_context(doc: dict[str, Any], name: str, namespace: str, source: str) -> KubeContext:
    selected = next(entry["context"] for entry in doc["contexts"] if entry["name"] == name)
    cluster = _find_entry(doc["clusters"], selected.get("cluster"), "cluster", source)
    user = _find_entry(doc["users"], selected["user"], "user", source) if selected.get("user") else {}
    renewal = _renewal_of(user, cluster)
    if renewal:
        credential = renewal.load()
        renewal.expires = credential.expires
        user.update(credential.fields)
    for entry in (cluster, user):
        _write_key_files(entry)
    config = pykube.KubeConfig(
        {
            "clusters": [{"name": "selected", "cluster": cluster}],
            "users": [{"name": "selected", "user": user}],
            "contexts": [{"name": name, "context": {"cluster": "selected", "user": "selected"}}],
            "current-context": name,
        }
    )
    if renewal:
        renewal.apply = lambda fields: _replace_credential(config, fields)
    impersonation, proxy = impersonation_headers(user), str(cluster.get("proxy-url") or "")
    if proxy and not proxy.startswith("http://"):
        message = f"{source}: proxy-url {proxy} of the cluster is not supported; use an http:// proxy"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)
    return KubeContext(config, name, namespace, source, renewal, impersonation, proxy)


def _renewal_of(user: dict[str, Any], cluster: Mapping[str, Any]) -> Renewal | None:
    """Return how the user's credential is renewed, if it comes from an exec plugin or a file."""
    plugin = user.pop("exec", None)
    if plugin:
        return Renewal(lambda: run_exec_plugin(plugin, cluster))
    if user.get("tokenFile") and not user.get("token"):
        path = Path(user["tokenFile"])
        return Renewal(lambda: read_token_file(path))
    return None


def _replace_credential(config: Any, fields: Mapping[str, str]) -> None:
    """Put a new credential where pykube takes it from for each request."""
    renewed: dict[str, Any] = dict(fields)
    _write_key_files(renewed)
    for key in _FILE_FIELDS:
        if key in renewed:
            renewed[key] = pykube.config.BytesOrFile(filename=renewed[key])
    config.user.update(renewed)


def _find_entry(entries: list[dict[str, Any]], name: str | None, field: str, source: str) -> dict[str, Any]:
    """Return a copy of the entry `name` of a section. `field` is `cluster` or `user`."""
    for entry in entries:
        if entry["name"] == name:
            return dict(entry.get(field) or {})
    message = f'{source} has no {field} "{name}", which its context refers to'
    raise Failure(ExitCode.OTHER, "BadKubeconfig", message)


def _write_key_files(entry: dict[str, Any]) -> None:
    """Replace `…-data` fields by private files: pykube itself would write them, keys too, world-readable to /tmp."""
    if not any(entry.get(f"{key}-data") for key in _FILE_FIELDS):
        return
    directory = tempfile.mkdtemp(prefix="dbranch-")  # mode 0700
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    for key in _FILE_FIELDS:
        data = entry.pop(f"{key}-data", None)
        if data:
            path = Path(directory, key)
            path.write_bytes(base64.b64decode(data))
            entry[key] = str(path)
