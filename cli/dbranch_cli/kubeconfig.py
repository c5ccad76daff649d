"""Which cluster, as whom, in which namespace: kubectl's rules, as a configuration for pykube.

Certificates and keys that stand in the kubeconfig itself are laid into a directory that only this
user can read, for as long as the command runs. Exec plugins (`client.authentication.k8s.io`) are run here.
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

from dbranch_cli.failure import FORBIDDEN, OTHER, USAGE, Failure

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_FILES = ("certificate-authority", "client-certificate", "client-key")


@dataclass(frozen=True)
class Login:
    """`config` for pykube; `context` and `namespace` by their names; `source` is where it was read."""

    config: Any
    context: str
    namespace: str
    source: str


def find_login(kubeconfig: str | None, context: str | None, namespace: str | None) -> Login:
    """`--kubeconfig`, else `KUBECONFIG` (files joined by ":"), else `~/.kube/config`, else the pod's account."""
    if kubeconfig:
        paths = [Path(kubeconfig).expanduser()]
        if not paths[0].is_file():
            raise Failure(USAGE, "InvalidInput", f"the kubeconfig {kubeconfig} is not there")
    else:
        named = os.environ.get("KUBECONFIG") or "~/.kube/config"
        paths = [Path(p).expanduser() for p in named.split(os.pathsep) if p]
    present = [path for path in paths if path.is_file()]
    if not present:
        if (_SERVICE_ACCOUNT / "token").is_file() and not context:
            return _in_cluster(namespace)
        raise Failure(
            OTHER,
            "NoKubeconfig",
            f"there is no cluster to talk to: {os.pathsep.join(map(str, paths))} is not there;"
            " name a kubeconfig with --kubeconfig or KUBECONFIG",
        )
    source = os.pathsep.join(map(str, present))
    doc = _merged(present)
    chosen = context or doc["current-context"]
    contexts = {entry["name"]: entry.get("context") or {} for entry in doc["contexts"]}
    if not chosen:
        raise Failure(USAGE, "NoContext", f"{source} has no current context; name one with --context")
    if chosen not in contexts:
        raise Failure(
            USAGE,
            "NoContext",
            f'{source} has no context "{chosen}"; it has: {", ".join(contexts) or "none"}',
        )
    return _login(doc, chosen, namespace or contexts[chosen].get("namespace") or "default", source)


def _in_cluster(namespace: str | None) -> Login:
    config = pykube.KubeConfig.from_service_account(str(_SERVICE_ACCOUNT))
    return Login(config, "in-cluster", namespace or config.namespace, "this pod's service account")


def _merged(paths: list[Path]) -> dict[str, Any]:
    """Several kubeconfigs as kubectl sees them: of each name, and of the current context, the first one."""
    merged: dict[str, Any] = {"clusters": [], "contexts": [], "users": [], "current-context": ""}
    for path in paths:
        try:
            doc = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise Failure(OTHER, "BadKubeconfig", f"cannot read the kubeconfig {path}: {error}") from error
        if not isinstance(doc, dict):
            raise Failure(OTHER, "BadKubeconfig", f"{path} is no kubeconfig")
        merged["current-context"] = merged["current-context"] or doc.get("current-context") or ""
        for kind in ("clusters", "contexts", "users"):
            known = {entry["name"] for entry in merged[kind]}
            for entry in doc.get(kind) or ():
                if entry["name"] not in known:
                    _anchor(entry.get(kind[:-1]) or {}, path.parent)
                    merged[kind].append(entry)
    return merged


def _anchor(entry: dict[str, Any], directory: Path) -> None:
    """File names in a kubeconfig are relative to it."""
    for key in (*_FILES, "tokenFile"):
        if entry.get(key):
            entry[key] = str(directory / Path(entry[key]).expanduser())


def _login(doc: dict[str, Any], context: str, namespace: str, source: str) -> Login:
    chosen = next(entry["context"] for entry in doc["contexts"] if entry["name"] == context)
    cluster = _named(doc["clusters"], chosen.get("cluster"), "cluster", source)
    user = _named(doc["users"], chosen["user"], "user", source) if chosen.get("user") else {}
    if user.get("tokenFile") and not user.get("token"):
        user["token"] = Path(user["tokenFile"]).read_text().strip()
    if user.get("exec"):
        user.update(_exec_login(user.pop("exec"), cluster))
    for entry in (cluster, user):
        _lay_out(entry)
    config = pykube.KubeConfig(
        {
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": user}],
            "contexts": [{"name": context, "context": {"cluster": "it", "user": "it"}}],
            "current-context": context,
        }
    )
    return Login(config, context, namespace, source)


def _named(entries: list[dict[str, Any]], name: str | None, kind: str, source: str) -> dict[str, Any]:
    for entry in entries:
        if entry["name"] == name:
            return dict(entry.get(kind) or {})
    raise Failure(OTHER, "BadKubeconfig", f'{source} has no {kind} "{name}", which its context names')


def _exec_login(plugin: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, str]:
    """What an exec plugin says: a token, or a client certificate with its key."""
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
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, check=True, timeout=120)
        status = json.loads(done.stdout)["status"]
    except FileNotFoundError as error:
        hint = f": {plugin['installHint'].strip()}" if plugin.get("installHint") else ""
        raise Failure(
            FORBIDDEN, "NotLoggedIn", f"the kubeconfig's login command {argv[0]} is not installed{hint}"
        ) from error
    except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
        raise Failure(
            FORBIDDEN, "NotLoggedIn", f"the kubeconfig's login command {' '.join(argv)} failed: {error}"
        ) from error
    if status.get("token"):
        return {"token": status["token"]}
    return {
        "client-certificate-data": base64.b64encode(status["clientCertificateData"].encode()).decode(),
        "client-key-data": base64.b64encode(status["clientKeyData"].encode()).decode(),
    }


def _lay_out(entry: dict[str, Any]) -> None:
    """Write `…-data` into files of our own: pykube would put them, keys too, readable for all into /tmp."""
    if not any(entry.get(f"{key}-data") for key in _FILES):
        return
    directory = tempfile.mkdtemp(prefix="dbranch-")  # mode 0700
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    for key in _FILES:
        data = entry.pop(f"{key}-data", None)
        if data:
            path = Path(directory, key)
            path.write_bytes(base64.b64decode(data))
            entry[key] = str(path)
