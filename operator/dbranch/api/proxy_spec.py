"""`spec.proxy` of a DBProject as frozen dataclasses, parsed from the API server's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dbranch.api import names
from dbranch.api.enums import ExternalTrafficPolicy, OnSwitch, ProxyProtocol, ServiceType, TlsMode
from dbranch.api.errors import InvalidInput
from dbranch.api.quantity import parse_seconds
from dbranch.api.resources import resources_with_defaults


@dataclass(frozen=True)
class Tls:
    secret_name: str
    mode: TlsMode = TlsMode.OPTIONAL


@dataclass(frozen=True)
class ProxyLimits:
    """`spec.proxy.limits`: how many sessions and handshakes each proxy pod admits; None: no limit."""

    sessions: int = 1000
    sessions_per_address: int | None = None
    sessions_per_branch: int | None = None
    handshakes: int = 1000
    handshakes_per_address: int | None = None


@dataclass(frozen=True)
class ProxyService:
    """`spec.proxy.service`: fields of the project's Service as Kubernetes names them; None: not set by dbranch."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    load_balancer_class: str | None = None
    load_balancer_source_ranges: tuple[str, ...] = ()
    external_traffic_policy: ExternalTrafficPolicy | None = None
    node_port: int | None = None


@dataclass(frozen=True)
class ProxyPods:
    """What fits the proxy's pods into their namespace, in the form of a pod's fields of these names.

    `topology_spread` is without label selectors. Fields of `spec.proxy`, and the chart's values `proxy`.
    """

    image_pull_secrets: tuple[str, ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    topology_spread: tuple[Mapping[str, Any], ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    priority_class: str | None = None

    def with_defaults(self, defaults: ProxyPods) -> ProxyPods:
        """Return these fields, and the default of each one that is empty.

        Resources are completed by the resource, annotations and labels by the key.
        """
        return ProxyPods(
            self.image_pull_secrets or defaults.image_pull_secrets,
            resources_with_defaults(self.resources, defaults.resources),
            self.node_selector or defaults.node_selector,
            self.tolerations or defaults.tolerations,
            self.affinity or defaults.affinity,
            self.topology_spread or defaults.topology_spread,
            {**defaults.annotations, **self.annotations},
            {**defaults.labels, **self.labels},
            self.priority_class or defaults.priority_class,
        )

    @classmethod
    def parse(cls, text: str) -> ProxyPods:
        """Parse the JSON of the chart's values `proxy`. Raises InvalidInput if it has another form."""
        try:
            return parse_proxy_pods(json.loads(text or "null") or {})
        except (ValueError, AttributeError, TypeError) as error:
            raise InvalidInput(f"the chart's values proxy cannot be used: {text!r}") from error


@dataclass(frozen=True)
class Proxy:
    """`spec.proxy`. Timeouts are in seconds.

    `trusted_proxies`: CIDRs that alone send a PROXY header; None: every client has to. `external_host`,
    `external_port`: where clients outside of the cluster connect to; None: nowhere, or `port`.
    """

    replicas: int = 1
    port: int = names.POSTGRES_PORT
    service_type: ServiceType = ServiceType.CLUSTER_IP
    service: ProxyService = field(default_factory=ProxyService)
    external_host: str | None = None
    external_port: int | None = None
    on_switch: OnSwitch = OnSwitch.TERMINATE
    drain_timeout: float = 60.0
    start_timeout: float = 30.0
    handshake_timeout: float = 30.0
    proxy_protocol: ProxyProtocol = ProxyProtocol.DISABLED
    trusted_proxies: tuple[str, ...] | None = None
    limits: ProxyLimits = field(default_factory=ProxyLimits)
    tls: Tls | None = None
    pods: ProxyPods = field(default_factory=ProxyPods)


def parse_proxy(raw: Mapping[str, Any]) -> Proxy:
    """Parse `spec.proxy`. The schema's defaults apply here, too, also to what has a form of a newer release."""
    tls = raw.get("tls")
    return Proxy(
        replicas=int(raw.get("replicas", Proxy.replicas)),
        port=int(raw.get("port", Proxy.port)),
        service_type=ServiceType(raw.get("serviceType", Proxy.service_type)),
        service=_parse_service(raw.get("service") or {}),
        external_host=raw.get("externalHost"),
        external_port=raw.get("externalPort"),
        on_switch=OnSwitch(raw.get("onSwitch", Proxy.on_switch)),
        drain_timeout=_seconds(raw.get("drainTimeout"), Proxy.drain_timeout),
        start_timeout=_seconds(raw.get("startTimeout"), Proxy.start_timeout),
        handshake_timeout=_seconds(raw.get("handshakeTimeout"), Proxy.handshake_timeout),
        proxy_protocol=ProxyProtocol(raw.get("proxyProtocol", Proxy.proxy_protocol)),
        trusted_proxies=tuple(raw["trustedProxies"]) if raw.get("trustedProxies") else None,
        limits=_parse_limits(raw.get("limits") or {}),
        tls=Tls(tls.get("secretName", ""), TlsMode(tls.get("mode", Tls.mode))) if tls else None,
        pods=parse_proxy_pods(raw),
    )


def parse_proxy_pods(raw: Mapping[str, Any]) -> ProxyPods:
    """Parse what `spec.proxy`, or the chart's values `proxy`, say of the proxy's pods."""
    return ProxyPods(
        image_pull_secrets=tuple(s["name"] for s in raw.get("imagePullSecrets") or () if "name" in s),
        resources=dict(raw.get("resources") or {}),
        node_selector=dict(raw.get("nodeSelector") or {}),
        tolerations=tuple(raw.get("tolerations") or ()),
        affinity=dict(raw.get("affinity") or {}),
        topology_spread=tuple(raw.get("topologySpreadConstraints") or ()),
        annotations=dict(raw.get("podAnnotations") or {}),
        labels=dict(raw.get("podLabels") or {}),
        priority_class=raw.get("priorityClassName") or None,
    )


def _parse_service(raw: Mapping[str, Any]) -> ProxyService:
    policy = raw.get("externalTrafficPolicy")
    return ProxyService(
        annotations=dict(raw.get("annotations") or {}),
        load_balancer_class=raw.get("loadBalancerClass"),
        load_balancer_source_ranges=tuple(raw.get("loadBalancerSourceRanges") or ()),
        external_traffic_policy=ExternalTrafficPolicy(policy) if policy else None,
        node_port=raw.get("nodePort"),
    )


def _parse_limits(raw: Mapping[str, Any]) -> ProxyLimits:
    return ProxyLimits(
        sessions=int(raw.get("sessions", ProxyLimits.sessions)),
        sessions_per_address=raw.get("sessionsPerAddress"),
        sessions_per_branch=raw.get("sessionsPerBranch"),
        handshakes=int(raw.get("handshakes", ProxyLimits.handshakes)),
        handshakes_per_address=raw.get("handshakesPerAddress"),
    )


def _seconds(text: str | int | float | None, default: float) -> float:
    """Parse a duration; `default` for none, and for one in a form that only a newer release knows."""
    try:
        return default if text is None else parse_seconds(text)
    except InvalidInput:
        return default
