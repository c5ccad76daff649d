"""Pull secrets: of the project's own namespace, copied for it alone, and gone with it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tests.factories import NODES_NAMESPACE, project
from tests.unit.controller.rig import BRANCHES, PROJECTS, RELEASE, SECRETS, Rig, conditions_of, message_of

from dbranch.api import names
from dbranch.controller.sweep import Sweeper
from dbranch.kube.client import Cluster, path_of

DOCKER = "kubernetes.io/dockerconfigjson"
COPIES = path_of("v1", "secrets", NODES_NAMESPACE)
PRIVATE = {"postgres": {"imagePullSecrets": [{"name": "registry"}]}}


@pytest.fixture
def rig() -> Rig:
    return Rig()


def pull_secret(rig: Rig, name: str = "registry", value: str = "e30=", secret_type: str = DOCKER) -> None:
    data = {".dockerconfigjson": value, "other": "eA=="}
    rig.api.put(SECRETS, {"kind": "Secret", "metadata": {"name": name}, "type": secret_type, "data": data})


def copies(rig: Rig) -> dict[str, dict[str, Any]]:
    """Return the copies of pull secrets in the nodes' namespace by name."""
    bodies = rig.api.find(COPIES, labels=names.LABEL_PULL_SECRET)
    return {body["metadata"]["name"]: body for body in bodies}


def sweep(rig: Rig) -> None:
    Sweeper(cast(Cluster, rig.api), RELEASE, rig.owned).sweep_pull_secrets()


def copy_name(rig: Rig, name: str = "registry") -> str:
    return names.pull_secret_name(rig.project()["metadata"]["uid"], name)


def test_a_pull_secret_is_copied_for_its_project_before_that_is_bound(rig: Rig) -> None:
    pull_secret(rig)
    rig.put(project().spec(**PRIVATE))
    writes = rig.writes_of(rig.reconcile_project)
    (copied,) = copies(rig).values()
    assert copied["metadata"]["name"] == copy_name(rig)
    assert (copied["type"], copied["data"]) == (DOCKER, {".dockerconfigjson": "e30="})
    # The pool's node is known, so an agent makes pods, only behind it.
    assert writes[-2:] == [f"create secrets/{copy_name(rig)}", "merge dbprojects/shop/status"]
    # Nothing is read or written again, but at a resync, which sees another value.
    rig.run()
    assert rig.writes_of(rig.run) == []
    rig.api.merge(f"{SECRETS}/registry", {"data": {".dockerconfigjson": "e30K"}})
    rig.reconcile_project(bypass_cache=True)
    assert copies(rig)[copy_name(rig)]["data"] == {".dockerconfigjson": "e30K"}


def test_a_secret_of_another_kind_is_not_copied_and_one_that_is_missing_is_named(rig: Rig) -> None:
    """Whoever may not read a Secret must not get it copied to where an image of his own might."""
    rig.put(project().spec(**PRIVATE))
    rig.run()
    assert conditions_of(rig.project())["Routed"] == "PullSecretNotFound"
    assert 'pull secret "registry" does not exist in' in message_of(rig.project(), "Routed")
    pull_secret(rig, secret_type="Opaque")
    rig.run()
    assert copies(rig) == {}
    assert "none for pulling images" in message_of(rig.project(), "Routed")
    rig.api.merge(f"{SECRETS}/registry", {"type": DOCKER})
    rig.run()
    assert list(copies(rig)) == [copy_name(rig)]
    assert conditions_of(rig.project())["Routed"] != "PullSecretNotFound"


def test_copies_that_no_project_names_are_deleted(rig: Rig) -> None:
    pull_secret(rig)
    pull_secret(rig, "second")
    rig.put(project().spec(postgres={"imagePullSecrets": [{"name": "registry"}, {"name": "second"}]}))
    rig.run()
    assert len(copies(rig)) == 2
    assert rig.writes_of(lambda: sweep(rig)) == []
    rig.change_project(**PRIVATE)
    rig.run()
    sweep(rig)
    assert list(copies(rig)) == [copy_name(rig)]


def test_the_copies_go_with_their_project(rig: Rig) -> None:
    pull_secret(rig)
    rig.put(project().spec(**PRIVATE))
    rig.reconcile_project()
    assert copies(rig)
    for path in (f"{BRANCHES}/shop-main", f"{PROJECTS}/shop"):
        rig.api.delete(path)
    assert rig.remove_project()
    assert copies(rig) == {}
