"""`helm upgrade` and `helm uninstall` beside living branches: no Postgres is touched, nothing is lost.

Its name makes it the last of all: it takes the release away and brings it back.
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


def test_what_somebody_deleted_is_made_again(shop: Project) -> None:
    """Behind the upgrade, which made the look at it frequent."""
    team = shop.team
    made = (
        ("service", "shop"),
        ("service", "shop-main"),
        ("deployment", "shop-proxy"),
        ("secret", "shop-main-conn"),
    )
    before = {what: team.get(*what)["metadata"]["uid"] for what in made}
    for what in made:
        team.kubectl("delete", *what)
    for what, uid in before.items():
        eventually(f"{what} is back", lambda w=what: team.exists(*w))
        assert team.get(*what)["metadata"]["uid"] != uid
    team.wait_ready("dbproject", "shop")
    assert shop.sql("select name from item where id = 1") == "first"


def test_values_that_break_the_schema_are_refused(shop: Project) -> None:
    cluster = shop.team.cluster
    refused = cluster.helm(
        *("template", RELEASE, str(cluster.root / "helm" / "dbranch"), "--set", "controller.replicas=many"),
        check=False,
    )
    assert refused.code != 0 and "replicas" in refused.err


def test_uninstall_keeps_the_data_and_install_finds_it(shop: Project) -> None:
    cluster = shop.team.cluster
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "2m")
    assert cluster.kubectl("get", "crd", "dbprojects.dbranch.io", check=False).code == 0
    assert shop.team.exists("dbbranch", "shop-main")
    assert shop.team.psql(shop.uri(), "select name from item where id = 1").text == "first"
    cluster.install()
    eventually("a branch can be made again", lambda: shop.team.apply(shop.branch_manifest("back")).code == 0)
    shop.team.wait_ready("dbbranch", "shop-back")
    assert shop.sql("select name from item where id = 1", "back") == "first"
