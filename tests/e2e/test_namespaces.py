"""Two projects of the same name in two namespaces; a namespace labelled Pod Security `restricted`."""

from __future__ import annotations

import pytest

from tests.e2e.cluster import POSTGRES_IMAGE, Namespace, Project


@pytest.fixture(scope="module")
def twin(other_team: Namespace) -> Project:
    """A Ready project named as `shop`, in another namespace; its root branch holds the table `twin_only`."""
    twin = Project(other_team, "shop")
    twin.make()
    twin.sql("create table twin_only (n int)")
    return twin


def test_same_name_in_two_namespaces_at_once(shop: Project, twin: Project) -> None:
    assert shop.sql("select to_regclass('twin_only') is null", "main") == "t"
    assert twin.sql("select to_regclass('item') is null", "main") == "t"
    assert twin.team.secret("shop-conn")["password"] != shop.team.secret("shop-conn")["password"]
    for project in (shop, twin):
        project.team.apply(project.branch_manifest("pair"))
    for project in (shop, twin):
        project.wait_ready("pair")
    assert shop.sql("select to_regclass('item') is not null", "pair") == "t"
    assert twin.sql("select to_regclass('twin_only') is not null", "pair") == "t"
    shop.discard("pair")


def test_one_projects_password_is_rejected_by_another(shop: Project, twin: Project) -> None:
    foreign = shop.uri().replace(f"shop.{shop.team.name}.svc", f"shop.{twin.team.name}.svc")
    assert "password authentication failed" in twin.team.rejection(foreign)


def test_a_restricted_namespace_holds_nothing_privileged(shop: Project) -> None:
    labels = shop.team.get("namespace", shop.team.name)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    shop.team.wait_ready("dbproject", "shop")
    host_paths = shop.team.kubectl(
        *("get", "pods", "-o", "jsonpath={.items[*].spec.volumes[*].hostPath.path}")
    ).text
    assert host_paths == ""


def test_the_password_of_the_users_own_secret(team: Namespace) -> None:
    given = Project(team, "given")
    team.apply(given.manifest(postgres={"passwordSecret": {"name": "given-owner"}, "image": POSTGRES_IMAGE}))
    missing = team.wait_reason("dbproject", "given", "Routed", "SecretNotFound")
    assert "given-owner" in missing["message"]
    team.kubectl(
        "create", "secret", "generic", "given-owner", "--from-literal=password=s3cret/with:odd@signs"
    )
    team.wait_ready("dbproject", "given")
    assert team.secret("given-conn")["password"] == "s3cret/with:odd@signs"
    assert given.sql("select current_user, current_database()") == "app|dbranch"
    given.discard()
