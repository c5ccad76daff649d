"""The upgrade from the last release, with its chart, CRDs and image, while branches run; its parts beside new ones.

Its name makes it the last file to run: it installs the older release in place of the current one and upgrades it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dbranch.api import names
from tests.e2e.cluster import (
    KUBECTL_TIMEOUT,
    NODES,
    RELEASE,
    SERVER_IMAGE,
    SYSTEM,
    Cluster,
    Namespace,
    Project,
    eventually,
)
from tests.e2e.conftest import make_item

pytestmark = pytest.mark.calm

RELEASE_IMAGE = os.environ["DBRANCH_RELEASE_IMAGE"]


def delete_projects_of_tests(cluster: Cluster) -> None:
    """Delete the projects of the other tests, so that the older release meets nothing that a newer one wrote."""
    for item in json.loads(cluster.kubectl("get", "dbprojects", "-A", "-o", "json").out)["items"]:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        if namespace.startswith("e2e-"):
            keep_nothing = ("--type=merge", "-p", json.dumps({"spec": {"undo": {"keep": "0s"}}}))
            cluster.kubectl("-n", namespace, "patch", "dbproject", name, *keep_nothing, check=False)
            delete = ("delete", "dbproject", name, "--ignore-not-found", KUBECTL_TIMEOUT)
            cluster.kubectl("-n", namespace, *delete)


def install_release(cluster: Cluster) -> None:
    """Replace the installed chart with that of the last release; its CRDs are applied, too."""
    cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--ignore-not-found", "--timeout", "5m")
    agents = ("get", "pods", "-n", NODES, "-l", "app.kubernetes.io/component=agent", "-o", "name")
    eventually("no agent of the current version is left", lambda: not cluster.kubectl(*agents).text)
    repository, tag = RELEASE_IMAGE.rsplit(":", 1)
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
    # And a branch of which a snapshot is taken.
    other_team.dbranch("-p", "shop", "snapshot", "create", "of-older", "-b", "older")
    other_team.dbranch("-p", "shop", "create", "of-snapshot", "--from-snapshot", "of-older")
    assert shop.sql("select name from item where id = 1", "of-snapshot") == "changed"
    other_team.dbranch("-p", "shop", "delete", "older", "of-snapshot", "--yes")
    other_team.dbranch("-p", "shop", "snapshot", "delete", "of-older", "--yes")
    assert shop.sql("select name from item where id = 1") == "changed"


def set_images(cluster: Cluster, controller: str, others: str) -> None:
    """Run the controller with one image, agents and (later) proxies with another, under the installed chart."""
    proxies = {"name": "DBRANCH_SERVER_IMAGE", "value": others}
    for namespace, workload, container in (
        (
            SYSTEM,
            "deployment/dbranch-controller",
            {"name": "controller", "image": controller, "env": [proxies]},
        ),
        (NODES, "daemonset/dbranch-agent", {"name": "agent", "image": others}),
    ):
        patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
        cluster.kubectl("patch", "-n", namespace, workload, "-p", json.dumps(patch))
    for namespace, workload in (
        (SYSTEM, "deployment/dbranch-controller"),
        (NODES, "daemonset/dbranch-agent"),
    ):
        cluster.kubectl("rollout", "status", "-n", namespace, workload, KUBECTL_TIMEOUT)


@contextmanager
def older_agents_may_read_secrets(cluster: Cluster) -> Iterator[None]:
    """Give agents the right that they have under the last release's chart, as before an upgrade."""
    name, account = "agents-of-the-last-release", f"--serviceaccount={NODES}:dbranch-agent"
    cluster.kubectl("create", "role", name, "-n", NODES, "--verb=get", "--resource=secrets")
    cluster.kubectl("create", "rolebinding", name, "-n", NODES, f"--role={name}", account)
    try:
        yield
    finally:
        cluster.kubectl("delete", "role,rolebinding", name, "-n", NODES)


def test_parts_of_the_last_release_work_beside_those_of_this_one(
    cluster: Cluster, other_team: Namespace
) -> None:
    """As in an upgrade, whose pods are replaced one after the other. Its CRDs and policies come first."""
    delete_projects_of_tests(cluster)
    mixed, late = Project(other_team, "mixed"), Project(other_team, "late")
    set_images(cluster, controller=SERVER_IMAGE, others=RELEASE_IMAGE)
    with older_agents_may_read_secrets(cluster):
        mixed.make()
    make_item(mixed)
    use_a_branch(mixed, RELEASE_IMAGE)
    # It may read no Secret any more: a new database waits for the agent of this release.
    other_team.apply(late.manifest())
    other_team.wait_reason("dbproject", "late", "Ready", "WaitingForSlot")
    # An agent that would misread it is asked for no snapshot.
    spec = {"project": "mixed", "branch": "main"}
    kind = {"apiVersion": "dbranch.io/v1alpha1", "kind": "DBSnapshot"}
    other_team.apply({**kind, "metadata": {"name": "mixed-early"}, "spec": spec})
    other_team.wait_reason("dbsnapshot", "mixed-early", "Ready", "AgentTooOld")
    assert "nodeName" not in other_team.get("dbsnapshot", "mixed-early")["status"]
    other_team.kubectl("delete", "dbsnapshot", "mixed-early", KUBECTL_TIMEOUT)
    # An agent that waits for the controller's finalizer to go gets that on its branches.
    assert finalizers_of(mixed, "main") == {names.CONTROLLER_FINALIZER, names.AGENT_FINALIZER}
    set_images(cluster, controller=SERVER_IMAGE, others=SERVER_IMAGE)
    other_team.wait_ready("dbproject", "late")
    mixed.branch("kept")
    assert finalizers_of(mixed, "kept") == {names.AGENT_FINALIZER}
    # A roll-back of the controller alone, which knows no status.release.
    set_images(cluster, controller=RELEASE_IMAGE, others=SERVER_IMAGE)
    use_a_branch(mixed, SERVER_IMAGE)
    eventually(
        "the older controller holds every branch",
        lambda: names.CONTROLLER_FINALIZER in finalizers_of(mixed, "kept"),
    )
    mixed.delete("kept")
    set_images(cluster, controller=SERVER_IMAGE, others=SERVER_IMAGE)
    mixed.delete()


def finalizers_of(project: Project, branch: str) -> set[str]:
    body = project.team.get("dbbranch", f"{project.name}-{branch}")
    return set(body["metadata"].get("finalizers") or ())


def use_a_branch(project: Project, proxy_image: str) -> None:
    """Make a branch, switch to it, stop and resume it, switch back and delete it; proxies run with `proxy_image`."""
    team, name = project.team, f"{project.name}-proxy"

    def image() -> str:
        containers = team.get("deployment", name)["spec"]["template"]["spec"]["containers"]
        return str(containers[0]["image"])

    eventually(f"the proxies are to run with {proxy_image}", lambda: image() == proxy_image)
    team.kubectl("rollout", "status", f"deployment/{name}", KUBECTL_TIMEOUT)
    project.branch("copy")
    project.sql("update item set name = 'changed' where id = 1", "copy")
    project.use("copy")
    assert project.sql("select name from item where id = 1") == "changed"
    team.dbranch("-p", project.name, "stop", "copy")
    team.dbranch("-p", project.name, "resume", "copy")
    assert project.sql("select name from item where id = 1") == "changed"
    project.use("main")
    assert project.sql("select name from item where id = 1") == "first"
    project.delete("copy")
