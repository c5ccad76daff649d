"""`helm upgrade` and `helm uninstall` while branches run: no Postgres is restarted, no data is lost.

The file's name makes it run last: it uninstalls the release and installs it again.
"""

from __future__ import annotations

from tests.e2e.cluster import NODES, RELEASE, SYSTEM, Project, eventually
from tests.e2e.test_survival import pods_of


def test_upgrade_restarts_no_postgres(shop: Project) -> None:
    shop.branch("upgraded")
    before = pods_of(shop)
    shop.team.cluster.install(
        *("--set", "controller.podAnnotations.upgraded=yes", "--set", "agent.podAnnotations.upgraded=yes"),
        *("--set", "controller.resyncPeriod=3s"),
    )
    shop.team.cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", "--timeout=120s")
    assert pods_of(shop) == before
    shop.branch("after-upgrade")
    assert shop.sql("select name from item where id = 1", "upgraded") == "first"


def test_deleted_objects_are_created_again(shop: Project) -> None:
    """Runs after the upgrade, which set a short resync period."""
    team = shop.team
    owned = (
        ("service", "shop"),
        ("service", "shop-main"),
        ("deployment", "shop-proxy"),
        ("secret", "shop-main-conn"),
    )
    before = {object_: team.get(*object_)["metadata"]["uid"] for object_ in owned}
    for object_ in owned:
        team.kubectl("delete", *object_)
    for object_, uid in before.items():
        eventually(f"{object_} is created again", lambda o=object_: team.exists(*o))
        assert team.get(*object_)["metadata"]["uid"] != uid
    team.wait_ready("dbproject", "shop")
    assert shop.sql("select name from item where id = 1") == "first"


def test_values_that_violate_the_schema_are_rejected(shop: Project) -> None:
    cluster = shop.team.cluster
    rejected = cluster.helm(
        *("template", RELEASE, str(cluster.root / "helm" / "dbranch"), "--set", "controller.replicas=many"),
        check=False,
    )
    assert rejected.code != 0 and "replicas" in rejected.err


def test_uninstall_keeps_the_data_and_install_serves_it_again(shop: Project) -> None:
    cluster = shop.team.cluster
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "2m")
    assert cluster.kubectl("get", "crd", "dbprojects.dbranch.io", check=False).code == 0
    assert shop.team.exists("dbbranch", "shop-main")
    assert shop.team.psql(shop.uri(), "select name from item where id = 1").text == "first"
    cluster.install()
    eventually(
        "a branch can be created again", lambda: shop.team.apply(shop.branch_manifest("back")).code == 0
    )
    shop.team.wait_ready("dbbranch", "shop-back")
    assert shop.sql("select name from item where id = 1", "back") == "first"
