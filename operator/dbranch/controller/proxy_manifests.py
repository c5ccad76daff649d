"""Builders of the manifests of a project's proxy: Service, access, Deployment, PodDisruptionBudget. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch.api.enums import ServiceType
from dbranch.api.project import Project
from dbranch.api.proxy_spec import ProxyPods
from dbranch.api.resources import resources_with_defaults
from dbranch.controller.manifests import Json, Release, project_metadata

# By convention, where Prometheus finds a pod's metrics.
_PROMETHEUS_ANNOTATIONS: Final[Mapping[str, str]] = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": "8080",
    "prometheus.io/path": "/metrics",
}
# What a proxy asks for unless project or chart say something of the resource.
_RESOURCES: Final[Mapping[str, Mapping[str, Any]]] = {"requests": {"cpu": "25m", "memory": "48Mi"}}
# With fewer no eviction could leave a proxy that serves.
_MIN_REPLICAS_OF_BUDGET: Final = 2
PDB_API: Final = "policy/v1"
PDBS: Final = "poddisruptionbudgets"


def project_service(project: Project, release: Release) -> Json:
    """Return the proxy's Service, which has the project's own name and follows a switch.

    Only what `spec.proxy` says: the rest is the API server's, or a cloud controller's.
    """
    meta = project_metadata(project, release, names.COMPONENT_PROXY, names.project_service_name(project.name))
    proxy = project.proxy
    service, service_type = proxy.service, proxy.service_type
    port: Json = {
        "name": "postgres",
        "port": proxy.port,
        "targetPort": names.POSTGRES_PORT,
        "protocol": "TCP",
    }
    spec: Json = {"type": service_type, "selector": proxy_selector(project), "ports": [port]}
    if service.annotations:
        meta["annotations"] = dict(service.annotations)
    if service_type != ServiceType.CLUSTER_IP:
        port |= {"nodePort": service.node_port} if service.node_port else {}
        if service.external_traffic_policy:
            spec["externalTrafficPolicy"] = service.external_traffic_policy
    if service_type == ServiceType.LOAD_BALANCER:
        if service.load_balancer_class:
            spec["loadBalancerClass"] = service.load_balancer_class
        if service.load_balancer_source_ranges:
            spec["loadBalancerSourceRanges"] = list(service.load_balancer_source_ranges)
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def proxy_selector(project: Project) -> dict[str, str]:
    """Return the labels that only this project's proxy pods have."""
    return {names.LABEL_COMPONENT: names.COMPONENT_PROXY, names.LABEL_PROJECT_UID: project.uid}


def proxy_access(project: Project, release: Release) -> list[tuple[str, str, Json]]:
    """Return (API, plural, manifest) of the proxy's ServiceAccount, Role and RoleBinding.

    The proxy may watch its DBProject and patch the status, and likewise the DBBranches of its namespace. RBAC has no
    field selector: that it writes only to those of its project is up to the policy dbranch-proxy-entry.
    """
    name = names.proxy_name(project.name)
    group = "rbac.authorization.k8s.io"
    rbac = f"{group}/v1"

    def manifest(api: str, kind: str, **fields: Any) -> Json:
        meta = project_metadata(project, release, names.COMPONENT_PROXY, name)
        return {"apiVersion": api, "kind": kind, "metadata": meta, **fields}

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
        {"apiGroups": [names.GROUP], "resources": [names.BRANCHES], "verbs": ["list", "watch"]},
        {"apiGroups": [names.GROUP], "resources": [f"{names.BRANCHES}/status"], "verbs": ["patch"]},
    ]
    subjects = [{"kind": "ServiceAccount", "name": name, "namespace": project.namespace}]
    role_ref = {"apiGroup": group, "kind": "Role", "name": name}
    return [
        ("v1", "serviceaccounts", manifest("v1", "ServiceAccount", automountServiceAccountToken=False)),
        (rbac, "roles", manifest(rbac, "Role", rules=rules)),
        (rbac, "rolebindings", manifest(rbac, "RoleBinding", roleRef=role_ref, subjects=subjects)),
    ]


def wants_budget(project: Project) -> bool:
    """Return True if the proxy has a PodDisruptionBudget; one for a single pod would only block drains."""
    return project.proxy.replicas >= _MIN_REPLICAS_OF_BUDGET


def proxy_budget(project: Project, release: Release) -> Json:
    """Return the PodDisruptionBudget of the proxy's pods, by which an eviction leaves all but one."""
    meta = project_metadata(project, release, names.COMPONENT_PROXY, names.proxy_name(project.name))
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": proxy_selector(project)},
        # A pod that serves nobody may go in any case.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return {"apiVersion": PDB_API, "kind": "PodDisruptionBudget", "metadata": meta, "spec": spec}


def proxy_deployment(project: Project, release: Release) -> Json:
    """Return the proxy's Deployment; its pods are admitted by the Pod Security level `restricted`."""
    pods = project.proxy.pods.with_defaults(release.proxy_pods)
    meta = project_metadata(project, release, names.COMPONENT_PROXY, names.proxy_name(project.name))
    spec = {
        "replicas": project.proxy.replicas,
        "selector": {"matchLabels": proxy_selector(project)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {
                # Ours win: the selector, the Service and the policies rely on them.
                "labels": {**pods.labels, **meta["labels"]},
                "annotations": {**_PROMETHEUS_ANNOTATIONS, **pods.annotations},
            },
            "spec": _pod_spec(project, release, pods),
        },
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}


def _pod_spec(project: Project, release: Release, pods: ProxyPods) -> Json:
    container = _container(project, release)
    container["resources"] = resources_with_defaults(pods.resources, _RESOURCES)
    volumes: list[Json] = []
    if project.proxy.tls:
        container["env"].append({"name": "DBRANCH_TLS_DIR", "value": "/tls"})
        container["volumeMounts"] = [{"name": "tls", "mountPath": "/tls", "readOnly": True}]
        # Optional: without the Secret the proxy serves plain connections, and the condition Routed names it.
        secret = {"secretName": project.proxy.tls.secret_name, "optional": True}
        volumes.append({"name": "tls", "secret": secret})
    fitting: Json = {
        "imagePullSecrets": [{"name": name} for name in pods.image_pull_secrets],
        "nodeSelector": dict(pods.node_selector),
        "tolerations": list(pods.tolerations),
        "affinity": dict(pods.affinity),
        "priorityClassName": pods.priority_class,
    }
    return {
        "serviceAccountName": names.proxy_name(project.name),
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
        "topologySpreadConstraints": _topology_spread(project, pods.topology_spread),
        **{field: value for field, value in fitting.items() if value},
        "containers": [container],
        "volumes": volumes,
    }


def _container(project: Project, release: Release) -> Json:
    env: list[Json] = [
        {"name": "DBRANCH_PROJECT", "value": project.name},
        {"name": "DBRANCH_PROJECT_NAMESPACE", "value": project.namespace},
        {"name": "DBRANCH_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "DBRANCH_LOG_FORMAT", "value": release.log_format},
    ]
    return {
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
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def _topology_spread(project: Project, constraints: tuple[Mapping[str, Any], ...]) -> list[Json]:
    """Return the constraints for this project's proxy pods; by default they spread over nodes if they can."""
    default = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
    }
    selector = {"labelSelector": {"matchLabels": proxy_selector(project)}}
    return [{**constraint, **selector} for constraint in constraints or (default,)]
