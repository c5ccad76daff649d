"""The steps of a branch's life, each by itself: when it is needed, when it is done, what it plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.agent.branch_model import COPY, NEW, PROJECT, ROOMY, ROOT, VERSION, marker

from dbranch.agent.branch.actions import (
    Action,
    Adopt,
    Bind,
    Claim,
    Clean,
    CreateInitdbArea,
    CreateInitdbPod,
    CreatePod,
    DeletePod,
    Open,
    PromoteInitdb,
    RecordImage,
    ResetAlterSystem,
    SetOwnVerifiers,
    SetPasswords,
    TakeSnapshot,
    WriteSettings,
)
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.plan import plan_branch
from dbranch.agent.branch.report import node_fields
from dbranch.agent.branch.step import Planned, Step
from dbranch.agent.branch.steps import STEPS
from dbranch.agent.pool.space import Space
from dbranch.agent.postgres.answer import Answer
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import OWN_VERIFIERS_DELAY_SECONDS
from dbranch.api import names
from dbranch.api.branch import BranchNode
from dbranch.api.conditions import Condition, Finding, Reason

BY_NAME = {step.name: step for step in STEPS}
STOPPED = replace(COPY, state="Stopped")
NO_PASSWORD = replace(PROJECT, password_version=None)
FREE = PodFacts("warm-1", "w1", running=True)
POD = PodFacts("slot-a", running=True)
SLOT = names.slot_name(COPY.uid, "")
# Facts of a branch after each of its steps.
NOTHING = BranchFacts(pool_mounted=False, space=ROOMY)
MOUNTED = replace(NOTHING, pool_mounted=True)
STORED = replace(MOUNTED, marker=marker(COPY, cleaned=False))
WITH_POD = replace(STORED, pods=(POD,))
BOUND = replace(WITH_POD, bound_slots=("slot-a",))
ACCEPTS = replace(BOUND, server_version="17.6")
CLEANED = replace(ACCEPTS, marker=marker(COPY))
WITH_PASSWORD = replace(CLEANED, marker=replace(marker(COPY), password=VERSION))
OPENED_MARKER = replace(marker(COPY), password=VERSION, opened=True)
OPENED = replace(CLEANED, marker=OPENED_MARKER)
WITH_OWN = replace(CLEANED, marker=replace(OPENED_MARKER, verifiers="own", verifiers_of=COPY.uid))
# It runs another image than before, and nothing sorts otherwise.
COMPARED = replace(OPENED, pods=(replace(POD, image_id="sha256:b"),), outdated_collations=())


def test_the_order_of_the_steps_is_that_of_their_conditions() -> None:
    assert [*BY_NAME] == [
        *("pool", "volume", "slot", "reset", "bind", "start"),
        *("clean", "credentials", "settings", "open", "image", "verifiers"),
    ]
    conditions = [step.condition for step in STEPS]
    assert conditions == [Condition.STORAGE_READY] * 2 + [Condition.POSTGRES_READY] * 10


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_is_needed(step: Step) -> None:
    runs, stopped = Desired(PROJECT, COPY), Desired(PROJECT, STOPPED)
    assert step.needed(runs)
    # The data of a stopped branch is stored, too.
    assert step.needed(stopped) == (step.condition is Condition.STORAGE_READY)
    assert step.needed(Desired(NO_PASSWORD, COPY)) == (step.name not in ("credentials", "verifiers"))


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("pool", NOTHING, MOUNTED),
        ("volume", MOUNTED, STORED),
        ("slot", STORED, WITH_POD),
        ("bind", WITH_POD, BOUND),
        ("start", BOUND, ACCEPTS),
        ("clean", ACCEPTS, CLEANED),
        ("credentials", CLEANED, WITH_PASSWORD),
        ("credentials", replace(OPENED, passwords_differ=True), OPENED),
        ("settings", replace(WITH_PASSWORD, settings_outdated=True), WITH_PASSWORD),
        ("open", WITH_PASSWORD, OPENED),
        ("image", COMPARED, OPENED),
        ("verifiers", OPENED, WITH_OWN),
        # Those of its source, of which it is a copy.
        (
            "verifiers",
            replace(OPENED, marker=replace(OPENED_MARKER, verifiers="s", verifiers_of="r-uid")),
            WITH_OWN,
        ),
    ],
)
def test_a_step_is_done(name: str, before: BranchFacts, after: BranchFacts) -> None:
    step, desired = BY_NAME[name], Desired(PROJECT, COPY)
    assert not step.done(desired, before) and step.done(desired, after)
    # It is the first that is planned, and no step before it is planned again.
    assert plan_branch(PROJECT, COPY, before).steps[0] == name
    assert name not in plan_branch(PROJECT, COPY, after).steps
    planned = step.plan(desired, before)
    assert (planned.then is None) != (planned.finding is None)
    if planned.then is not None:
        assert step.done(desired, planned.then), "what follows from the actions does not finish the step"


@pytest.mark.parametrize(
    ("name", "facts", "actions"),
    [
        ("volume", MOUNTED, (TakeSnapshot("r-uid"),)),
        ("volume", replace(MOUNTED, retained_uid="o-uid"), (Adopt("o-uid"),)),
        ("slot", STORED, (CreatePod(SLOT),)),
        ("slot", replace(STORED, warm_pods=(FREE,)), (Claim(FREE),)),
        ("bind", WITH_POD, (Bind("slot-a"),)),
        ("start", BOUND, ()),
        ("start", replace(BOUND, settings_outdated=True), (WriteSettings("slot-a"),)),
        ("clean", ACCEPTS, (Clean("slot-a"),)),
        ("credentials", CLEANED, (SetPasswords("slot-a"),)),
        ("settings", replace(CLEANED, settings_outdated=True), (WriteSettings("slot-a"),)),
        ("open", WITH_PASSWORD, (Open("slot-a"),)),
        ("image", COMPARED, (RecordImage("slot-a", "sha256:b"),)),
        # Not before users are there.
        ("verifiers", OPENED, ()),
    ],
)
def test_what_a_step_plans(name: str, facts: BranchFacts, actions: tuple[Action, ...]) -> None:
    assert plan(name, facts).actions == actions


def plan(name: str, facts: BranchFacts) -> Planned:
    return BY_NAME[name].plan(Desired(PROJECT, COPY), facts)


RESETTING = replace(COPY, annotations={names.ALTER_SYSTEM_RESET_AT: "1"})


def test_alter_system_is_undone_once_for_each_request_and_beside_no_postgres() -> None:
    step, desired = BY_NAME["reset"], Desired(PROJECT, RESETTING)
    assert step.done(Desired(PROJECT, COPY), BOUND) and not step.done(desired, WITH_POD)
    planned = step.plan(desired, WITH_POD)
    assert planned.actions == (ResetAlterSystem("1"),) and planned.then
    assert step.done(desired, planned.then)
    # Before the bind, which starts Postgres: of a new branch, too, since its source may have been broken.
    assert plan_branch(PROJECT, RESETTING, replace(MOUNTED, warm_pods=(FREE,))).actions == (
        *(Claim(FREE), TakeSnapshot("r-uid")),
        *(ResetAlterSystem("1"), Bind("warm-1")),
    )
    # The pod that has the branch bound goes first, whatever its Postgres does.
    for facts in (
        BOUND,
        OPENED,
        replace(BOUND, pods=(replace(POD, running=False, reason="CrashLoopBackOff"),)),
    ):
        waits = plan_branch(PROJECT, RESETTING, facts)
        assert waits.actions == (DeletePod(facts.pods[0]),)
        assert waits.postgres and waits.postgres.reason == Reason.WAITING_FOR_SLOT
    served = replace(
        OPENED, marker=replace(marker(COPY), password=VERSION, opened=True, alter_system_reset="1")
    )
    assert plan_branch(PROJECT, RESETTING, served).actions == ()
    asked_anew = replace(COPY, annotations={names.ALTER_SYSTEM_RESET_AT: "2"})
    assert plan_branch(PROJECT, asked_anew, served).actions == (DeletePod(POD),)
    # Without the annotation nothing is asked; with a value of any length the same is compared that is recorded.
    assert plan_branch(PROJECT, COPY, served).actions == ()
    long = Desired(PROJECT, replace(COPY, annotations={names.ALTER_SYSTEM_RESET_AT: "1" * 10**5}))
    planned = step.plan(long, WITH_POD)
    assert planned.then and step.done(long, planned.then)
    assert planned.then.marker and len(planned.then.marker.alter_system_reset) == 64


def test_consecutive_steps_are_joined_up_to_what_has_to_be_waited_for() -> None:
    warm = plan_branch(PROJECT, COPY, replace(MOUNTED, warm_pods=(FREE,)))
    assert warm.actions == (Claim(FREE), TakeSnapshot("r-uid"), Bind("warm-1"))
    assert warm.steps == ("volume", "slot", "bind", "start") and warm.awaits == "warm-1"
    assert warm.postgres and warm.postgres.reason == Reason.RECOVERING
    new = plan_branch(PROJECT, COPY, MOUNTED)
    assert new.actions == (CreatePod(SLOT), TakeSnapshot("r-uid"), Bind(SLOT)) and new.awaits == SLOT
    accepts = plan_branch(PROJECT, COPY, replace(ACCEPTS, settings_outdated=True))
    assert accepts.actions == (
        Clean("slot-a"),
        SetPasswords("slot-a"),
        WriteSettings("slot-a"),
        Open("slot-a"),
    )
    assert accepts.postgres and accepts.postgres.reason == Reason.ACCEPTING and accepts.awaits is None
    assert accepts.requeue_after == OWN_VERIFIERS_DELAY_SECONDS
    done = plan_branch(PROJECT, COPY, WITH_OWN)
    assert done.actions == () == done.steps and done.requeue_after is None


def test_a_branch_that_serves_gets_verifiers_of_its_own() -> None:
    serving = replace(COPY, node=BranchNode(postgres=Finding(Reason.RESTART_PENDING, "it serves")))
    planned = plan_branch(PROJECT, serving, OPENED)
    assert planned.actions == (SetOwnVerifiers("slot-a"),) and planned.requeue_after is None
    starting = replace(COPY, node=BranchNode(postgres=Finding(Reason.RECOVERING, "it starts")))
    assert plan_branch(PROJECT, starting, OPENED).actions == ()
    # After a change of the password they are set anew, behind the project's.
    differing = replace(WITH_OWN, passwords_differ=True)
    both = (SetPasswords("slot-a"), SetOwnVerifiers("slot-a"))
    assert plan_branch(PROJECT, serving, differing).actions == both


def test_the_origins_of_a_root_branch() -> None:
    slot, desired = names.initdb_pod_name(NEW.uid), Desired(NEW, ROOT)
    made = BY_NAME["volume"].plan(desired, MOUNTED)
    assert made.actions == (CreateInitdbArea(slot), CreateInitdbPod(slot)) and made.then is None
    promoted = BY_NAME["volume"].plan(desired, replace(MOUNTED, initdb_done=True))
    assert promoted.actions == (PromoteInitdb(),) and promoted.requeue_after
    failed = PodFacts(slot, terminated=True, reason="Error")
    planned = BY_NAME["volume"].plan(desired, replace(MOUNTED, initdb_pod=failed))
    assert planned.actions == (DeletePod(failed),) and planned.retry_after
    # Its next pod is made when the delay has passed, not when the last one is gone.
    waiting = BY_NAME["volume"].plan(desired, replace(MOUNTED, backoff_seconds={"volume": 40.0}))
    assert waiting.actions == () and waiting.requeue_after == 40.0
    reported = Finding(Reason.INITDB_FAILED, "why")
    reporting = Desired(NEW, replace(ROOT, node=BranchNode(storage=reported)))
    waiting = BY_NAME["volume"].plan(reporting, replace(MOUNTED, backoff_seconds={"volume": 40.0}))
    assert waiting.finding == reported


def test_an_image_that_is_not_supported_is_reported_with_those_that_are() -> None:
    slot, desired = names.initdb_pod_name(NEW.uid), Desired(NEW, ROOT)
    failed = PodFacts(slot, terminated=True, message="error: PostgreSQL 13 is not supported")
    planned = BY_NAME["volume"].plan(desired, replace(MOUNTED, initdb_pod=failed))
    assert planned.finding and planned.finding.reason == Reason.IMAGE_INCOMPATIBLE and planned.retry_after
    assert "postgres:17 is PostgreSQL 13" in planned.finding.message and "14 to 18" in planned.finding.message
    # Nothing is tried until the delay has passed or the image is another one; meanwhile that is still said.
    reporting = Desired(NEW, replace(ROOT, node=BranchNode(storage=planned.finding)))
    waiting = BY_NAME["volume"].plan(reporting, replace(MOUNTED, backoff_seconds={"volume": 40.0}))
    assert waiting.actions == () and waiting.finding == planned.finding


def test_a_branch_without_the_applications_role_is_reported_and_admits_others() -> None:
    plan_of_it = plan_branch(PROJECT, COPY, replace(OPENED, missing_role="app"))
    assert plan_of_it.actions == () and plan_of_it.postgres
    assert plan_of_it.postgres.reason == Reason.ROLE_NOT_FOUND and "role app" in plan_of_it.postgres.message
    assert plan_of_it.postgres.admits and not plan_of_it.postgres.done


def test_a_source_that_cannot_be_copied_costs_no_snapshot_and_no_pod() -> None:
    problem = Finding(Reason.SOURCE_UNSAFE, "branch x: pg_tblspc/16999 is a tablespace outside PGDATA")
    planned = plan_branch(PROJECT, COPY, replace(MOUNTED, source_problem=problem, warm_pods=(FREE,)))
    assert planned.actions == () and planned.storage == problem and planned.postgres is None
    assert planned.retry_after and planned.steps == ("volume",)
    # Data that is there already needs no source.
    retained = replace(MOUNTED, source_problem=problem, retained_uid="o-uid")
    assert Adopt("o-uid") in plan_branch(PROJECT, COPY, retained).actions


def test_no_space_is_waited_for() -> None:
    full = Space(2**30, 2**20, 2**40, 2**39)
    planned = plan("volume", replace(MOUNTED, space=full))
    assert planned.requeue_after and planned.finding and planned.finding.reason == Reason.POOL_FULL


def test_after_a_pod_that_failed_the_next_one_waits() -> None:
    rejected = PodFacts("slot-a", terminated=True, reason="OutOfcpu")
    planned = plan("slot", replace(STORED, pods=(rejected,)))
    assert planned.actions == (DeletePod(rejected),) and planned.retry_after and planned.then is None
    gone = replace(STORED, warm_pods=(FREE,), backoff_seconds={"slot": 20.0})
    planned = plan("slot", gone)
    assert planned.actions == () and planned.requeue_after == 20.0
    assert planned.finding and planned.finding.reason == Reason.WAITING_FOR_SLOT
    reported = Finding(Reason.POD_REJECTED, "why")
    branch = replace(COPY, node=BranchNode(postgres=reported))
    assert BY_NAME["slot"].plan(Desired(PROJECT, branch), gone).finding == reported
    # A failure of another step does not keep it from getting a pod.
    assert plan("slot", replace(gone, backoff_seconds={"volume": 20.0})).actions == (Claim(FREE),)


SERVED = replace(BOUND, marker=OPENED.marker, was_serving=True)
REPORTED = Finding(Reason.RESTART_PENDING, "as before")
SERVING = replace(COPY, node=BranchNode(postgres=REPORTED, pod="slot-a", address="10.0.0.9"))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (SERVED, REPORTED.reason),
        (replace(SERVED, unanswered_long=True), Reason.NOT_ANSWERING),
        (replace(SERVED, refusal=Answer.REFUSES, was_serving=False), Reason.SESSION_FAILED),
        (replace(SERVED, refusal=Answer.REFUSES, missing_superuser=True), Reason.SESSION_FAILED),
        (
            replace(SERVED, refusal=Answer.REFUSES, missing_superuser=True, was_serving=False),
            Reason.START_BLOCKED,
        ),
        (replace(SERVED, refusal=Answer.STARTING), Reason.RECOVERING),
        (replace(SERVED, was_serving=False), Reason.RECOVERING),
        (replace(SERVED, pods=(replace(POD, running=False),)), Reason.WAITING_FOR_SLOT),
        (replace(BOUND, refusal=Answer.REFUSES), Reason.START_BLOCKED),
    ],
)
def test_a_postgres_that_is_not_asked_is_not_one_that_is_down(facts: BranchFacts, reason: Reason) -> None:
    facts = replace(facts, settings_outdated=True, passwords_differ=True)
    planned = BY_NAME["start"].plan(Desired(PROJECT, SERVING), facts)
    assert planned.finding and planned.finding.reason == reason
    assert planned.finding.admits == facts.serves
    if facts.serves:
        # Nothing is planned that has to be done in it.
        assert planned.actions == () and planned.retry_after and planned.awaits is None


def test_what_postgres_answers() -> None:
    assert BOUND.answer is Answer.NO_ANSWER
    assert replace(BOUND, refusal=Answer.STARTING).answer is Answer.STARTING
    assert ACCEPTS.answer is Answer.ACCEPTS


def test_a_change_of_what_is_asked_for_is_another_version() -> None:
    desired = Desired(PROJECT, COPY)
    for other in (
        Desired(replace(PROJECT, generation=2), COPY),
        Desired(PROJECT, replace(COPY, generation=2)),
        Desired(PROJECT, replace(COPY, annotations={names.AGENT_REQUESTED_AT: "1"})),
        Desired(PROJECT, replace(COPY, annotations={names.RESTARTED_AT: "1"})),
        Desired(PROJECT, replace(COPY, annotations={names.ALTER_SYSTEM_RESET_AT: "1"})),
    ):
        assert other.version != desired.version
    # What the agent itself has written is none.
    assert Desired(PROJECT, replace(COPY, node=BranchNode(slot="s"))).version == desired.version


def test_the_requests_that_the_status_repeats_fit_its_fields() -> None:
    long = "1" * 1000
    pod = replace(POD, restarted_at=long, address="10.0.0.9")
    desired = Desired(PROJECT, replace(COPY, annotations={names.ALTER_SYSTEM_RESET_AT: long}))
    marker_after = marker(COPY).with_opened().with_alter_system_reset(desired.alter_system_reset_at)
    stored = Finding(Reason.STORED, "stored")
    node = node_fields(desired, replace(OPENED, pods=(pod,)), marker_after, None, stored, stored)
    assert node["restartedAt"] == node["alterSystemResetAt"] == "1" * 64
    # Without a request there is nothing to repeat.
    node = node_fields(Desired(PROJECT, COPY), OPENED, OPENED.marker, None, stored, stored)
    assert node["restartedAt"] is node["alterSystemResetAt"] is None
