"""Two projects of the same name in two namespaces; a namespace labelled Pod Security `restricted`."""

from __future__ import annotations

from tests.e2e.cluster import POSTGRES_IMAGE, Namespace, Project


def test_same_name_in_two_namespaces_at_once(shop: Project, other_team: Namespace) -> None:
    twin = Project(other_team, "shop")
    twin.make()
    twin.sql("create table twin_only (n int)")
    assert shop.sql("select to_regclass('twin_only') is null", "main") == "t"
    assert twin.sql("select to_regclass('item') is null", "main") == "t"
    assert twin.team.secret("shop-conn")["password"] != shop.team.secret("shop-conn")["password"]
    for project in (shop, twin):
        project.branch("pair")
    assert shop.sql("select to_regclass('item') is not null", "pair") == "t"
    assert twin.sql("select to_regclass('twin_only') is not null", "pair") == "t"


def test_one_projects_password_is_rejected_by_another(shop: Project, other_team: Namespace) -> None:
    twin = Project(other_team, "shop")
    twin.make()
    foreign = shop.uri().replace(f"shop.{shop.team.name}.svc", f"shop.{other_team.name}.svc")
    rejected = other_team.psql(foreign, "select 1", check=False)
    assert rejected.code == 2 and "password authentication failed" in rejected.err


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
    assert given.sql("select current_user, current_database()") == "postgres|dbranch"
