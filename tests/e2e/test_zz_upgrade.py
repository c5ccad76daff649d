"""The upgrade from the last release, with its chart, CRDs and image, while branches run.

Its name makes it the last file to run: it installs the older release in place of the current one and upgrades it.
"""

from __future__ import annotations

import os

from tests.e2e.cluster import NODES, RELEASE, SYSTEM, Cluster, Namespace, Project, eventually
from tests.e2e.test_survival import pods_of


def install_release(cluster: Cluster) -> None:
    """Replace the installed chart with that of the last release; its CRDs are applied, too."""
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--ignore-not-found", "--timeout", "3m")
    agents = ("get", "pods", "-n", NODES, "-l", "app.kubernetes.io/component=agent", "-o", "name")
    eventually("no agent of the current version is left", lambda: not cluster.kubectl(*agents).text)
    repository, tag = os.environ["DBRANCH_RELEASE_IMAGE"].rsplit(":", 1)
    cluster.helm(
        *("install", RELEASE, os.environ["DBRANCH_RELEASE_CHART"], "--namespace", SYSTEM),
        *("--create-namespace", "--wait", "--timeout", "5m"),
        *("--set", f"image.repository={repository}", "--set", f"image.tag={tag}"),
    )


def test_an_upgrade_from_the_last_release_keeps_every_branch_running(
    cluster: Cluster, other_team: Namespace
) -> None:
    install_release(cluster)
    shop = Project(other_team, "shop")
    shop.make()
    shop.sql("create table item (id int primary key, name text); insert into item values (1, 'first')")
    shop.branch("older")
    shop.sql("update item set name = 'changed' where id = 1", "older")
    shop.use("older")
    pods = pods_of(shop)
    cluster.install()
    cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", "--timeout=180s")
    other_team.wait_ready("dbproject", "shop")
    assert pods_of(shop) == pods
    assert shop.sql("select name from item where id = 1") == "changed"
    assert shop.sql("select name from item where id = 1", "main") == "first"
    # What the release made is a source, a target of a switch, and can be stopped, resumed and deleted.
    shop.branch("newer", "older")
    assert shop.sql("select name from item where id = 1", "newer") == "changed"
    shop.use("newer")
    other_team.dbranch("-p", "shop", "stop", "older")
    other_team.dbranch("-p", "shop", "resume", "older")
    assert shop.sql("select name from item where id = 1", "older") == "changed"
    other_team.dbranch("-p", "shop", "delete", "older", "--yes")
    assert shop.sql("select name from item where id = 1") == "changed"
