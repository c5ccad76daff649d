"""The agent's plan for a branch, also from every state in which a reconcile may have been cut off."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.agent.branch_model import (
    COPY,
    INITDB,
    NEW,
    PROJECT,
    ROOMY,
    ROOT,
    apply,
    converge,
    marker,
    progress_pods,
    undone_steps,
)

from dbranch.agent.branch.actions import (
    Adopt,
    Bind,
    Claim,
    CreateInitdbArea,
    DeletePod,
    RemoveSlot,
    TakeSnapshot,
    WriteSettings,
)
from dbranch.agent.branch.facts import BranchFacts
from dbranch.agent.branch.plan import plan_branch
from dbranch.agent.branch.steps import STEPS
from dbranch.agent.pool.space import Space
from dbranch.agent.postgres.answer import Answer, RejectedSetting
from dbranch.agent.slot.pod_spec import slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.volume.brake import Brake
from dbranch.api import names
from dbranch.api.branch import Branch, BranchNode
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.project import Project


def every_cut(project: Project, branch: Branch, *warm_pods: PodFacts) -> list[BranchFacts]:
    """Return the facts after each single action of a whole creation."""
    facts = BranchFacts(pool_mounted=True, space=ROOMY, warm_pods=warm_pods)
    states = [facts]
    for _ in range(8):
        for action in plan_branch(project, branch, facts).actions:
            facts = apply(branch, facts, action)
            states.append(facts)
        facts = progress_pods(facts)
        states.append(facts)
    return states


def test_a_creation_that_is_cut_off_anywhere_ends_running() -> None:
    for project, branch in ((NEW, ROOT), (PROJECT, COPY)):
        states = every_cut(project, branch)
        assert len(states) > 10
        for state in states:
            facts, plan = converge(project, branch, state)
            assert plan.postgres and plan.postgres.reason == Reason.ACCEPTING, state
            assert len(facts.pods) == 1 and facts.bound_slots == (facts.pods[0].name,), state


def test_every_step_is_planned_from_every_cut_in_which_it_is_not_done() -> None:
    warm = (PodFacts("warm-1", "w1", running=True),)
    reached: set[str] = set()
    resetting = replace(COPY, annotations={names.ALTER_SYSTEM_RESET_AT: "1"})
    for project, branch, free in (
        *((NEW, ROOT, ()), (PROJECT, COPY, ())),
        *((PROJECT, COPY, warm), (PROJECT, resetting, warm)),
    ):
        for state in every_cut(project, branch, *free):
            compared = [replace(state, outdated_collations=())] if state.server_version else []
            outdated, unmounted = replace(state, settings_outdated=True), replace(state, pool_mounted=False)
            for facts in (state, outdated, unmounted, *compared):
                undone = undone_steps(project, branch, facts)
                if not facts.pool_mounted:
                    plan = plan_branch(project, branch, facts)
                    assert plan.steps == ("pool",) and plan.actions == ()
                    reached |= {*plan.steps}
                    undone, facts = undone - {"pool"}, state
                planned = steps_planned(project, branch, facts)
                assert undone <= planned, (undone - planned, facts)
                reached |= planned
    assert reached == {step.name for step in STEPS}


def steps_planned(project: Project, branch: Branch, facts: BranchFacts) -> set[str]:
    """Return the steps that are planned until the branch runs. A bind writes the settings, as their step does."""
    planned: set[str] = set()
    for _ in range(12):
        plan = plan_branch(project, branch, facts)
        planned |= {*plan.steps}
        for action in plan.actions:
            facts = apply(branch, facts, action)
            planned |= {"settings"} if isinstance(action, Bind | WriteSettings) else set()
        facts = progress_pods(facts)
    return planned


def test_a_branch_claims_a_warm_pod_also_if_it_is_cut_off_anywhere() -> None:
    free = (PodFacts("warm-1", "w1", running=True), PodFacts("warm-2", "w2", running=True))
    states = every_cut(PROJECT, COPY, *free)
    assert [s.pods[0].name for s in states if s.pods] and {s.pods[0] for s in states if s.pods} <= set(free)
    for state in states:
        facts, plan = converge(PROJECT, COPY, state)
        assert plan.postgres and plan.postgres.reason == Reason.ACCEPTING, state
        assert facts.pods[0] in free and facts.bound_slots == (facts.pods[0].name,), state
    # Branches that are planned at the same moment do not all choose the same pod.
    chosen = set()
    for uid in "abcdefgh":
        action = plan_branch(PROJECT, replace(COPY, uid=uid), states[0]).actions[0]
        assert isinstance(action, Claim)
        chosen.add(action.pod.name)
    assert chosen == {"warm-1", "warm-2"}


def test_a_branch_claims_no_pod_while_it_is_stopped_without_space_or_has_a_terminating_pod() -> None:
    free = (PodFacts("warm-1", "w1", running=True),)
    full = Space(2**30, 2**20, 2**40, 2**39)
    for branch, facts in (
        (replace(COPY, state="Stopped"), BranchFacts(True, ROOMY, marker(COPY), warm_pods=free)),
        (COPY, BranchFacts(True, full, warm_pods=free)),
        (COPY, BranchFacts(False, ROOMY, warm_pods=free)),
        (COPY, BranchFacts(True, ROOMY, marker(COPY), (PodFacts("s", terminating=True),), warm_pods=free)),
        (ROOT, BranchFacts(True, ROOMY, warm_pods=free)),
    ):
        actions = plan_branch(NEW if branch is ROOT else PROJECT, branch, facts).actions
        assert not any(isinstance(action, Claim) for action in actions)


def test_a_stopped_branch_is_stored_and_has_no_pod_from_any_state() -> None:
    for state in every_cut(PROJECT, COPY):
        facts, plan = converge(PROJECT, replace(COPY, state="Stopped"), state)
        assert facts.marker and not facts.pods and not facts.bound_slots
        assert (plan.storage.reason, plan.postgres and plan.postgres.reason) == (
            Reason.STORED,
            Reason.STOPPED,
        )


def test_a_stored_branch_that_lost_its_data_is_never_created_again() -> None:
    reported = replace(COPY, node=BranchNode(snapshot_time="2026-01-01T00:00:00Z"))
    for branch in (reported, replace(ROOT, node=reported.node)):
        plan = plan_branch(PROJECT, branch, BranchFacts(pool_mounted=True, space=ROOMY))
        assert plan.actions == () and plan.storage.reason == Reason.DATA_LOST
    assert plan_branch(PROJECT, ROOT, BranchFacts(True, ROOMY)).storage.reason == Reason.DATA_LOST


def test_nothing_is_done_while_the_pool_is_not_mounted() -> None:
    plan = plan_branch(PROJECT, COPY, BranchFacts(pool_mounted=False, space=Space()))
    assert plan.actions == () and plan.storage.reason == Reason.CREATING_POOL


def test_a_full_pool_blocks_new_branches_and_keeps_running_ones() -> None:
    full = Space(2**30, 2**20, 2**40, 2**39)
    plan = plan_branch(PROJECT, COPY, BranchFacts(True, full))
    assert plan.actions == () and plan.storage.reason == Reason.POOL_FULL and "1Mi" in plan.storage.message
    running = BranchFacts(
        True, full, marker(COPY), (PodFacts("s", running=True),), bound_slots=("s",), server_version="17.6"
    )
    kept = plan_branch(PROJECT, COPY, running)
    assert kept.postgres and kept.postgres.reason == Reason.ACCEPTING


def test_an_image_that_cannot_be_pulled_is_reported() -> None:
    pod = PodFacts("slot-1", image="nope:17", reason="ErrImagePull", message="not found")
    wrong = replace(PROJECT, postgres=replace(PROJECT.postgres, image="nope:17"))
    facts = BranchFacts(True, ROOMY, marker(COPY), (pod,), bound_slots=("slot-1",))
    plan = plan_branch(wrong, COPY, facts)
    assert plan.postgres == Finding(Reason.IMAGE_PULL_FAILED, plan.postgres.message if plan.postgres else "")
    assert plan.postgres and "nope:17" in plan.postgres.message


def test_a_pod_that_waits_for_a_wrong_image_is_replaced() -> None:
    pod = PodFacts("slot-1", image="nope:17", reason="ImagePullBackOff")
    plan = plan_branch(PROJECT, COPY, BranchFacts(True, ROOMY, marker(COPY), (pod,), bound_slots=("slot-1",)))
    assert DeletePod(pod) in plan.actions
    initdb = replace(pod, name=INITDB)
    assert plan_branch(NEW, ROOT, BranchFacts(True, ROOMY, initdb_pod=initdb)).actions == (DeletePod(initdb),)
    # A running pod stays: it takes a new image at its restart.
    facts = BranchFacts(
        True, ROOMY, marker(COPY), (PodFacts("s", image="old:17", running=True),), bound_slots=("s",)
    )
    assert not any(isinstance(a, DeletePod) for a in plan_branch(PROJECT, COPY, facts).actions)


def running(project: Project, branch: Branch, **fields: object) -> BranchFacts:
    pod = PodFacts(
        "s", image=project.postgres.image, class_hash=slot_class_of(project, branch).class_hash, running=True
    )
    facts = BranchFacts(True, ROOMY, marker(branch), (pod,), bound_slots=("s",), server_version="17.6")
    return replace(facts, **fields)  # type: ignore[arg-type]


def test_changes_that_need_a_restart_are_named_and_postgres_runs_on() -> None:
    facts = running(PROJECT, COPY)
    pending = replace(facts, pending_settings=("shared_buffers", "wal_level"))
    newer = replace(PROJECT, postgres=replace(PROJECT.postgres, image="postgres:17.7"))
    larger = replace(COPY, resources={"requests": {"cpu": "2"}})
    for project, branch, observed, words in (
        (PROJECT, COPY, pending, "shared_buffers, wal_level"),
        (newer, COPY, facts, "image"),
        (PROJECT, larger, facts, "resources"),
    ):
        plan = plan_branch(project, branch, observed)
        assert plan.postgres and plan.postgres.reason == Reason.RESTART_PENDING
        assert words in plan.postgres.message and "dbranch restart x" in plan.postgres.message
        assert not any(isinstance(a, DeletePod) for a in plan.actions)


def test_a_branch_with_a_brake_runs_read_only_or_not_at_all() -> None:
    facts = running(PROJECT, COPY, brake=Brake.READ_ONLY, pending_settings=("shared_buffers",))
    plan = plan_branch(PROJECT, COPY, facts)
    assert not any(isinstance(action, DeletePod) for action in plan.actions)
    assert plan.postgres and plan.postgres.reason == Reason.WRITES_BRAKED
    assert plan.postgres.done and len(plan.postgres.message) <= MESSAGE_LIMIT
    facts = replace(facts, brake=Brake.STOPPED)
    plan = plan_branch(PROJECT, COPY, facts)
    assert plan.actions == tuple(map(DeletePod, facts.pods))
    assert plan.storage.reason == Reason.STORED
    assert plan.postgres and plan.postgres.reason == Reason.WRITER_STOPPED and not plan.postgres.done
    assert len(plan.postgres.message) <= MESSAGE_LIMIT
    # Its slot goes after its pod, nothing starts, and the spec comes first.
    assert plan_branch(PROJECT, COPY, replace(facts, pods=())).actions == (RemoveSlot("s"),)
    stopped = plan_branch(PROJECT, replace(COPY, state="Stopped"), facts)
    assert stopped.postgres and stopped.postgres.reason == Reason.STOPPED
    # A branch that is not stored yet grows nothing.
    assert plan_branch(PROJECT, COPY, BranchFacts(True, ROOMY, brake=Brake.STOPPED)).actions
    assert plan_branch(PROJECT, COPY, replace(facts, pods=(), bound_slots=(), brake=None)).actions


def test_a_requested_restart_happens_once() -> None:
    restarted = replace(COPY, annotations={names.RESTARTED_AT: "2026-01-01T00:00:00Z"})
    before = running(PROJECT, restarted)
    plan = plan_branch(PROJECT, restarted, before)
    assert DeletePod(before.pods[0]) in plan.actions
    assert plan.postgres and plan.postgres.reason == Reason.WAITING_FOR_SLOT
    done = replace(before, pods=(replace(before.pods[0], restarted_at="2026-01-01T00:00:00Z"),))
    after = plan_branch(PROJECT, restarted, done)
    assert after.postgres and after.postgres.reason == Reason.ACCEPTING
    # Removing the annotation requests nothing.
    assert not any(isinstance(a, DeletePod) for a in plan_branch(PROJECT, COPY, done).actions)


LONGEST = replace(COPY, object_name=f"shop-{'x' * 58}")


@pytest.mark.parametrize("branch", [COPY, LONGEST], ids=["short", "longest"])
def test_what_alter_system_broke_is_said_with_the_command_that_undoes_it(branch: Branch) -> None:
    command = f"dbranch restart {branch.name} --reset-alter-system"
    altered = RejectedSetting("max_connections of ALTER SYSTEM (" + "e" * 80, altered=True)
    own = RejectedSetting("work_mem = many (invalid value)")
    # One step at a time: a restart with a wrong value in the spec would end it.
    for rejected, advice in (
        ((altered,), f"run {command}"),
        ((altered,) * 3, f"run {command}"),
        ((own,), "correct spec.postgres.parameters"),
        ((altered, own), "correct spec.postgres.parameters"),
    ):
        facts = replace(running(PROJECT, branch), rejected_settings=rejected)
        finding = plan_branch(PROJECT, branch, facts).postgres
        assert (
            finding and finding.reason == Reason.SETTINGS_REJECTED and finding.message.endswith(f"; {advice}")
        )
        assert len(finding.message) <= MESSAGE_LIMIT, finding.message


@pytest.mark.parametrize("branch", [COPY, LONGEST], ids=["short", "longest"])
@pytest.mark.parametrize(
    ("line", "reason", "advice"),
    [
        ('FATAL:  could not access file "nonexistent"', Reason.CRASH_LOOPING, "; if it is by ALTER SYSTEM: "),
        (
            'FATAL:  configuration file "/slot/data/pgdata/postgresql.auto.conf" contains errors',
            Reason.INVALID_PARAMETERS,
            "run ",
        ),
        (
            'FATAL:  configuration file "/slot/data/postgresql.conf" contains errors',
            Reason.INVALID_PARAMETERS,
            "correct spec.postgres.parameters, or undo ALTER SYSTEM: ",
        ),
    ],
)
def test_a_postgres_that_does_not_start_is_said_with_the_way_back(
    branch: Branch, line: str, reason: Reason, advice: str
) -> None:
    up = running(PROJECT, branch, server_version=None)
    pod = replace(up.pods[0], running=False, reason="CrashLoopBackOff", last_termination_message=line)
    facts = replace(up, pods=(pod,))
    finding = plan_branch(PROJECT, branch, facts).postgres
    assert finding and finding.reason == reason and "--reset" not in finding.message
    finding = plan_branch(PROJECT, branch, replace(facts, altered=True)).postgres
    assert finding and finding.reason == reason and len(finding.message) <= MESSAGE_LIMIT
    assert finding.message.endswith(f"{advice}dbranch restart {branch.name} --reset-alter-system")


def test_an_image_of_another_major_version_is_not_started_until_the_image_changes() -> None:
    blocked = running(
        PROJECT, COPY, server_version=None, start_blocked_by="data is of PostgreSQL 16, image is 17"
    )
    plan = plan_branch(PROJECT, COPY, blocked)
    assert plan.postgres and plan.postgres.reason == Reason.IMAGE_INCOMPATIBLE
    assert "PostgreSQL 16" in plan.postgres.message and plan.actions == ()
    right = replace(PROJECT, postgres=replace(PROJECT.postgres, image="postgres:16"))
    assert DeletePod(blocked.pods[0]) in plan_branch(right, COPY, blocked).actions


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data is not btrfs", "is not btrfs"),
        ("data is not a root-owned subvolume", "not a subvolume that root owns"),
        ("data is not a mount", "nothing is mounted"),
        ("pgdata: owner or mode", "spec.postgres.runAsUser"),
        ("pgdata is 70:700, not 999:700", "PGDATA belongs to user 70"),
        ("pgdata is missing, not 999:700", "PGDATA is missing"),
        ("no lock file", "no lock file"),
        ("another container holds the lock", "another container"),
        # What only a tenant can have written, or another release.
        ("evil \x1b[2J words, " * 50, "unknown reason"),
        ("data is of PostgreSQL , image is 17", "unknown reason"),
        ("data is of PostgreSQL 16, image is 17 evil", "unknown reason"),
        ("pgdata is 70:700, not 999:700\nevil", "unknown reason"),
    ],
)
def test_each_reason_why_the_script_does_not_start_postgres_is_a_sentence(text: str, words: str) -> None:
    blocked = running(PROJECT, COPY, server_version=None, start_blocked_by=text)
    plan = plan_branch(PROJECT, COPY, blocked)
    assert plan.postgres and plan.postgres.reason == Reason.START_BLOCKED and plan.actions == ()
    assert words in plan.postgres.message and "evil" not in plan.postgres.message
    assert len(plan.postgres.message) <= MESSAGE_LIMIT and plan.awaits == blocked.pods[0].name
    # A pod that does not run has its own reason.
    pulling = replace(blocked, pods=(replace(blocked.pods[0], running=False, reason="ErrImagePull"),))
    assert (plan_branch(PROJECT, COPY, pulling).postgres or plan.postgres).reason == Reason.IMAGE_PULL_FAILED


def test_a_script_that_sees_no_branch_yet_is_starting() -> None:
    waiting = running(PROJECT, COPY, server_version=None, start_blocked_by="no branch")
    postgres = plan_branch(PROJECT, COPY, waiting).postgres
    assert postgres and postgres.reason == Reason.RECOVERING


def test_a_postgres_without_the_agents_role_is_reported() -> None:
    refusing = running(PROJECT, COPY, server_version=None, refusal=Answer.REFUSES, missing_superuser=True)
    assert refusing.marker
    refusing = replace(refusing, marker=replace(refusing.marker, superuser="postgres"))
    plan = plan_branch(PROJECT, COPY, refusing)
    assert plan.postgres and plan.postgres.reason == Reason.START_BLOCKED and plan.retry_after
    assert 'has no role "postgres"' in plan.postgres.message


def test_a_rejected_pod_is_replaced_after_a_delay() -> None:
    pod = PodFacts("slot-1", terminated=True, reason="OutOfcpu")
    plan = plan_branch(PROJECT, COPY, BranchFacts(True, ROOMY, marker(COPY), (pod,), bound_slots=("slot-1",)))
    assert DeletePod(pod) in plan.actions and plan.retry_after and plan.retry_after >= 5
    assert plan.postgres and plan.postgres.reason == Reason.POD_REJECTED


def test_a_branch_in_an_adopted_pool_gets_its_retained_data() -> None:
    for branch in (ROOT, COPY):
        facts = BranchFacts(True, Space(2**30, 2**20, 2**40, 2**39), retained_uid="o-uid")
        plan = plan_branch(PROJECT, branch, facts)
        assert Adopt("o-uid") in plan.actions
        assert not any(isinstance(a, TakeSnapshot | CreateInitdbArea) for a in plan.actions)
