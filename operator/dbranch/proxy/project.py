"""What a proxy needs of its DBProject, read from the API server's JSON. Pure.

Only that is read, and a value of it that cannot be read, since a newer release has written it, does not stop the
rest: a proxy that is older than the controller or an agent still follows each switch.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dbranch.api.enums import OnSwitch, ProxyProtocol, TargetState, TlsMode
from dbranch.api.errors import InvalidInput
from dbranch.api.project import RouteTarget, Target, parse_route_target
from dbranch.api.proxy_spec import Proxy, ProxyLimits
from dbranch.api.quantity import parse_seconds
from dbranch.proxy.routes import Network, Table

T = TypeVar("T")


@dataclass(frozen=True)
class ProxyProject:
    """What the DBProject says: the table, the pods that have an entry in `status.proxies`, what could not be read.

    `has_targets`: the table has the branches, from `status.routes`, which the controller writes while a proxy of
    release 0.1.0 needs it; else `proxy.branches` adds them. `switched_to`: the object that the last switch names.
    """

    table: Table
    has_targets: bool = False
    switched_to: RouteTarget | None = None
    entry_pods: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()


def read_project(body: Mapping[str, Any]) -> ProxyProject:
    """Read a DBProject. Raise InvalidInput if name, UID or route cannot be read: without them nothing can change."""
    problems: list[str] = []
    try:
        meta, route = body["metadata"], _mapping(_mapping(body.get("status")).get("route"))
        name, uid = str(meta["name"]), str(meta.get("uid", ""))
        generation = int(route["generation"]) if route else 0
        active = str(route["branch"]) if route else None
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"the project's name or status.route cannot be read: {error!r}") from error
    status = _mapping(body.get("status"))
    proxy = _mapping(_mapping(body.get("spec")).get("proxy"))
    limits, tls = _mapping(proxy.get("limits")), _mapping(proxy.get("tls"))

    def read(raw: Mapping[str, Any], key: str, parse: Callable[[Any], T], default: T) -> T:
        if raw.get(key) is None:
            return default
        try:
            return parse(raw[key])
        except (InvalidInput, TypeError, ValueError):
            problems.append(f"{key} {raw[key]!r} is unknown to this release; {default} is used")
            return default

    table = Table(
        project=name,
        uid=uid,
        generation=generation,
        active=active,
        targets=_read_targets(status.get("routes"), problems),
        on_switch=read(proxy, "onSwitch", _known_on_switch, Proxy.on_switch),
        drain_timeout=read(proxy, "drainTimeout", parse_seconds, Proxy.drain_timeout),
        start_timeout=read(proxy, "startTimeout", parse_seconds, Proxy.start_timeout),
        # A mode of a newer release is hardly laxer than Optional.
        tls_required=bool(tls) and tls.get("mode", TlsMode.OPTIONAL) != TlsMode.OPTIONAL,
        handshake_timeout=read(proxy, "handshakeTimeout", parse_seconds, Proxy.handshake_timeout),
        proxy_protocol=proxy.get("proxyProtocol") == ProxyProtocol.REQUIRED,
        trusted_proxies=_read_networks(proxy.get("trustedProxies"), problems),
        limits=ProxyLimits(
            sessions=read(limits, "sessions", int, ProxyLimits.sessions),
            sessions_per_address=read(limits, "sessionsPerAddress", _optional_int, None),
            sessions_per_branch=read(limits, "sessionsPerBranch", _optional_int, None),
            handshakes=read(limits, "handshakes", int, ProxyLimits.handshakes),
            handshakes_per_address=read(limits, "handshakesPerAddress", _optional_int, None),
        ),
    )
    entries = status.get("proxies")
    pods = frozenset(
        e["pod"]
        for e in (entries if isinstance(entries, list) else ())
        if isinstance(e, Mapping) and isinstance(e.get("pod"), str)
    )
    switched_to = parse_route_target(route.get("target"))
    return ProxyProject(table, isinstance(status.get("routes"), list), switched_to, pods, tuple(problems))


def _read_targets(raw: Any, problems: list[str]) -> dict[str, Target]:
    targets: dict[str, Target] = {}
    for entry in raw if isinstance(raw, list) else ():
        try:
            address, port = entry.get("address"), entry.get("port")
            target = Target(
                entry["branch"],
                TargetState(entry["state"]),
                None if address is None else str(address),
                None if port is None else int(port),
            )
            targets[target.branch] = target
        except (AttributeError, KeyError, TypeError, ValueError):
            problems.append(f"route {entry!r} is unknown to this release; it is left out")
    return targets


def _read_networks(raw: Any, problems: list[str]) -> tuple[Network, ...] | None:
    """Read `trustedProxies`; None if it is not set. What cannot be read is trusted no more than anybody."""
    if raw is None:
        return None
    networks: list[Network] = []
    for entry in raw if isinstance(raw, list) else [raw]:
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except (TypeError, ValueError):
            problems.append(f"trustedProxies {entry!r} is unknown to this release; it is left out")
    return tuple(networks)


def _mapping(raw: Any) -> Mapping[str, Any]:
    return raw if isinstance(raw, Mapping) else {}


def _optional_int(raw: Any) -> int | None:
    return int(raw)


def _known_on_switch(raw: Any) -> OnSwitch:
    """Return the value if this release knows it. Raise ValueError otherwise."""
    value = OnSwitch(raw)
    if value not in tuple(OnSwitch):
        raise ValueError(raw)
    return value
