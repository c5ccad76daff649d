"""The agent's decision about a branch, also from every state in which a visit may have been cut off."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.branch_model import (
    COPY,
    INITDB,
    NEW,
    PROJECT,
    ROOMY,
    ROOT,
    apply,
    converge,
    marker,
    world,
)

from dbranch.agent.branch import plan
from dbranch.agent.branch.plan import BranchFacts, plan_branch
from dbranch.agent.pool.space import Space
from dbranch.agent.slot.pod_spec import slot_class
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.api import names
from dbranch.api.branch import Branch, BranchNode
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import Project


def every_cut(project: Project, branch: Branch, *waiting: PodFacts) -> list[BranchFacts]:
    """The states after each single action of a whole creation."""
    facts = BranchFacts(pool_mounted=True, space=ROOMY, waiting=waiting)
    states = [facts]
    for _ in range(8):
        for action in plan_branch(project, branch, facts).actions:
            facts = apply(branch, facts, action)
            states.append(facts)
        facts = world(facts)
        states.append(facts)
    return states


def test_a_creation_that_is_cut_off_anywhere_ends_running() -> None:
    for project, branch in ((NEW, ROOT), (PROJECT, COPY)):
        states = every_cut(project, branch)
        assert len(states) > 10
        for state in states:
            facts, todo = converge(project, branch, state)
            assert todo.postgres and todo.postgres.reason == Reason.ACCEPTING, state
            assert len(facts.pods) == 1 and facts.bound == (facts.pods[0].name,), state


def test_a_branch_takes_a_waiting_slot_and_is_cut_off_anywhere() -> None:
    free = (PodFacts("warm-1", "w1", running=True), PodFacts("warm-2", "w2", running=True))
    states = every_cut(PROJECT, COPY, *free)
    assert [s.pods[0].name for s in states if s.pods] and {s.pods[0] for s in states if s.pods} <= set(free)
    for state in states:
        facts, todo = converge(PROJECT, COPY, state)
        assert todo.postgres and todo.postgres.reason == Reason.ACCEPTING, state
        assert facts.pods[0] in free and facts.bound == (facts.pods[0].name,), state
    # Branches that look at the same moment do not all choose the same one.
    chosen = set()
    for uid in "abcdefgh":
        action = plan_branch(PROJECT, replace(COPY, uid=uid), states[0]).actions[0]
        assert isinstance(action, plan.Claim)
        chosen.add(action.pod.name)
    assert chosen == {"warm-1", "warm-2"}


def test_a_branch_that_is_stopped_or_refused_or_still_ending_takes_none() -> None:
    free = (PodFacts("warm-1", "w1", running=True),)
    full = Space(2**30, 2**20, 2**40, 2**39)
    for branch, facts in (
        (replace(COPY, state="Stopped"), BranchFacts(True, ROOMY, marker(COPY), waiting=free)),
        (COPY, BranchFacts(True, full, waiting=free)),
        (COPY, BranchFacts(False, ROOMY, waiting=free)),
        (COPY, BranchFacts(True, ROOMY, marker(COPY), (PodFacts("s", terminating=True),), waiting=free)),
        (ROOT, BranchFacts(True, ROOMY, waiting=free)),
    ):
        actions = plan_branch(NEW if branch is ROOT else PROJECT, branch, facts).actions
        assert not any(isinstance(action, plan.Claim) for action in actions)


def test_a_stopped_branch_is_stored_and_has_no_pod_whatever_was_there() -> None:
    for state in every_cut(PROJECT, COPY):
        facts, todo = converge(PROJECT, replace(COPY, state="Stopped"), state)
        assert facts.marker and not facts.pods and not facts.bound
        assert (todo.storage.reason, todo.postgres and todo.postgres.reason) == (
            Reason.STORED,
            Reason.STOPPED,
        )


def test_what_was_stored_and_is_gone_is_never_made_again() -> None:
    told = replace(COPY, node=BranchNode(snapshot_time="2026-01-01T00:00:00Z"))
    for branch in (told, replace(ROOT, node=told.node)):
        todo = plan_branch(PROJECT, branch, BranchFacts(pool_mounted=True, space=ROOMY))
        assert todo.actions == () and todo.storage.reason == Reason.DATA_LOST
    assert plan_branch(PROJECT, ROOT, BranchFacts(True, ROOMY)).storage.reason == Reason.DATA_LOST


def test_nothing_is_done_while_the_pool_is_away() -> None:
    todo = plan_branch(PROJECT, COPY, BranchFacts(pool_mounted=False, space=Space()))
    assert todo.actions == () and todo.storage.reason == Reason.CREATING_POOL


def test_a_full_pool_refuses_new_branches_and_leaves_those_that_run() -> None:
    full = Space(2**30, 2**20, 2**40, 2**39)
    todo = plan_branch(PROJECT, COPY, BranchFacts(True, full))
    assert todo.actions == () and todo.storage.reason == Reason.POOL_FULL and "1Mi" in todo.storage.message
    running = BranchFacts(
        True, full, marker(COPY), (PodFacts("s", running=True),), bound=("s",), accepting="17.6"
    )
    kept = plan_branch(PROJECT, COPY, running)
    assert kept.postgres and kept.postgres.reason == Reason.ACCEPTING


def test_an_image_that_cannot_be_pulled_is_said() -> None:
    pod = PodFacts("slot-1", image="nope:17", reason="ErrImagePull", message="not found")
    wrong = replace(PROJECT, postgres=replace(PROJECT.postgres, image="nope:17"))
    facts = BranchFacts(True, ROOMY, marker(COPY), (pod,), bound=("slot-1",))
    todo = plan_branch(wrong, COPY, facts)
    assert todo.postgres == Finding(Reason.IMAGE_PULL_FAILED, todo.postgres.message if todo.postgres else "")
    assert todo.postgres and "nope:17" in todo.postgres.message


def test_a_pod_that_waits_for_a_wrong_image_is_made_anew_with_the_right_one() -> None:
    pod = PodFacts("slot-1", image="nope:17", reason="ImagePullBackOff")
    todo = plan_branch(PROJECT, COPY, BranchFacts(True, ROOMY, marker(COPY), (pod,), bound=("slot-1",)))
    assert plan.DeletePod(pod) in todo.actions
    initdb = replace(pod, name=INITDB)
    assert plan_branch(NEW, ROOT, BranchFacts(True, ROOMY, initdb=initdb)).actions == (
        plan.DeletePod(initdb),
    )
    # One that runs goes on: a change of the image is taken at its restart.
    facts = BranchFacts(
        True, ROOMY, marker(COPY), (PodFacts("s", image="old:17", running=True),), bound=("s",)
    )
    assert not any(isinstance(a, plan.DeletePod) for a in plan_branch(PROJECT, COPY, facts).actions)


def running(project: Project, branch: Branch, **more: object) -> BranchFacts:
    pod = PodFacts("s", image=project.postgres.image, slot_class=slot_class(project, branch), running=True)
    facts = BranchFacts(True, ROOMY, marker(branch), (pod,), bound=("s",), accepting="17.6")
    return replace(facts, **more)  # type: ignore[arg-type]


def test_what_waits_for_a_restart_is_named_and_runs_on() -> None:
    facts = running(PROJECT, COPY)
    newer = replace(PROJECT, postgres=replace(PROJECT.postgres, image="postgres:17.7"))
    larger = replace(COPY, resources={"requests": {"cpu": "2"}})
    for project, branch, seen, words in (
        (PROJECT, COPY, replace(facts, pending=("shared_buffers", "wal_level")), "shared_buffers, wal_level"),
        (newer, COPY, facts, "image"),
        (PROJECT, larger, facts, "resources"),
    ):
        todo = plan_branch(project, branch, seen)
        assert todo.postgres and todo.postgres.reason == Reason.RESTART_PENDING
        assert words in todo.postgres.message and "dbranch restart x" in todo.postgres.message
        assert not any(isinstance(a, plan.DeletePod) for a in todo.actions)


def test_a_restart_that_was_asked_for_is_made_once() -> None:
    asked = replace(COPY, annotations={names.RESTARTED_AT: "2026-01-01T00:00:00Z"})
    before = running(PROJECT, asked)
    todo = plan_branch(PROJECT, asked, before)
    assert plan.DeletePod(before.pods[0]) in todo.actions
    assert todo.postgres and todo.postgres.reason == Reason.WAITING_FOR_SLOT
    done = replace(before, pods=(replace(before.pods[0], restarted_at="2026-01-01T00:00:00Z"),))
    after = plan_branch(PROJECT, asked, done)
    assert after.postgres and after.postgres.reason == Reason.ACCEPTING
    # The annotation taken away again asks for nothing.
    assert not any(isinstance(a, plan.DeletePod) for a in plan_branch(PROJECT, COPY, done).actions)


def test_an_image_of_another_major_version_is_refused_until_it_is_another_image() -> None:
    refused = running(PROJECT, COPY, accepting=None, refused="data is of PostgreSQL 16, image is 17")
    todo = plan_branch(PROJECT, COPY, refused)
    assert todo.postgres and todo.postgres.reason == Reason.IMAGE_INCOMPATIBLE
    assert "PostgreSQL 16" in todo.postgres.message and todo.actions == ()
    right = replace(PROJECT, postgres=replace(PROJECT.postgres, image="postgres:16"))
    assert plan.DeletePod(refused.pods[0]) in plan_branch(right, COPY, refused).actions
    # What a tenant may have written there besides is no reason.
    odd = replace(refused, refused="no lock file")
    assert (plan_branch(PROJECT, COPY, odd).postgres or todo.postgres).reason == Reason.RECOVERING


def test_a_rejected_pod_is_replaced_but_not_at_once() -> None:
    pod = PodFacts("slot-1", over=True, reason="OutOfcpu")
    todo = plan_branch(PROJECT, COPY, BranchFacts(True, ROOMY, marker(COPY), (pod,), bound=("slot-1",)))
    assert plan.DeletePod(pod) in todo.actions and todo.retry_after and todo.retry_after >= 5
    assert todo.postgres and todo.postgres.reason == Reason.POD_REJECTED


def test_what_a_pool_that_was_taken_over_holds_is_no_new_database() -> None:
    for branch in (ROOT, COPY):
        facts = BranchFacts(True, Space(2**30, 2**20, 2**40, 2**39), retained="o-uid")
        todo = plan_branch(PROJECT, branch, facts)
        assert plan.Adopt("o-uid") in todo.actions
        assert not any(isinstance(a, plan.TakeSnapshot | plan.CreateInitdbArea) for a in todo.actions)
