"""`helm upgrade` and `helm uninstall` while branches run: no Postgres is restarted, no data is lost.

The file's name makes it run last: it uninstalls the release and installs it again.
"""

from __future__ import annotations

from tests.e2e.cluster import KUBECTL_TIMEOUT, NODES, RELEASE, SYSTEM, Cluster, Project, eventually


def upgrade(cluster: Cluster, **limits: int | str) -> None:
    """Upgrade to another pod template of both roles and a short resync period, unless that is so already.

    `limits`: as the chart's; without any, nothing is limited.
    """
    cluster.install(
        *("--set", "controller.podAnnotations.upgraded=yes", "--set", "agent.podAnnotations.upgraded=yes"),
        *("--set", "controller.resyncPeriod=3s"),
        *(part for limit, value in limits.items() for part in ("--set", f"limits.{limit}={value}")),
    )
    cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", KUBECTL_TIMEOUT)


def test_upgrade_restarts_no_postgres(shop: Project) -> None:
    shop.branch("upgraded")
    shop.team.cluster.footprint_at_rest()
    before = shop.pod_uids()
    upgrade(shop.team.cluster)
    assert shop.pod_uids() == before
    shop.branch("after-upgrade")
    assert shop.sql("select name from item where id = 1", "upgraded") == "first"
    shop.discard("upgraded", "after-upgrade")


def test_deleted_objects_are_created_again(shop: Project) -> None:
    team = shop.team
    upgrade(team.cluster)
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
    team.kubectl("rollout", "status", "deployment/shop-proxy", KUBECTL_TIMEOUT)
    team.wait_ready("dbproject", "shop")
    assert shop.sql("select name from item where id = 1") == "first"


def test_limits_hold_from_their_upgrade_on_until_they_are_raised(shop: Project) -> None:
    team = shop.team
    # Those that are being deleted count until they are gone.
    team.cluster.footprint_at_rest()
    shop.branch("before")
    existing = team.kubectl("get", "dbbranches", "-o", "name").text.split()
    before = shop.pod_uids()
    upgrade(team.cluster, branches=len(existing) + 1, proxyReplicas=1)
    more_proxies = ("patch", "dbproject", "shop", "--type=merge", "-p", '{"spec":{"proxy":{"replicas":2}}}')
    sentence = (
        "project shop asks for spec.proxy.replicas 2; limits.proxyReplicas of the dbranch chart allows 1 in "
        f"namespace {team.name}; a cluster administrator can raise it"
    )
    # A dry run: the API server knows a policy a little later than it has taken it.
    eventually(
        "the API server refuses what exceeds a limit",
        lambda: sentence in team.kubectl(*more_proxies, "--dry-run=server", check=False).err,
    )
    # The numbers are the controller's to count: the first has a place, the second waits for one.
    shop.branch("last")
    team.apply(shop.branch_manifest("excess"))
    waiting = team.wait_reason("dbbranch", "shop-excess", "Scheduled", "LimitExceeded")
    assert waiting["message"].startswith(
        "branch excess is not made: limits.branches of the dbranch chart allows "
    )
    assert not team.exists("service", "shop-excess")
    assert shop.sql("select name from item where id = 1", "before") == "first"
    upgrade(team.cluster)
    team.wait_ready("dbbranch", "shop-excess")
    assert shop.sql("select name from item where id = 1", "excess") == "first"
    assert {branch: shop.pod_uids()[branch] for branch in before} == before
    shop.discard("before", "last", "excess")


def test_values_that_violate_the_schema_are_rejected(shop: Project) -> None:
    cluster = shop.team.cluster
    rejected = cluster.helm(
        *("template", RELEASE, str(cluster.root / "helm" / "dbranch"), "--set", "controller.replicas=many"),
        check=False,
    )
    assert rejected.code != 0 and "replicas" in rejected.err


def test_uninstall_keeps_the_data_and_install_serves_it_again(shop: Project) -> None:
    cluster = shop.team.cluster
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "5m")
    assert cluster.kubectl("get", "crd", "dbprojects.dbranch.io", check=False).code == 0
    assert shop.team.exists("dbbranch", "shop-main")
    assert shop.sql("select name from item where id = 1") == "first"
    cluster.install()
    eventually(
        "a branch can be created again",
        lambda: shop.team.apply(shop.branch_manifest("back"), check=False).code == 0,
    )
    shop.team.wait_ready("dbbranch", "shop-back")
    assert shop.sql("select name from item where id = 1", "back") == "first"
