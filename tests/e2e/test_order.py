"""Manifests applied in any order converge."""

from __future__ import annotations

from tests.e2e.cluster import NODES, Namespace, Project, eventually


def test_branch_before_its_project_and_its_source(team: Namespace) -> None:
    late = Project(team, "late")
    team.apply(late.branch_manifest("second", "first"))
    condition = team.wait_reason("dbbranch", "late-second", "Scheduled", "ProjectNotFound")
    assert "late" in condition["message"]
    assert team.condition("dbbranch", "late-second", "Stalled") == {}
    team.apply(late.branch_manifest("first"))
    late.make()
    late.wait_ready("first", "second")
    assert late.sql("select 1", "second") == "1"
    late.discard()


def test_a_root_branch_that_the_user_applied_is_used_as_it_is(team: Namespace) -> None:
    own = Project(team, "own")
    team.apply(
        own.branch_manifest("main", None, postgres={"parameters": {"work_mem": "7MB"}}), own.manifest()
    )
    team.wait_ready("dbproject", "own")
    assert own.sql("show work_mem") == "7MB"
    own.discard()


def test_a_project_before_any_agent_runs(team: Namespace) -> None:
    kubectl = team.cluster.kubectl
    nowhere = '{"spec":{"template":{"spec":{"nodeSelector":{"e2e.dbranch.io/nowhere":"true"}}}}}'
    kubectl("patch", "daemonset", "dbranch-agent", "-n", NODES, "--type=merge", "-p", nowhere)
    try:
        agent = "app.kubernetes.io/component=agent"
        eventually(
            "no agent pod is left",
            lambda: not kubectl("get", "pods", "-n", NODES, "-l", agent, "-o", "name").text,
        )
        early = Project(team, "early")
        team.apply(early.manifest())
        condition = team.wait_reason("dbproject", "early", "Scheduled", "NoEligibleNode")
        assert "agent" in condition["message"]
    finally:
        restore = '[{"op":"remove","path":"/spec/template/spec/nodeSelector/e2e.dbranch.io~1nowhere"}]'
        kubectl("patch", "daemonset", "dbranch-agent", "-n", NODES, "--type=json", "-p", restore)
    team.wait_ready("dbproject", "early")
    assert early.sql("select 1") == "1"
    early.discard()
