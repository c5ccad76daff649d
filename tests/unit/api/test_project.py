"""DBProjects and DBBranches as parsed from JSON, and the schema's defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import BranchSessions, Project, ProxyEntry, Route, Target, parse_project
from dbranch.api.proxy_spec import ProxyLimits


def test_a_bare_project_has_the_defaults() -> None:
    parsed = parse_project({"metadata": {"name": "shop", "namespace": "team-a", "uid": "u"}, "spec": {}})
    assert parsed == Project("team-a", "shop", "u")
    assert (parsed.active_branch, parsed.size, parsed.postgres.image) == ("main", 10 * 2**30, "postgres:17")


def test_a_full_project() -> None:
    parsed = parse_project(
        {
            "metadata": {"name": "shop", "deletionTimestamp": "2030-01-01T00:00:00Z", "generation": 4},
            "spec": {
                "activeBranch": "feature-x",
                "postgres": {"passwordSecret": {"name": "shop-owner"}, "parameters": {"work_mem": "8MB"}},
                "proxy": {"drainTimeout": "90s", "tls": {"secretName": "shop-tls"}},
                "storage": {"size": "60Gi"},
            },
            "status": {
                "nodeName": "n1",
                "route": {"generation": 7, "branch": "main"},
                "routes": [{"branch": "main", "address": "10.0.0.1", "port": 21733, "state": "Ready"}],
                "proxies": [
                    {
                        "pod": "p",
                        "generation": 7,
                        "sessions": 2,
                        "branches": [{"branch": "main", "sessions": 2}],
                    }
                ],
                "node": {"poolUUID": "x", "storage": {"reason": "PoolMounted", "message": "m"}},
            },
        }
    )
    assert parsed.deleting and parsed.generation == 4
    assert parsed.postgres.password_secret and parsed.postgres.password_secret.key == "password"
    assert parsed.proxy.drain_timeout == 90 and parsed.proxy.tls and parsed.proxy.tls.mode == "Optional"
    assert parsed.proxy.handshake_timeout == 30 and parsed.proxy.limits == ProxyLimits(1000, None, None)
    assert parsed.route == Route(7, "main")
    assert parsed.routes == (Target("main", "Ready", "10.0.0.1", 21733),)
    assert parsed.proxies == (ProxyEntry("p", 7, 2, 0, (BranchSessions("main", 2, 0),)),)
    assert parsed.node.storage == Finding(Reason.POOL_MOUNTED, "m")


def test_a_branch() -> None:
    parsed = parse_branch(
        {
            "metadata": {"name": "shop-feature-x", "namespace": "team-a", "uid": "u"},
            "spec": {"project": "shop", "source": "main", "state": "Stopped"},
            "status": {"nodeName": "n1", "node": {"port": 21733, "postgres": {"reason": "Accepting"}}},
        }
    )
    assert (parsed.name, parsed.is_root, parsed.running) == ("feature-x", False, False)
    assert parsed.node.port == 21733 and parsed.node.postgres and parsed.node.postgres.done
    assert Branch("team-a", "shop-main", "u", "shop").is_root


def schema_defaults(schema: dict[str, Any]) -> Any:
    """Return what the API server makes of an empty value under this schema."""
    if schema.get("type") != "object":
        return schema.get("default")
    inner = {k: schema_defaults(v) for k, v in schema.get("properties", {}).items() if "default" in v}
    return {k: v for k, v in inner.items() if v is not None}


def test_the_schemas_defaults_are_those_of_the_code() -> None:
    crd = yaml.safe_load((Path(__file__).parents[3] / "crds" / "dbprojects.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec = schema_defaults(schema)
    assert (
        spec["proxy"]["limits"] == {"sessions": 1000, "handshakes": 1000}
        and spec["proxy"]["proxyProtocol"] == "Disabled"
    )
    assert parse_project({"metadata": {"name": "shop"}, "spec": spec}) == Project("", "shop", "")
