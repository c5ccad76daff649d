"""When branches may be deleted, and what of expiry and leases of protection is admitted, on a real API server."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.test_controller_policies import CONTROLLER
from tests.api.test_policies import Api, Shop, admin, shop, team

from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.kube.client import branch_path, path_of

__all__ = ["admin", "shop", "team"]

Json = dict[str, Any]
PAST, AHEAD, FAR = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "2999-01-01T00:00:01Z"


def branch_of(name: str, **spec: Any) -> Json:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.BRANCH_KIND,
        "metadata": {"name": f"shop-{name}"},
        "spec": {"project": "shop", "source": "main", **spec},
    }


def branches(team: str) -> str:
    return path_of(names.API_VERSION, names.BRANCHES, team)


@pytest.mark.parametrize(
    "spec",
    [
        *({"ttl": ttl} for ttl in ("90m", "1h30m", "168h", "2s", "Never")),
        # A past time is never refused: what is applied again may be old.
        *({field: PAST} for field in ("expirationTime", "protectedUntil")),
        {"expirationTime": AHEAD, "ttl": "1h", "protectedUntil": "2030-01-31T12:00:00.5+01:00"},
    ],
)
def test_what_is_a_time(admin: Api, team: str, spec: Json) -> None:
    created = admin.allowed("POST", branches(team), branch_of("x", **spec), dry=True)
    # Kept to the letter: a lease ends by its very value.
    assert {key: created["spec"][key] for key in spec} == spec


@pytest.mark.parametrize(
    "spec",
    [
        *({"ttl": ttl} for ttl in ("", "0h", "7d", "-1h", "h", "1h1h1h1h", "never", "99999999h")),
        *({field: text} for field in ("expirationTime", "protectedUntil") for text in ("", "7d", "2030")),
    ],
)
def test_what_is_no_time(admin: Api, team: str, spec: Json) -> None:
    admin.rejected("POST", branches(team), branch_of("x", **spec))


def test_the_times_of_a_project(admin: Api, shop: Shop) -> None:
    for spec in (
        {"branchDefaults": {"ttl": "72h"}},
        {"branchDefaults": {"ttl": "Never"}},
        {"branchPolicy": {"maxTTL": "720h"}},
    ):
        admin.allowed("PATCH", shop.path, {"spec": spec}, dry=True)
    for spec in ({"branchDefaults": {"ttl": "7d"}}, {"branchPolicy": {"maxTTL": "Never"}}):
        admin.rejected("PATCH", shop.path, {"spec": spec})
    # None is set by default: an object that is stored before there were any has none either.
    spec = admin.allowed("GET", shop.path)["spec"]
    assert "branchDefaults" not in spec and "branchPolicy" not in spec
    stored = admin.allowed("GET", branch_path(shop.team, "shop-feature-x"))["spec"]
    assert not stored.keys() & {"ttl", "expirationTime", "protectedUntil"}


def test_a_lease_of_protection_holds_until_its_very_value_has_ended(admin: Api, shop: Shop) -> None:
    path = branch_path(shop.team, "shop-feature-x")
    controller = Api(CONTROLLER)

    def is_protected() -> bool:
        """Ask the policy, and compare the code with it."""
        status, answer = admin.request("DELETE", path, dry=True)
        assert status < 300 or "feature-x is protected until " in answer["message"], answer
        body = admin.allowed("GET", path)
        assert parse_branch(body).protected == (status >= 300)
        return status >= 300

    admin.eventually_allowed("DELETE", path, dry=True)
    assert not is_protected()
    # Also a time that is past: policies have no clock.
    for until in (AHEAD, PAST):
        admin.allowed("PATCH", path, {"spec": {"protectedUntil": until}})
        assert is_protected()
        controller.allowed("PATCH", f"{path}/status", {"status": {"protectionEnded": until}})
        assert not is_protected()
    # An extension, and be it of a second, counts at once.
    admin.allowed("PATCH", path, {"spec": {"protectedUntil": AHEAD}})
    controller.allowed("PATCH", f"{path}/status", {"status": {"protectionEnded": AHEAD}})
    admin.allowed("PATCH", path, {"spec": {"protectedUntil": FAR}})
    assert is_protected()
    admin.allowed("PATCH", path, {"spec": {"protectedUntil": None}})
    assert not is_protected()
    # Without end, beside a lease that is over.
    admin.allowed("PATCH", path, {"spec": {"protectedUntil": FAR, "protection": "Enabled"}})
    controller.allowed("PATCH", f"{path}/status", {"status": {"protectionEnded": FAR}})
    assert "feature-x is protected; it" in admin.rejected("DELETE", path)
    assert parse_branch(admin.allowed("GET", path)).protected


def test_the_policy_of_deletions_holds_the_controller_too(admin: Api, shop: Shop) -> None:
    controller, path = Api(CONTROLLER), branch_path(shop.team, "shop-feature-x")
    controller.eventually_rejected("main is the root", "DELETE", branch_path(shop.team, "shop-main"))
    controller.eventually_rejected("kept is protected", "DELETE", branch_path(shop.team, "shop-kept"))
    controller.eventually_allowed("DELETE", path, dry=True)
    shop.write_spec({"activeBranch": "feature-x"})
    controller.eventually_rejected("feature-x is the active branch", "DELETE", path)
    shop.write_spec({"activeBranch": "main"})
    # With their project they go.
    admin.allowed("PATCH", shop.path, {"metadata": {"finalizers": ["example.com/wait"]}})
    admin.allowed("DELETE", shop.path)
    for name in ("main", "kept", "feature-x"):
        controller.eventually_allowed("DELETE", branch_path(shop.team, f"shop-{name}"))
    admin.allowed("PATCH", shop.path, {"metadata": {"finalizers": []}})


def test_a_deletion_of_what_was_written_since_is_none(admin: Api, shop: Shop) -> None:
    path = branch_path(shop.team, "shop-feature-x")
    meta = admin.allowed("GET", path)["metadata"]
    admin.allowed("PATCH", path, {"spec": {"expirationTime": AHEAD}})
    preconditions = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
    status, answer = Api(CONTROLLER).request("DELETE", path, options)
    assert status == 409, answer


def test_the_columns_say_when_a_branch_goes(admin: Api) -> None:
    crd = admin.allowed(
        "GET", path_of("apiextensions.k8s.io/v1", "customresourcedefinitions", None, "dbbranches.dbranch.io")
    )
    columns = crd["spec"]["versions"][0]["additionalPrinterColumns"]
    # Text: a column of type date shows what is to come as invalid.
    (expires,) = [column for column in columns if column["name"] == "EXPIRES"]
    assert expires["type"] == "string" and expires["jsonPath"] == ".status.expirationTime"
