"""Bad input is rejected with a clear message, and nothing is lost."""

from __future__ import annotations

import os
from typing import Any

import pytest
import yaml

from tests.e2e.cluster import POSTGRES_IMAGE, Namespace, Project, eventually, run


def rejection_of(team: Namespace, *objects: dict[str, Any]) -> str:
    """Apply objects that the API server must reject; return its message."""
    outcome = team.apply(*objects, check=False)
    assert outcome.code != 0, outcome.output
    return outcome.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shop-Feature", "lowercase"),
        ("shop-a_b", "lowercase"),
        ("other", "<project>-<branch>"),
        ("shop-" + "x" * 60, "63"),
    ],
)
def test_invalid_branch_names(shop: Project, name: str, message: str) -> None:
    manifest = shop.branch_manifest("x")
    manifest["metadata"]["name"] = name
    assert message.lower() in rejection_of(shop.team, manifest).lower()


def test_a_project_name_that_is_too_long(team: Namespace) -> None:
    assert "30" in rejection_of(team, Project(team, "p" * 31).manifest())


def test_a_branch_without_a_source_that_is_not_the_root(shop: Project) -> None:
    assert "source" in rejection_of(shop.team, shop.branch_manifest("rootless", None))


def test_a_forced_parameter(shop: Project) -> None:
    error = rejection_of(shop.team, shop.branch_manifest("unsafe", postgres={"parameters": {"fsync": "off"}}))
    assert "fsync" in error


def test_a_change_of_an_immutable_field(shop: Project) -> None:
    shop.branch("fixed")
    for patch in ('{"spec":{"source":"fixed-2"}}', '{"spec":{"project":"elsewhere"}}'):
        outcome = shop.team.kubectl(
            "patch", "dbbranch", "shop-fixed", "--type=merge", "-p", patch, check=False
        )
        assert outcome.code != 0 and ("immutable" in outcome.err or "cannot" in outcome.err), outcome.err
    smaller = shop.team.kubectl(
        "patch",
        "dbproject",
        "shop",
        "--type=merge",
        "-p",
        '{"spec":{"storage":{"size":"512Mi"}}}',
        check=False,
    )
    assert smaller.code != 0 and "smaller" in smaller.err, smaller.err
    shop.discard("fixed")


def test_a_branch_waits_for_a_missing_source_and_becomes_ready_with_it(shop: Project) -> None:
    team = shop.team
    team.apply(shop.branch_manifest("hopeful", "mian"))
    condition = team.wait_reason("dbbranch", "shop-hopeful", "Scheduled", "SourceNotFound")
    assert 'source "mian" does not exist in project shop' in condition["message"]
    assert "main" in condition["message"].split(";")[-1]
    assert team.condition("dbbranch", "shop-hopeful", "Stalled") == {}
    team.apply(shop.branch_manifest("mian"))
    team.wait_ready("dbbranch", "shop-hopeful")
    shop.discard("hopeful", "mian")


def test_a_branch_of_another_project_is_no_source(shop: Project, team: Namespace) -> None:
    other = Project(team, "depot")
    team.apply(other.branch_manifest("x", "shop-main"))
    condition = team.wait_reason("dbbranch", "depot-x", "Scheduled", "ProjectNotFound")
    assert "depot" in condition["message"]
    other.make()
    condition = team.wait_reason("dbbranch", "depot-x", "Scheduled", "SourceNotFound")
    assert "shop-main" in condition["message"]
    other.discard()


def test_a_missing_active_branch_leaves_the_route_as_it_is(shop: Project) -> None:
    team, uri = shop.team, shop.uri()
    shop.use("main")
    team.kubectl("patch", "dbproject", "shop", "--type=merge", "-p", '{"spec":{"activeBranch":"nowhere"}}')
    condition = team.wait_reason("dbproject", "shop", "Routed", "BranchNotFound")
    assert "nowhere" in condition["message"]
    assert team.get("dbproject", "shop")["status"]["route"]["branch"] == "main"
    assert team.sql(uri, "select name from item where id = 1") == "first"
    team.kubectl("patch", "dbproject", "shop", "--type=merge", "-p", '{"spec":{"activeBranch":"main"}}')
    team.wait_ready("dbproject", "shop")


def test_an_image_that_does_not_exist(team: Namespace) -> None:
    wrong = Project(team, "wrong")
    team.apply(wrong.manifest(postgres={"image": "dbranch-postgres:no-such-tag"}))
    condition = team.wait_reason("dbproject", "wrong", "Ready", "ImagePullFailed")
    assert "dbranch-postgres:no-such-tag" in condition["message"]
    team.kubectl(
        "patch",
        "dbproject",
        "wrong",
        "--type=merge",
        "-p",
        f'{{"spec":{{"postgres":{{"image":"{POSTGRES_IMAGE}"}}}}}}',
    )
    team.wait_ready("dbproject", "wrong")
    assert wrong.sql("select 1") == "1"
    wrong.discard()


def test_deletion_of_the_active_and_the_root_branch_is_rejected_at_once(shop: Project) -> None:
    shop.branch("standing")
    shop.use("standing")
    for branch, reason in (("standing", "active"), ("main", "root")):
        await_deletion_refused(shop, branch)
        by_kubectl = shop.team.kubectl("delete", "dbbranch", f"shop-{branch}", "--wait=false", check=False)
        assert by_kubectl.code != 0 and reason in by_kubectl.err, by_kubectl.err
        by_cli = shop.team.dbranch("-p", "shop", "delete", branch, "--yes", check=False)
        assert by_cli.code == 6 and reason in by_cli.err, by_cli.output
        assert "deletionTimestamp" not in shop.team.get("dbbranch", f"shop-{branch}")["metadata"]
    shop.use("main")
    shop.delete("standing")


def await_deletion_refused(project: Project, branch: str) -> None:
    """Wait until the API server's cache, from which the policy reads the project, has what was written last."""
    dry_run = ("delete", "dbbranch", f"{project.name}-{branch}", "--dry-run=server")
    eventually("the deletion is refused", lambda: project.team.kubectl(*dry_run, check=False).code != 0)


def test_deletion_of_a_protected_branch_is_rejected(shop: Project) -> None:
    shop.branch("precious", protection="Enabled")
    outcome = shop.team.kubectl("delete", "dbbranch", "shop-precious", "--wait=false", check=False)
    assert outcome.code != 0 and "protect" in outcome.err
    unprotect = '{"spec":{"protection":"Disabled"}}'
    shop.team.kubectl("patch", "dbbranch", "shop-precious", "--type=merge", "-p", unprotect)
    shop.discard("precious")


def test_a_service_that_dbranch_does_not_own_is_left_alone(shop: Project) -> None:
    team = shop.team
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shop-taken"},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "theirs"}},
    }
    team.apply(foreign)
    team.apply(shop.branch_manifest("taken"))
    condition = team.wait_reason("dbbranch", "shop-taken", "Ready", "NameTaken")
    assert "shop-taken" in condition["message"]
    team.wait_stalled("dbbranch", "shop-taken")
    assert team.get("service", "shop-taken")["spec"]["ports"][0]["port"] == 80
    team.kubectl("delete", "service", "shop-taken")
    team.wait_ready("dbbranch", "shop-taken")
    shop.discard("taken")


def test_cli_usage_errors(shop: Project) -> None:
    unknown = shop.team.dbranch("-p", "shop", "craete", "x", check=False)
    assert unknown.code == 2 and "create" in unknown.err
    invalid = shop.team.dbranch("-p", "shop", "create", "feature/X", check=False)
    assert invalid.code == 2 and "feature-x" in invalid.err
    absent = shop.team.dbranch("-p", "shop", "show", "nowhere", check=False)
    assert absent.code == 3 and "nowhere" in absent.err
    assert shop.team.dbranch("-p", "nosuch", "list", check=False).code == 3
    waiting = shop.team.dbranch(
        "-p", "shop", "create", "waits", "--source", "nowhere", "--timeout", "3s", check=False
    )
    assert waiting.code in (3, 5) and "nowhere" in waiting.err


def test_cli_without_a_cluster(tmp_path: Any) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "nowhere",
        "clusters": [{"name": "nowhere", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "nobody", "user": {"token": "x"}}],
        "contexts": [{"name": "nowhere", "context": {"cluster": "nowhere", "user": "nobody"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    outcome = run(["dbranch", "--kubeconfig", str(path), "-p", "x", "list"], check=False, cwd="/")
    assert outcome.code == 1
    assert "127.0.0.1:9" in outcome.err and "Traceback" not in outcome.output


def test_cli_without_permission(shop: Project, tmp_path: Any) -> None:
    shop.team.kubectl("create", "serviceaccount", "nobody")
    token = shop.team.kubectl("create", "token", "nobody").text
    config = yaml.safe_load(shop.team.cluster.kubectl("config", "view", "--raw", "--minify", "--flatten").out)
    config["users"][0]["user"] = {"token": token}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    outcome = run(
        ["dbranch", "--kubeconfig", str(path), "-n", shop.team.name, "-p", "shop", "list"],
        check=False,
        cwd="/",
        env={**os.environ},
    )
    assert outcome.code == 4 and "nobody" in outcome.err, outcome.output
