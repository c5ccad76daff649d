"""A proxy that is older than who wrote its DBProject."""

from __future__ import annotations

from typing import Any

import pytest

from dbranch.api.errors import InvalidInput
from dbranch.api.project import Target
from dbranch.api.proxy_spec import ProxyLimits
from dbranch.proxy.project import read_project
from dbranch.proxy.routes import Dial, Wait, decide

METADATA = {"name": "shop", "namespace": "team-a", "uid": "u"}
MAIN = {"branch": "main", "address": "10.0.0.1", "port": 21733, "state": "Ready"}


def body(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    route = {"route": {"generation": 2, "branch": "main"}, "routes": [MAIN]}
    return {"metadata": METADATA, "spec": spec, "status": route | (status or {})}


@pytest.mark.parametrize(
    "newer",
    [
        body({"node": {"storage": {"reason": "Suspended"}}}),
        body({"node": {"storage": ["a", "list"]}}),
        body({"node": "text"}),
        body({"conditions": {"of": "another shape"}, "proxies": {"by": "pod"}}),
        body({"proxies": [{"pod": "p", "branches": ["main"]}, "text", {"entry": 1}]}),
        body(storage={"size": "1Xi"}, postgres={"runAsUser": "postgres", "imagePullSecrets": ["a"]}),
        body(state=["Suspended"], protection={"of": "all"}, proxy={"replicas": {"min": 1}, "port": "pg"}),
        body(proxy={"limits": "none", "tls": ["a"], "onSwitch": {"mode": "Drain"}}),
    ],
)
def test_fields_of_a_newer_release_do_not_stop_a_switch(newer: dict[str, Any]) -> None:
    table = read_project(newer).table
    assert (table.generation, decide(table, None)) == (2, Dial("main", "10.0.0.1", 21733))


def test_values_of_a_newer_release_are_replaced_and_named() -> None:
    proxy = {
        "onSwitch": "Freeze",
        "drainTimeout": "1d",
        "startTimeout": {"of": "a pod"},
        "handshakeTimeout": "7s",
        "limits": {"sessions": "many", "sessionsPerBranch": 3},
    }
    routes = [MAIN, {"branch": "new", "state": "Suspended"}, {"name": "later"}, "text"]
    project = read_project(body({"routes": routes}, proxy=proxy))
    table = project.table
    assert (table.on_switch, table.drain_timeout, table.start_timeout) == ("Terminate", 60.0, 30.0)
    assert (table.handshake_timeout, table.limits) == (7.0, ProxyLimits(1000, None, 3))
    assert table.targets == {
        "main": Target("main", "Ready", "10.0.0.1", 21733),
        "new": Target("new", "Suspended"),
    }
    assert isinstance(decide(table, "new"), Wait)
    named = " ".join(project.problems)
    assert all(
        key in named for key in ("onSwitch", "drainTimeout", "startTimeout", "sessions", "later", "text")
    )
    assert "sessionsPerBranch" not in named and len(project.problems) == 6


@pytest.mark.parametrize(
    "route", [{"generation": "two", "branch": "main"}, {"branch": "main"}, {"generation": 3}]
)
def test_a_route_that_cannot_be_read_changes_nothing(route: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        read_project(body({"route": route}))


def test_the_pods_with_an_entry() -> None:
    assert read_project(body({"proxies": [{"pod": "a", "generation": 1}, {"pod": "b"}]})).entry_pods == {
        "a",
        "b",
    }
