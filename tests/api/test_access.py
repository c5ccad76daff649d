"""What the chart's roles for people allow: the table of docs/access.md, asked of the API server."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from tests.api.test_network_policies import rendered
from tests.api.test_policies import Api, Shop, _repeat, admin, shop, team

from dbranch.api import names
from dbranch.kube.client import branch_path, path_of

__all__ = ["admin", "shop", "team"]

Json = dict[str, Any]
RBAC = "rbac.authorization.k8s.io/v1"
ROLES = ("dbranch-view", "dbranch-developer", "dbranch-admin")
_WRITES = ("create", "update", "patch", "delete", "deletecollection")
_READS = ("get", "list", "watch")
# Every verb that somebody asks for, by resource.
VERBS: dict[str, tuple[str, ...]] = {
    "dbprojects": (*_READS, *_WRITES, "set-policy"),
    "dbbranches": (*_READS, *_WRITES, "restore", "copy-unrestricted"),
    "dbsnapshots": (*_READS, *_WRITES),
    "dbrestores": (*_READS, *_WRITES),
    "dbprojects/status": (*_READS, *_WRITES),
    "dbbranches/status": (*_READS, *_WRITES),
    "dbsnapshots/status": (*_READS, *_WRITES),
    "dbrestores/status": (*_READS, *_WRITES),
}


def documented() -> dict[tuple[str, str, str], bool]:
    """Return the first table of docs/access.md: (role, resource, verb) -> whether it is allowed."""
    lines = (Path(__file__).parents[2] / "docs" / "access.md").read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("| resource | verbs |"))
    of_table = itertools.takewhile(lambda line: line.startswith("|"), lines[begin:])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in of_table]
    (_, _, *roles), *body = [row for row in rows if not set(row[0]) <= {"-"}]
    assert tuple(roles) == ROLES
    table: dict[tuple[str, str, str], bool] = {}
    for resource, verbs, *answers in body:
        for verb, (role, answer) in itertools.product(verbs.split(", "), zip(roles, answers, strict=True)):
            key = role, resource.strip("`"), verb
            assert key not in table and answer in ("yes", "no"), key
            table[key] = answer == "yes"
    return table


def is_allowed(api: Api, user: str, namespace: str, resource: str, verb: str) -> bool:
    """Ask the API server whether the user may do this in the namespace."""
    plural, _, subresource = resource.partition("/")
    attributes = {
        "namespace": namespace,
        "verb": verb,
        "group": names.GROUP,
        "resource": plural,
        "subresource": subresource,
    }
    path = path_of("authorization.k8s.io/v1", "subjectaccessreviews")
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    return bool(api.allowed("POST", path, body)["status"]["allowed"])


def bind(admin: Api, team: str, cluster_role: str) -> str:
    """Give a user the cluster role in the namespace; return the user's name once the API server knows it."""
    user = f"{team}-{cluster_role}"
    binding = {
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster_role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    admin.allowed("POST", path_of(RBAC, "rolebindings", team), binding)
    _repeat(
        lambda: (200, {"allowed": is_allowed(admin, user, team, "dbprojects", "list")}),
        lambda _, answer: answer["allowed"],
    )
    return user


def test_the_table_has_every_verb_of_every_resource() -> None:
    expected = {(role, resource, verb) for role in ROLES for resource in VERBS for verb in VERBS[resource]}
    assert set(documented()) == expected


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_what_the_table_says(admin: Api, team: str, role: str) -> None:
    user = bind(admin, team, role)
    table = {key: allowed for key, allowed in documented().items() if key[0] == role}
    answers = {key: is_allowed(admin, user, team, key[1], key[2]) for key in table}
    assert answers == table
    # A role binding holds in its namespace only, and none of the roles gives anything else.
    assert not any(is_allowed(admin, user, "default", resource, "list") for resource in VERBS)
    person = Api(user)
    for plural in ("secrets", "pods", "configmaps"):
        assert "is forbidden" in person.rejected("GET", path_of("v1", plural, team))


@pytest.mark.parametrize(
    ("cluster_role", "verbs"), [("view", set(_READS)), ("edit", set(_READS)), ("admin", set(_READS))]
)
def test_the_clusters_own_roles_may_only_look(
    admin: Api, team: str, cluster_role: str, verbs: set[str]
) -> None:
    user = bind(admin, team, cluster_role)
    for resource, all_verbs in VERBS.items():
        allowed = {verb for verb in all_verbs if is_allowed(admin, user, team, resource, verb)}
        assert allowed == verbs, resource


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), {"dbranch-view": {"view"}}),
        (("view=false",), {}),
        (("developer=true",), {"dbranch-view": {"view"}, "dbranch-developer": {"edit", "admin"}}),
        (("admin=true",), {"dbranch-view": {"view"}, "dbranch-admin": {"admin"}}),
    ],
)
def test_what_is_added_to_the_clusters_roles_is_chosen(
    values: tuple[str, ...], expected: dict[str, set[str]]
) -> None:
    options = [part for value in values for part in ("--set", f"rbac.aggregate.{value}")]
    roles = [body for body in rendered(*options) if body["kind"] == "ClusterRole"]
    prefix = re.compile("^rbac.authorization.k8s.io/aggregate-to-")
    added = {
        role["metadata"]["name"]: {
            prefix.sub("", key) for key in role["metadata"]["labels"] if prefix.match(key)
        }
        for role in roles
    }
    assert {name: to for name, to in added.items() if to} == expected


def test_a_developer_switches_and_branches_and_makes_no_project(admin: Api, shop: Shop) -> None:
    developer = Api(bind(admin, shop.team, "dbranch-developer"))
    developer.allowed("PATCH", shop.path, {"spec": {"activeBranch": "feature-x"}}, dry=True)
    developer.allowed("DELETE", branch_path(shop.team, "shop-feature-x"), dry=True)
    kind = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND}
    other = {**kind, "metadata": {"name": "other"}, "spec": {}}
    projects = path_of(names.API_VERSION, names.PROJECTS, shop.team)
    assert "is forbidden" in developer.rejected("POST", projects, other)
    assert "is forbidden" in developer.rejected("DELETE", shop.path)
    Api(bind(admin, shop.team, "dbranch-admin")).allowed("POST", projects, other, dry=True)


def test_a_password_is_taken_only_from_a_secret_that_one_may_read(admin: Api, team: str) -> None:
    """The controller reads it for whoever names it, and an image of his own gets a verifier of it."""
    user = bind(admin, team, "dbranch-admin")
    person = Api(user)
    projects = path_of(names.API_VERSION, names.PROJECTS, team)
    kind = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND}

    def postgres(name: str, secret: Json) -> Json:
        return {**kind, "metadata": {"name": name}, "spec": {"postgres": {"passwordSecret": secret}}}

    person.allowed("POST", projects, {**kind, "metadata": {"name": "plain"}, "spec": {}})
    text = f"you may not read Secret theirs in namespace {team}"
    assert text in person.rejected("POST", projects, postgres("shop", {"name": "theirs"}))
    change: Json = {"spec": {"postgres": {"passwordSecret": {"name": "theirs"}}}}
    assert text in person.rejected("PATCH", f"{projects}/plain", change)
    # One that is there already concerns only who changes it.
    admin.allowed("POST", projects, postgres("shop", {"name": "theirs"}))
    person.allowed("PATCH", f"{projects}/shop", {"spec": {"activeBranch": "x"}}, dry=True)
    person.allowed("PATCH", f"{projects}/shop", {"spec": {"postgres": {"passwordSecret": None}}}, dry=True)
    another_key: Json = {"spec": {"postgres": {"passwordSecret": {"key": "token"}}}}
    assert text in person.rejected("PATCH", f"{projects}/shop", another_key)
    # The right to that one Secret is enough.
    role = {
        "apiVersion": RBAC,
        "kind": "Role",
        "metadata": {"name": "mine"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"], "verbs": ["get"]}],
    }
    binding = {
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "metadata": {"name": "mine"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "mine"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    admin.allowed("POST", path_of(RBAC, "roles", team), role)
    admin.allowed("POST", path_of(RBAC, "rolebindings", team), binding)
    person.eventually_allowed("POST", projects, postgres("new", {"name": "mine"}), dry=True)
    assert text in person.rejected("POST", projects, postgres("new", {"name": "theirs"}))
