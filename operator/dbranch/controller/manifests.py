"""The objects that the controller makes, as the API server takes them. Pure builders."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.enums import ServiceType
from dbranch.api.project import Project

Json = dict[str, Any]

# The usual way of saying to Prometheus where a pod's metrics are.
_SCRAPED: Json = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": "8080",
    "prometheus.io/path": "/metrics",
}


@dataclass(frozen=True)
class Release:
    """What the chart says: names, and the image that the proxies run."""

    name: str
    nodes_namespace: str
    server_image: str
    pull_policy: str = "IfNotPresent"
    log_format: str = "plain"


@dataclass(frozen=True)
class Login:
    """How the database is entered, but for host and port."""

    user: str
    password: str
    database: str


def _owner(kind: str, name: str, uid: str) -> Json:
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _meta(project: Project, release: Release, component: str, name: str) -> Json:
    return {
        "name": name,
        "namespace": project.namespace,
        "labels": names.labels(
            component,
            release.name,
            **{names.LABEL_PROJECT: project.name, names.LABEL_PROJECT_UID: project.uid},
        ),
        "ownerReferences": [_owner(names.PROJECT_KIND, project.name, project.uid)],
    }


def _branch_meta(project: Project, branch: Branch, release: Release, name: str) -> Json:
    meta = _meta(project, release, names.COMPONENT_POSTGRES, name)
    meta["labels"] |= {names.LABEL_BRANCH: branch.name, names.LABEL_BRANCH_UID: branch.uid}
    meta["ownerReferences"] = [_owner(names.BRANCH_KIND, branch.object_name, branch.uid)]
    return meta


def _object(api: str, kind: str, meta: Json, **more: Any) -> Json:
    return {"apiVersion": api, "kind": kind, "metadata": meta, **more}


def root_branch(project: Project) -> Json:
    """The DBBranch of the root, which has no source."""
    name = names.branch_object_name(project.name, names.ROOT_BRANCH)
    meta = {"name": name, "namespace": project.namespace}
    return _object(names.API_VERSION, names.BRANCH_KIND, meta, spec={"project": project.name})


def conn_secret(project: Project, release: Release, login: Login, branch: Branch | None = None) -> Json:
    """The connection's Secret of a project (`branch` None) or of one branch, for `envFrom` and for people."""
    name = branch.object_name if branch else project.name
    secret = names.conn_secret_name(name)
    meta = (
        _branch_meta(project, branch, release, secret)
        if branch
        else _meta(project, release, names.COMPONENT_PROXY, secret)
    )
    host = names.service_host(name, project.namespace)
    port = names.POSTGRES_PORT if branch else project.proxy.port
    user, password, database = (quote(t, safe="") for t in (login.user, login.password, login.database))
    texts = {
        "host": host,
        "port": str(port),
        "username": login.user,
        "password": login.password,
        "database": login.database,
        "uri": f"postgresql://{user}:{password}@{host}:{port}/{database}",
    }
    data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    return _object("v1", "Secret", meta, type="Opaque", data=data)


def verifier_secret(project: Project, release: Release, verifier: str) -> Json:
    """The password's verifier, in the nodes' namespace: all that an agent's pods need to know of it."""
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
    data = {"verifier": base64.b64encode(verifier.encode()).decode()}
    return _object("v1", "Secret", meta, type="Opaque", data=data)


def allow_policy(namespace: str, release: Release) -> Json:
    """Admits a users' namespace to its own Postgres pods; without it nobody reaches them."""
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
    """A branch's own Service, without a selector: its EndpointSlice says where the branch is."""
    spec = {
        "type": ServiceType.CLUSTER_IP,
        "ports": [{"name": "postgres", "port": names.POSTGRES_PORT, "protocol": "TCP"}],
    }
    return _object("v1", "Service", _branch_meta(project, branch, release, branch.object_name), spec=spec)


def branch_endpoints(project: Project, branch: Branch, release: Release, reachable: bool) -> Json:
    """The EndpointSlice of a branch's Service: its pod's address and its own port, or nobody."""
    address = branch.node.address if reachable else None
    meta = _branch_meta(project, branch, release, branch.object_name)
    meta["labels"] |= {
        "kubernetes.io/service-name": branch.object_name,
        "endpointslice.kubernetes.io/managed-by": "dbranch",
    }
    return _object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        meta,
        addressType="IPv6" if address and ":" in address else "IPv4",
        endpoints=[{"addresses": [address], "conditions": {"ready": True}}] if address else [],
        ports=[
            {"name": "postgres", "port": names.branch_port(branch.uid), "protocol": "TCP"},
        ],
    )


def project_service(project: Project, release: Release) -> Json:
    """The proxy's Service, of the project's own name: it follows the switch."""
    meta = _meta(project, release, names.COMPONENT_PROXY, names.project_service_name(project.name))
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
    """The labels that a project's proxy pods alone have."""
    return {names.LABEL_COMPONENT: names.COMPONENT_PROXY, names.LABEL_PROJECT_UID: project.uid}


def proxy_access(project: Project, release: Release) -> list[tuple[str, str, Json]]:
    """The proxy's own account, which may read its DBProject and write its status: (api, plural, object)."""
    name = names.proxy_name(project.name)
    rbac = "rbac.authorization.k8s.io"

    def meta() -> Json:
        return _meta(project, release, names.COMPONENT_PROXY, name)

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
    """The proxy's Deployment; its pods are fit for a namespace labelled PSA `restricted`."""
    name = names.proxy_name(project.name)
    meta = _meta(project, release, names.COMPONENT_PROXY, name)
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
        # Optional: without it the proxy still serves, and the condition Routed names what is missing.
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
        "template": {"metadata": {"labels": meta["labels"], "annotations": _SCRAPED}, "spec": pod},
    }
    return _object("apps/v1", "Deployment", meta, spec=spec)
