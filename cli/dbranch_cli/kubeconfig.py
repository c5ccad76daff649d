"""The selected context of a kubeconfig, by kubectl's rules, as a configuration for pykube.

Certificates and keys embedded in the kubeconfig are written to a directory that only this user can
read, which is removed when the command ends. Exec plugins (`client.authentication.k8s.io`) are run here.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pykube
import yaml

from dbranch_cli.failure import ExitCode, Failure

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_FILE_FIELDS = ("certificate-authority", "client-certificate", "client-key")
_EXEC_PLUGIN_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class KubeContext:
    """A kubeconfig's context.

    `config` is for pykube, `name` the context's name, `source` the files (or else) that it was read from.
    """

    config: Any
    name: str
    namespace: str
    source: str


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
    return KubeContext(config, "in-cluster", namespace or config.namespace, "this pod's service account")


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


def _build_context(doc: dict[str, Any], name: str, namespace: str, source: str) -> KubeContext:
    selected = next(entry["context"] for entry in doc["contexts"] if entry["name"] == name)
    cluster = _find_entry(doc["clusters"], selected.get("cluster"), "cluster", source)
    user = _find_entry(doc["users"], selected["user"], "user", source) if selected.get("user") else {}
    if user.get("tokenFile") and not user.get("token"):
        user["token"] = Path(user["tokenFile"]).read_text().strip()
    if user.get("exec"):
        user.update(_run_exec_plugin(user.pop("exec"), cluster))
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
    return KubeContext(config, name, namespace, source)


def _find_entry(entries: list[dict[str, Any]], name: str | None, field: str, source: str) -> dict[str, Any]:
    """Return a copy of the entry `name` of a section. `field` is `cluster` or `user`."""
    for entry in entries:
        if entry["name"] == name:
            return dict(entry.get(field) or {})
    message = f'{source} has no {field} "{name}", which its context refers to'
    raise Failure(ExitCode.OTHER, "BadKubeconfig", message)


def _run_exec_plugin(plugin: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, str]:
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
    except FileNotFoundError as error:
        hint = f": {plugin['installHint'].strip()}" if plugin.get("installHint") else ""
        message = f"the kubeconfig's exec plugin {argv[0]} is not installed{hint}"
        raise Failure(ExitCode.FORBIDDEN, "NotLoggedIn", message) from error
    except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
        message = f"the kubeconfig's exec plugin {' '.join(argv)} failed: {error}"
        raise Failure(ExitCode.FORBIDDEN, "NotLoggedIn", message) from error
    if status.get("token"):
        return {"token": status["token"]}
    return {
        "client-certificate-data": base64.b64encode(status["clientCertificateData"].encode()).decode(),
        "client-key-data": base64.b64encode(status["clientKeyData"].encode()).decode(),
    }


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
