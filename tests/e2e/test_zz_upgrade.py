"""The upgrade from the last release, with its chart, CRDs and image, while branches run.

Its name makes it the last file to run: it installs the older release in place of the current one and upgrades it.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.e2e.cluster import (
    KUBECTL_TIMEOUT,
    NODES,
    RELEASE,
    SYSTEM,
    Cluster,
    Namespace,
    Project,
    eventually,
)
from tests.e2e.conftest import make_item

pytestmark = pytest.mark.calm


def delete_projects_of_tests(cluster: Cluster) -> None:
    """Delete the projects of the other tests, so that the older release meets nothing that a newer one wrote."""
    for item in json.loads(cluster.kubectl("get", "dbprojects", "-A", "-o", "json").out)["items"]:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        if namespace.startswith("e2e-"):
            delete = ("delete", "dbproject", name, "--ignore-not-found", KUBECTL_TIMEOUT)
            cluster.kubectl("-n", namespace, *delete)


def install_release(cluster: Cluster) -> None:
    """Replace the installed chart with that of the last release; its CRDs are applied, too."""
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--ignore-not-found", "--timeout", "5m")
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
    delete_projects_of_tests(cluster)
    install_release(cluster)
    shop = Project(other_team, "shop")
    shop.make()
    make_item(shop)
    shop.branch("older")
    shop.sql("update item set name = 'changed' where id = 1", "older")
    shop.use("older")
    pods = shop.pod_uids()
    cluster.install()
    cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", KUBECTL_TIMEOUT)
    other_team.wait_ready("dbproject", "shop")
    assert shop.pod_uids() == pods
    assert shop.sql("select name from item where id = 1") == "changed"
    assert shop.sql("select name from item where id = 1", "main") == "first"
    # The release made the user a superuser, and so it stays.
    assert (
        shop.sql("select current_user, rolsuper from pg_roles where rolname = current_user") == "postgres|t"
    )
    other_team.kubectl("wait", "--for=create", "secret/shop-superuser-conn", KUBECTL_TIMEOUT)
    assert other_team.secret("shop-superuser-conn") == other_team.secret("shop-conn")
    # What the release made is a source, a target of a switch, and can be stopped, resumed and deleted.
    shop.branch("newer", "older")
    assert shop.sql("select name from item where id = 1", "newer") == "changed"
    shop.use("newer")
    other_team.dbranch("-p", "shop", "stop", "older")
    other_team.dbranch("-p", "shop", "resume", "older")
    assert shop.sql("select name from item where id = 1", "older") == "changed"
    other_team.dbranch("-p", "shop", "delete", "older", "--yes")
    assert shop.sql("select name from item where id = 1") == "changed"
