"""Builders of the manifests that the controller applies. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.enums import ServiceType, SnapshotReason
from dbranch.api.project import Project
from dbranch.api.proxy_spec import ProxyPods
from dbranch.api.restore import Restore
from dbranch.api.scram import joined_version, render_branch_verifiers

Json = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """The Helm release, as the chart passes it to the controller: names, and how the proxies run.

    `proxy_pods`: what a proxy's pods get where their project does not ask for something else.
    """

    name: str
    nodes_namespace: str
    server_image: str
    pull_policy: str = "IfNotPresent"
    log_format: str = "plain"
    proxy_pods: ProxyPods = field(default_factory=ProxyPods)


@dataclass(frozen=True)
class Credentials:
    """A role of a project, its password, and the project's database."""

    user: str
    password: str
    database: str


def _owner_reference(kind: str, name: str, uid: str) -> Json:
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def project_metadata(project: Project, release: Release, component: str, name: str) -> Json:
    """Return the metadata of an object that goes with the project."""
    return {
        "name": name,
        "namespace": project.namespace,
        "labels": names.labels(
            component,
            release.name,
            **{names.LABEL_PROJECT: project.name, names.LABEL_PROJECT_UID: project.uid},
        ),
        "ownerReferences": [_owner_reference(names.PROJECT_KIND, project.name, project.uid)],
    }


def _branch_metadata(project: Project, branch: Branch, release: Release, name: str) -> Json:
    meta = project_metadata(project, release, names.COMPONENT_POSTGRES, name)
    meta["labels"] |= {names.LABEL_BRANCH: branch.name, names.LABEL_BRANCH_UID: branch.uid}
    meta["ownerReferences"] = [_owner_reference(names.BRANCH_KIND, branch.object_name, branch.uid)]
    return meta


def _object(api: str, kind: str, meta: Json, **fields: Any) -> Json:
    return {"apiVersion": api, "kind": kind, "metadata": meta, **fields}


def root_branch(project: Project) -> Json:
    """Return the DBBranch of a project's root, which has no source."""
    name = names.branch_object_name(project.name, names.ROOT_BRANCH)
    meta = {"name": name, "namespace": project.namespace}
    return _object(names.API_VERSION, names.BRANCH_KIND, meta, spec={"project": project.name})


def record_of_branch(project: Project, branch: Branch, name: str, origin: Json) -> Json:
    """Return a DBSnapshot that is the record of what was done to a branch, and gets its data; it outlives the branch.

    Kept for as long as the project says. The agent's finalizer is in place before the agent makes anything.
    """
    labels = {
        names.LABEL_PROJECT: project.name,
        names.LABEL_BRANCH: branch.name,
        names.LABEL_BRANCH_UID: branch.uid,
        names.LABEL_ORIGIN: origin["reason"],
        names.LABEL_MANAGED_BY: "dbranch",
    }
    meta = {
        "name": name,
        "namespace": branch.namespace,
        "labels": labels,
        "finalizers": [names.AGENT_FINALIZER],
        "ownerReferences": [_owner_reference(names.PROJECT_KIND, project.name, project.uid)],
    }
    spec = {"project": project.name, "branch": branch.name, "ttl": project.undo.ttl, "origin": origin}
    return _object(names.API_VERSION, names.SNAPSHOT_KIND, meta, spec=spec)


def conn_secret(
    project: Project, release: Release, credentials: Credentials, branch: Branch | None = None
) -> Json:
    """Return the connection Secret of a project (`branch` None) or of one branch, for `envFrom` and for people."""
    if branch is None:
        meta = project_metadata(project, release, names.COMPONENT_PROXY, names.conn_secret_name(project.name))
        return _credentials_secret(meta, project, credentials, project.name, project.proxy.port)
    name = branch.object_name
    meta = _branch_metadata(project, branch, release, names.conn_secret_name(name))
    return _credentials_secret(meta, project, credentials, name, names.POSTGRES_PORT, branch)


def superuser_secret(project: Project, release: Release, credentials: Credentials) -> Json:
    """Return the project's Secret with the superuser's connection, for people and `dbranch load`."""
    meta = project_metadata(
        project, release, names.COMPONENT_PROXY, names.superuser_secret_name(project.name)
    )
    return _credentials_secret(meta, project, credentials, project.name, project.proxy.port)


def _credentials_secret(
    meta: Json,
    project: Project,
    credentials: Credentials,
    service: str,
    port: int,
    branch: Branch | None = None,
) -> Json:
    host = names.service_host(service, project.namespace)
    texts = {
        "host": host,
        "port": str(port),
        "username": credentials.user,
        "password": credentials.password,
        "database": credentials.database,
        "uri": _uri(credentials, host, port),
        **_external_texts(project, credentials, branch),
    }
    data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    return _object("v1", "Secret", meta, type="Opaque", data=data)


def _external_texts(project: Project, credentials: Credentials, branch: Branch | None) -> dict[str, str]:
    """Return the keys for clients outside of the cluster, who reach a branch by its name at the proxy."""
    host, port = project.proxy.external_host, project.proxy.external_port or project.proxy.port
    if not host:
        return {}
    options = f"?options={quote(f'-c {names.BRANCH_PARAMETER}={branch.name}', safe='')}" if branch else ""
    return {
        "external-host": host,
        "external-port": str(port),
        "external-uri": _uri(credentials, f"[{host}]" if ":" in host else host, port) + options,
    }


def _uri(credentials: Credentials, host: str, port: int) -> str:
    values = (credentials.user, credentials.password, credentials.database)
    user, password, database = (quote(value, safe="") for value in values)
    return f"postgresql://{user}:{password}@{host}:{port}/{database}"


def _copy_labels(project: Project, release: Release, **extra_labels: str) -> dict[str, str]:
    """Return the labels of what the nodes' namespace has of a project."""
    of_project = {names.LABEL_NAMESPACE: project.namespace, names.LABEL_PROJECT: project.name}
    return names.labels(names.COMPONENT_POSTGRES, release.name, **of_project, **extra_labels)


def verifier_secret(
    project: Project,
    release: Release,
    verifier: str,
    superuser_verifier: str | None = None,
    of_branches: Sequence[Sequence[str]] = (),
) -> Json:
    """Return the Secret with the passwords' SCRAM verifiers, in the nodes' namespace: all that agents get of them.

    `superuser_verifier` is None where the application's role is the superuser. `of_branches`: verifiers of the same
    passwords with other salts, of which each branch takes its own.
    """
    meta = {
        "name": names.verifier_secret_name(project.uid),
        "namespace": release.nodes_namespace,
        "labels": _copy_labels(project, release, **{names.LABEL_PROJECT_UID: project.uid}),
    }
    version = joined_version(*filter(None, (verifier, superuser_verifier)))
    branches = render_branch_verifiers(version, of_branches) if of_branches else ""
    verifiers = {"verifier": verifier, "superuser": superuser_verifier, "branches": branches}
    data = {key: base64.b64encode(text.encode()).decode() for key, text in verifiers.items() if text}
    return _object("v1", "Secret", meta, type="Opaque", data=data)


def node_access(project: Project, node: str, release: Release) -> list[tuple[str, str, Json]]:
    """Return (API, plural, manifest) of what lets the account of the project's node read the project's Secrets.

    The account is that of all projects of the node, and is left when they go. The agents' own may read no Secret.
    """
    group, account, name = (
        "rbac.authorization.k8s.io",
        names.node_account_name(node),
        names.node_access_name(project.uid),
    )
    namespace = release.nodes_namespace
    labels = _copy_labels(project, release, **{names.LABEL_PROJECT_UID: project.uid})
    meta = {"name": name, "namespace": namespace, "labels": labels}
    of_all = names.labels(names.COMPONENT_POSTGRES, release.name)
    of_node = {"name": account, "namespace": namespace, "labels": of_all}
    pull_secrets = (names.pull_secret_name(project.uid, name) for name in project.postgres.image_pull_secrets)
    secrets = [names.verifier_secret_name(project.uid), *pull_secrets]
    rules = [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": secrets, "verbs": ["get"]}]
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]
    role_ref = {"apiGroup": group, "kind": "Role", "name": name}
    rbac = f"{group}/v1"
    return [
        (
            "v1",
            "serviceaccounts",
            _object("v1", "ServiceAccount", of_node, automountServiceAccountToken=False),
        ),
        (rbac, "roles", _object(rbac, "Role", meta, rules=rules)),
        (rbac, "rolebindings", _object(rbac, "RoleBinding", meta, roleRef=role_ref, subjects=subjects)),
    ]


def pull_secret(
    project: Project, release: Release, name: str, secret_type: str, data: Mapping[str, str]
) -> Json:
    """Return the copy of a project's pull secret in the nodes' namespace, where its Postgres pods are.

    `name`: in the project's namespace; `data`: in base64, what kubelet reads of it.
    """
    meta = {
        "name": names.pull_secret_name(project.uid, name),
        "namespace": release.nodes_namespace,
        "labels": _copy_labels(project, release, **{names.LABEL_PULL_SECRET: "copy"}),
    }
    return _object("v1", "Secret", meta, type=secret_type, data=dict(data))


def allow_policy(namespace: str, release: Release) -> Json:
    """Return the NetworkPolicy that admits a users' namespace to its own Postgres pods; others do not reach them."""
    meta = {
        "name": f"allow-{namespace}",
        "namespace": release.nodes_namespace,
        "labels": names.labels(names.COMPONENT_POSTGRES, release.name, **{names.LABEL_NAMESPACE: namespace}),
    }
    spec = {
        "podSelector": {
            "matchLabels": {names.LABEL_NAMESPACE: namespace},
            "matchExpressions": [{"key": names.LABEL_SLOT, "operator": "Exists"}],
        },
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}]}
        ],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", meta, spec=spec)


def undo_snapshot(project: Project, branch: Branch, restore: Restore) -> Json:
    """Return the DBSnapshot that takes the data which a restore replaces."""
    origin = {"reason": SnapshotReason.RESTORE.value, "restoreUID": restore.uid, "branchUID": branch.uid}
    name = names.derived_name(branch.object_name, "undo", restore.uid)
    return record_of_branch(project, branch, name, origin)


def branch_service(project: Project, branch: Branch, release: Release) -> Json:
    """Return a branch's Service, which has no selector but an EndpointSlice of ours."""
    spec = {
        "type": ServiceType.CLUSTER_IP,
        "ports": [{"name": "postgres", "port": names.POSTGRES_PORT, "protocol": "TCP"}],
    }
    return _object("v1", "Service", _branch_metadata(project, branch, release, branch.object_name), spec=spec)


def branch_endpoints(
    project: Project, branch: Branch, release: Release, ip_family: str, addresses: Sequence[str]
) -> Json:
    """Return the EndpointSlice of a branch's Service: the addresses that it leads to, and its Postgres' port.

    `ip_family` is the Service's, IPv4 or IPv6: a slice's address type never changes, and it has no other addresses.
    """
    of_family = [address for address in addresses if (":" in address) == (ip_family == "IPv6")]
    meta = _branch_metadata(project, branch, release, branch.object_name)
    meta["labels"] |= {
        "kubernetes.io/service-name": branch.object_name,
        "endpointslice.kubernetes.io/managed-by": "dbranch",
    }
    return _object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        meta,
        addressType=ip_family,
        endpoints=[{"addresses": [address], "conditions": {"ready": True}} for address in of_family],
        ports=[
            {"name": "postgres", "port": names.branch_port(branch.uid), "protocol": "TCP"},
        ],
    )


def scheduled_snapshot(
    project: Project, branch: Branch, name: str, schedules: Sequence[str], due: str
) -> Json:
    """Return the DBSnapshot of a schedule's run, with what its binding would write. `due`: now, RFC 3339."""
    meta = {
        "name": name,
        "namespace": branch.namespace,
        "labels": {
            names.LABEL_PROJECT: project.name,
            names.LABEL_BRANCH: branch.name,
            names.LABEL_BRANCH_UID: branch.uid,
            names.LABEL_ORIGIN: SnapshotReason.SCHEDULE.value,
            names.LABEL_MANAGED_BY: "dbranch",
        },
        "finalizers": [names.AGENT_FINALIZER],
        "ownerReferences": [_owner_reference(names.PROJECT_KIND, project.name, project.uid)],
    }
    origin = {"reason": SnapshotReason.SCHEDULE.value, "schedules": list(schedules), "time": due}
    spec = {"project": project.name, "branch": branch.name, "origin": origin}
    return _object(names.API_VERSION, names.SNAPSHOT_KIND, meta, spec=spec)


def refresh_restore(branch: Branch, name: str) -> Json:
    """Return the DBRestore of a refresh: of the branch's own origin, as of when it is done."""
    meta = {
        "name": name,
        "namespace": branch.namespace,
        "labels": {
            names.LABEL_PROJECT: branch.project,
            names.LABEL_BRANCH: branch.name,
            names.LABEL_BRANCH_UID: branch.uid,
            names.LABEL_MANAGED_BY: "dbranch",
        },
        "ownerReferences": [_owner_reference(names.BRANCH_KIND, branch.object_name, branch.uid)],
    }
    spec = {"project": branch.project, "branch": branch.name, "ttlAfterFinished": "24h"}
    return _object(names.API_VERSION, names.RESTORE_KIND, meta, spec=spec)
