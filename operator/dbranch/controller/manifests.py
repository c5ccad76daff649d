"""Builders of the manifests that the controller applies. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.enums import ServiceType
from dbranch.api.project import Project

Json = dict[str, Any]

# By convention, where Prometheus finds a pod's metrics.
_PROMETHEUS_ANNOTATIONS: Json = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": "8080",
    "prometheus.io/path": "/metrics",
}


@dataclass(frozen=True)
class Release:
    """The Helm release, as the chart passes it to the controller: names, and how the proxies run."""

    name: str
    nodes_namespace: str
    server_image: str
    pull_policy: str = "IfNotPresent"
    log_format: str = "plain"


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


def _metadata(project: Project, release: Release, component: str, name: str) -> Json:
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
    meta = _metadata(project, release, names.COMPONENT_POSTGRES, name)
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


def conn_secret(
    project: Project, release: Release, credentials: Credentials, branch: Branch | None = None
) -> Json:
    """Return the connection Secret of a project (`branch` None) or of one branch, for `envFrom` and for people."""
    if branch is None:
        meta = _metadata(project, release, names.COMPONENT_PROXY, names.conn_secret_name(project.name))
        return _credentials_secret(meta, project, credentials, project.name, project.proxy.port)
    name = branch.object_name
    meta = _branch_metadata(project, branch, release, names.conn_secret_name(name))
    return _credentials_secret(meta, project, credentials, name, names.POSTGRES_PORT)


def superuser_secret(project: Project, release: Release, credentials: Credentials) -> Json:
    """Return the project's Secret with the superuser's connection, for people and `dbranch load`."""
    meta = _metadata(project, release, names.COMPONENT_PROXY, names.superuser_secret_name(project.name))
    return _credentials_secret(meta, project, credentials, project.name, project.proxy.port)


def _credentials_secret(
    meta: Json, project: Project, credentials: Credentials, service: str, port: int
) -> Json:
    host = names.service_host(service, project.namespace)
    values = (credentials.user, credentials.password, credentials.database)
    user, password, database = (quote(value, safe="") for value in values)
    texts = {
        "host": host,
        "port": str(port),
        "username": credentials.user,
        "password": credentials.password,
        "database": credentials.database,
        "uri": f"postgresql://{user}:{password}@{host}:{port}/{database}",
    }
    data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    return _object("v1", "Secret", meta, type="Opaque", data=data)


def verifier_secret(
    project: Project, release: Release, verifier: str, superuser_verifier: str | None = None
) -> Json:
    """Return the Secret with the passwords' SCRAM verifiers, in the nodes' namespace: all that agents get of them.

    `superuser_verifier` is None where the application's role is the superuser.
    """
    meta = {
        "name": names.verifier_secret_name(project.uid),
        "namespace": release.nodes_namespace,
        "labels": names.labels(
            names.COMPONENT_POSTGRES,
            release.name,
            **{
                names.LABEL_NAMESPACE: project.namespace,
                names.LABEL_PROJECT: project.name,
                names.LABEL_PROJECT_UID: project.uid,
            },
        ),
    }
    verifiers = {"verifier": verifier, "superuser": superuser_verifier}
    data = {key: base64.b64encode(text.encode()).decode() for key, text in verifiers.items() if text}
    return _object("v1", "Secret", meta, type="Opaque", data=data)


def pull_secret(
    project: Project, release: Release, name: str, secret_type: str, data: Mapping[str, str]
) -> Json:
    """Return the copy of a project's pull secret in the nodes' namespace, where its Postgres pods are.

    `name`: in the project's namespace; `data`: in base64, what kubelet reads of it.
    """
    meta = {
        "name": names.pull_secret_name(project.uid, name),
        "namespace": release.nodes_namespace,
        "labels": names.labels(
            names.COMPONENT_POSTGRES,
            release.name,
            **{
                names.LABEL_NAMESPACE: project.namespace,
                names.LABEL_PROJECT: project.name,
                names.LABEL_PULL_SECRET: "copy",
            },
        ),
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


def branch_service(project: Project, branch: Branch, release: Release) -> Json:
    """Return a branch's Service, which has no selector but an EndpointSlice of ours."""
    spec = {
        "type": ServiceType.CLUSTER_IP,
        "ports": [{"name": "postgres", "port": names.POSTGRES_PORT, "protocol": "TCP"}],
    }
    return _object("v1", "Service", _branch_metadata(project, branch, release, branch.object_name), spec=spec)


def branch_endpoints(
    project: Project, branch: Branch, release: Release, ip_family: str, reachable: bool
) -> Json:
    """Return the EndpointSlice of a branch's Service: its pod's address if `reachable`, and its Postgres' port.

    `ip_family` is the Service's, IPv4 or IPv6: a slice's address type never changes.
    """
    address = branch.node.address if reachable else None
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
        endpoints=[{"addresses": [address], "conditions": {"ready": True}}] if address else [],
        ports=[
            {"name": "postgres", "port": names.branch_port(branch.uid), "protocol": "TCP"},
        ],
    )


def project_service(project: Project, release: Release) -> Json:
    """Return the proxy's Service, which has the project's own name and follows a switch."""
    meta = _metadata(project, release, names.COMPONENT_PROXY, names.project_service_name(project.name))
    spec = {
        "type": project.proxy.service_type,
        "selector": proxy_selector(project),
        "ports": [
            {
                "name": "postgres",
                "port": project.proxy.port,
                "targetPort": names.POSTGRES_PORT,
                "protocol": "TCP",
            }
        ],
    }
    return _object("v1", "Service", meta, spec=spec)


def proxy_selector(project: Project) -> dict[str, str]:
    """Return the labels that only this project's proxy pods have."""
    return {names.LABEL_COMPONENT: names.COMPONENT_PROXY, names.LABEL_PROJECT_UID: project.uid}


def proxy_access(project: Project, release: Release) -> list[tuple[str, str, Json]]:
    """Return (API, plural, manifest) of the proxy's ServiceAccount, Role and RoleBinding.

    The proxy may watch its DBProject and patch the status.
    """
    name = names.proxy_name(project.name)
    rbac = "rbac.authorization.k8s.io"

    def meta() -> Json:
        return _metadata(project, release, names.COMPONENT_PROXY, name)

    rules = [
        {
            "apiGroups": [names.GROUP],
            "resources": [names.PROJECTS],
            "resourceNames": [project.name],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": [names.GROUP],
            "resources": [f"{names.PROJECTS}/status"],
            "resourceNames": [project.name],
            "verbs": ["get", "patch"],
        },
    ]
    account = _object("v1", "ServiceAccount", meta(), automountServiceAccountToken=False)
    role = _object(f"{rbac}/v1", "Role", meta(), rules=rules)
    binding = _object(
        f"{rbac}/v1",
        "RoleBinding",
        meta(),
        roleRef={"apiGroup": rbac, "kind": "Role", "name": name},
        subjects=[{"kind": "ServiceAccount", "name": name, "namespace": project.namespace}],
    )
    return [
        ("v1", "serviceaccounts", account),
        (f"{rbac}/v1", "roles", role),
        (f"{rbac}/v1", "rolebindings", binding),
    ]


def proxy_deployment(project: Project, release: Release) -> Json:
    """Return the proxy's Deployment; its pods are admitted by the Pod Security level `restricted`."""
    name = names.proxy_name(project.name)
    meta = _metadata(project, release, names.COMPONENT_PROXY, name)
    env: list[Json] = [
        {"name": "DBRANCH_PROJECT", "value": project.name},
        {"name": "DBRANCH_PROJECT_NAMESPACE", "value": project.namespace},
        {"name": "DBRANCH_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "DBRANCH_LOG_FORMAT", "value": release.log_format},
    ]
    container: Json = {
        "name": "proxy",
        "image": release.server_image,
        "imagePullPolicy": release.pull_policy,
        "args": ["proxy"],
        "env": env,
        "ports": [
            {"name": "postgres", "containerPort": names.POSTGRES_PORT},
            {"name": "health", "containerPort": 8080},
        ],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "health"}, "periodSeconds": 2},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "health"}, "periodSeconds": 10},
        "resources": {"requests": {"cpu": "25m", "memory": "48Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    volumes: list[Json] = []
    if project.proxy.tls:
        env.append({"name": "DBRANCH_TLS_DIR", "value": "/tls"})
        container["volumeMounts"] = [{"name": "tls", "mountPath": "/tls", "readOnly": True}]
        # Optional: without the Secret the proxy serves plain connections, and the condition Routed names it.
        volumes.append(
            {"name": "tls", "secret": {"secretName": project.proxy.tls.secret_name, "optional": True}}
        )
    pod = {
        "serviceAccountName": name,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 40,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": proxy_selector(project)},
            }
        ],
        "containers": [container],
        "volumes": volumes,
    }
    spec = {
        "replicas": project.proxy.replicas,
        "selector": {"matchLabels": proxy_selector(project)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {"labels": meta["labels"], "annotations": _PROMETHEUS_ANNOTATIONS},
            "spec": pod,
        },
    }
    return _object("apps/v1", "Deployment", meta, spec=spec)
