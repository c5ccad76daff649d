"""What an agent does about a branch: its spec and what is true of it -> actions and two steps. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from dbranch.agent.pool.space import Space, check_space
from dbranch.agent.slot.pod_spec import slot_class_of
from dbranch.agent.slot.pod_status import PodFacts, pod_finding
from dbranch.agent.volume.marker import Marker, NewerMarker
from dbranch.api import names
from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import Project


@dataclass(frozen=True)
class BranchFacts:
    """A branch as its agent finds it.

    `marker` is there once the branch is stored; `retained` is the UID under which a pool that was taken over
    holds its data. `pods` are its Postgres pods, `initdb` the one-shot pod;
    `waiting` the slots of its class that are free and run, looked for only where it has no pod;
    `bound` the slots in which its subvolume (or initdb area) is bound now. `accepting` is the version of
    the Postgres that answers in the bound slot, `pending` the names of its settings that wait for a restart.
    `refused`: why the waiting script of the bound slot does not start Postgres; `unseen`: it does not see what
    is bound there. `initdb_done`: the area holds a whole database. `newer`: a newer release wrote its data.
    """

    pool_mounted: bool
    space: Space
    marker: Marker | None = None
    pods: tuple[PodFacts, ...] = ()
    waiting: tuple[PodFacts, ...] = ()
    initdb: PodFacts | None = None
    initdb_done: bool = False
    bound: tuple[str, ...] = ()
    accepting: str | None = None
    pending: tuple[str, ...] = ()
    refused: str | None = None
    unseen: bool = False
    retained: str | None = None
    newer: NewerMarker | None = None


@dataclass(frozen=True)
class DeletePod:
    pod: PodFacts


@dataclass(frozen=True)
class RemoveSlot:
    slot: str


@dataclass(frozen=True)
class CreateInitdbArea:
    """A fresh area, bound into a slot of its own."""

    slot: str


@dataclass(frozen=True)
class CreateInitdbPod:
    slot: str


@dataclass(frozen=True)
class PromoteInitdb:
    """What initdb made becomes the root branch; the project is told that it is initialized."""


@dataclass(frozen=True)
class Claim:
    """The waiting pod becomes the branch's; where another branch has it by now, it is all looked at again."""

    pod: PodFacts


@dataclass(frozen=True)
class CreatePod:
    """The slot's directory, then its pod."""

    slot: str


@dataclass(frozen=True)
class TakeSnapshot:
    source_uid: str


@dataclass(frozen=True)
class Adopt:
    """What the pool held under another UID is this branch."""

    uid: str


@dataclass(frozen=True)
class Bind:
    slot: str


@dataclass(frozen=True)
class WriteSettings:
    """Settings files as the spec has them, read again by the Postgres that runs."""

    slot: str


@dataclass(frozen=True)
class SetPassword:
    """The owner's new password, in the Postgres that runs."""

    slot: str


@dataclass(frozen=True)
class AwaitPostgres:
    """A thread waits for the socket, cleans, and tells."""

    slot: str


Action = (
    DeletePod
    | RemoveSlot
    | CreateInitdbArea
    | CreateInitdbPod
    | PromoteInitdb
    | Claim
    | CreatePod
    | TakeSnapshot
    | Adopt
    | Bind
    | WriteSettings
    | SetPassword
    | AwaitPostgres
)


@dataclass(frozen=True)
class BranchPlan:
    """Actions in order, and what is true of storage and Postgres when they are done.

    `postgres` None: nothing to say yet. `retry_after`: seconds, where nobody will send an event.
    """

    actions: tuple[Action, ...]
    storage: Finding
    postgres: Finding | None = None
    retry_after: float | None = None


def plan_branch(project: Project, branch: Branch, facts: BranchFacts) -> BranchPlan:
    """Towards a branch that is stored and, where it is wanted, runs in one slot."""
    who = f"branch {branch.name}"
    wanted = should_run(project, branch)
    gone = {pod.name for pod in facts.pods}
    clean: list[Action] = [RemoveSlot(slot) for slot in facts.bound if slot not in gone]
    ends: list[Action] = [DeletePod(pod) for pod in facts.pods if not pod.terminating]
    if not facts.pool_mounted:
        if not wanted:
            # Also what runs on a pool that was lost: it comes to rest, and the pool can be let go.
            return BranchPlan((*clean, *ends), *_at_rest(branch, who))
        return BranchPlan(
            (), Finding(Reason.CREATING_POOL, f"pool of project {project.name} is not mounted yet")
        )
    if facts.newer:
        unclear = Finding(
            Reason.STORAGE_UNCLEAR,
            f"{who} was written by a newer release of dbranch ({facts.newer}); nothing is touched; "
            f"upgrade the agent of node {project.node_name}",
        )
        if should_run(project, branch):
            return BranchPlan((), unclear)
        return BranchPlan((*clean, *ends), unclear, _at_rest(branch, who)[1])
    if facts.marker is None:
        if branch.node.snapshot_time:
            lost = (
                f"{who} was stored and its subvolume is gone; nothing is made again; look at the node's disk"
            )
            return BranchPlan((), Finding(Reason.DATA_LOST, lost))
        if branch.is_root and facts.retained is None:
            return _plan_initdb(project, branch, facts)
        refused = None if facts.retained else check_space(facts.space, who)
        if refused:
            return BranchPlan((), refused, retry_after=30.0)
    stored = Finding(Reason.STORED, f"{who} is stored in the pool of project {project.name}")
    snapshot: list[Action] = []
    if facts.marker is None and facts.retained:
        snapshot = [Adopt(facts.retained)]
    elif facts.marker is None and branch.source_uid:
        snapshot = [TakeSnapshot(branch.source_uid)]
    if not wanted:
        return BranchPlan((*clean, *snapshot, *ends), *_at_rest(branch, who, stored))
    actions, postgres, retry = _plan_postgres(project, branch, facts, who, snapshot)
    return BranchPlan((*clean, *actions), stored, postgres, retry)


def _at_rest(branch: Branch, who: str, stored: Finding | None = None) -> tuple[Finding, Finding]:
    stopped = Finding(
        Reason.STOPPED, f"{who} is stopped; its data stays; set spec.state to Running to start it"
    )
    if stored is None:
        was = branch.node.storage
        stored = was if was and was.reason == Reason.STORED else stopped
    return stored, stopped


def _never_ran(pod: PodFacts, project: Project) -> bool:
    """Whether the pod waits for an image that is no longer the one: it is made anew."""
    other = pod.image not in ("", project.postgres.image)
    return other and not pod.running and not pod.terminated and pod.restarts == 0


def _is_stale(pod: PodFacts, project: Project, branch: Branch, facts: BranchFacts) -> bool:
    """Whether another pod has to take its place: its Postgres cannot start, or a restart was asked for."""
    asked = branch.annotations.get(names.RESTARTED_AT)
    if asked and pod.restarted_at != asked:
        return True
    other = pod.class_hash not in ("", slot_class_of(project, branch).class_hash)
    return _never_ran(pod, project) or (other and facts.refused is not None)


_INCOMPATIBLE: Final = re.compile(r"data is of PostgreSQL (\d+), image is (\d+)")


def is_final(refused: str | None) -> bool:
    """Whether what the waiting script said will not change by itself."""
    return bool(_INCOMPATIBLE.match(refused or ""))


def _refusal(project: Project, branch: Branch, facts: BranchFacts, who: str) -> Finding | None:
    """Why the script that waits in the slot does not start Postgres, where that is final."""
    found = _INCOMPATIBLE.match(facts.refused or "")
    if not found:
        return None
    text = (
        f"{who} holds data of PostgreSQL {found[1]}, image {project.postgres.image} is PostgreSQL {found[2]}; "
        f"Postgres is not started; set spec.postgres.image to a {found[1]}"
    )
    return Finding(Reason.IMAGE_INCOMPATIBLE, text)


def _accepting(project: Project, branch: Branch, facts: BranchFacts, pod: PodFacts, who: str) -> Finding:
    waits = list(facts.pending)
    if pod.class_hash not in ("", slot_class_of(project, branch).class_hash):
        waits.append("image" if pod.image != project.postgres.image else "resources")
    if waits:
        shown = ", ".join(waits[:5]) + (f" and {len(waits) - 5} more" if len(waits) > 5 else "")
        text = f"{who} runs without its new {shown}; it takes them at its next start; dbranch restart {branch.name}"
        return Finding(Reason.RESTART_PENDING, text)
    return Finding(Reason.ACCEPTING, f"Postgres {facts.accepting} of {who} accepts connections")


def _plan_postgres(
    project: Project, branch: Branch, facts: BranchFacts, who: str, snapshot: list[Action]
) -> tuple[list[Action], Finding, float | None]:
    alive = [pod for pod in facts.pods if not pod.terminating and not pod.terminated]
    misfits = [pod for pod in alive if _is_stale(pod, project, branch, facts)]
    live = [pod for pod in alive if pod not in misfits]
    # One that has the branch bound goes on; a second one (made by a visit that was cut off) goes.
    live.sort(key=lambda pod: (pod.name not in facts.bound, pod.name))
    ends: list[Action] = [DeletePod(pod) for pod in facts.pods if pod.terminated and not pod.terminating]
    ends += [DeletePod(pod) for pod in (*misfits, *live[1:])]
    rejected = next((pod for pod in facts.pods if pod.terminated), None)
    if rejected:
        ended = pod_finding(rejected, who) or Finding(Reason.POD_REJECTED, f"pod {rejected.name} ended")
        return [*snapshot, *ends], ended, 10.0
    if not live:
        if facts.pods:
            ending = f"{who}: its last pod {facts.pods[0].name} is still ending; Postgres starts after it"
            return [*snapshot, *ends], Finding(Reason.WAITING_FOR_SLOT, ending), 1.0
        if facts.waiting:
            # Branches that look at the same moment choose different ones.
            free = min(facts.waiting, key=lambda pod: names.slot_name(branch.uid, pod.name))
            taking = Finding(Reason.RECOVERING, f"Postgres of {who} is starting")
            return [Claim(free), *snapshot, Bind(free.name), AwaitPostgres(free.name)], taking, None
        slot = names.slot_name(branch.uid, branch.node.slot or "")
        waiting = Finding(Reason.WAITING_FOR_SLOT, f"{who}: its pod {slot} is starting")
        return [CreatePod(slot), *snapshot, Bind(slot), AwaitPostgres(slot)], waiting, None
    pod = live[0]
    others = [slot for slot in facts.bound if slot != pod.name]
    if pod.name not in facts.bound:
        if others:
            ending = f"{who}: it is still bound in {others[0]}; Postgres starts in {pod.name} after it"
            return [*snapshot, *ends], Finding(Reason.WAITING_FOR_SLOT, ending), 1.0
        ends += [*snapshot, Bind(pod.name)]
    trouble = pod_finding(pod, who)
    if facts.accepting and facts.marker and facts.marker.cleaned and pod.name in facts.bound:
        has_password = project.password_version in (None, facts.marker.password)
        password: list[Action] = [] if has_password else [SetPassword(pod.name)]
        step = _accepting(project, branch, facts, pod, who)
        return [*ends, WriteSettings(pod.name), *password], step, None
    refused = _refusal(project, branch, facts, who) if pod.name in facts.bound else None
    if refused:
        return ends, refused, None
    if facts.unseen and pod.running and pod.name in facts.bound:
        text = (
            f"{who}: its data is bound and does not reach pod {pod.name}; Postgres is not started; "
            "restart the node's agent, and see that its base directory is mounted with Bidirectional propagation"
        )
        return ends, Finding(Reason.MOUNT_NOT_PROPAGATED, text), 30.0
    if not trouble:
        if pod.running:
            trouble = Finding(Reason.RECOVERING, f"Postgres of {who} is starting")
        else:
            trouble = Finding(Reason.WAITING_FOR_SLOT, f"{who}: its pod {pod.name} is starting")
    settle: list[Action] = [WriteSettings(pod.name)] if facts.marker else []
    return [*ends, *settle, AwaitPostgres(pod.name)], trouble, None


def _plan_initdb(project: Project, branch: Branch, facts: BranchFacts) -> BranchPlan:
    """initdb runs once, in a fresh area, under a pod; a retry waits until the old pod is gone."""
    who = f"branch {branch.name}"
    slot = names.initdb_pod_name(project.uid)
    making = Finding(Reason.INITIALIZING, f"initdb runs for project {project.name} in pod {slot}")
    pod = facts.initdb
    if pod is None:
        clean: tuple[Action, ...] = (RemoveSlot(slot),) if slot in facts.bound else ()
        if facts.initdb_done:
            # The next visit finds the branch stored and starts it.
            return BranchPlan((*clean, PromoteInitdb()), making, retry_after=0.05)
        if project.node.initialized:
            lost = (
                f"{who}: project {project.name} was initialized and its data is gone; nothing is made again"
            )
            return BranchPlan((), Finding(Reason.DATA_LOST, lost))
        return BranchPlan((*clean, CreateInitdbArea(slot), CreateInitdbPod(slot)), making)
    if pod.terminating:
        return BranchPlan((), making, retry_after=0.3)
    if _never_ran(pod, project):
        return BranchPlan((DeletePod(pod),), making, retry_after=0.3)
    if pod.terminated:
        if facts.initdb_done:
            return BranchPlan((DeletePod(pod),), making, retry_after=0.1)
        said = pod.message or pod.reason or "no word"
        failed = f"initdb of project {project.name} failed: {said}; it is tried again"
        return BranchPlan((DeletePod(pod),), Finding(Reason.INITDB_FAILED, failed), retry_after=10.0)
    return BranchPlan((), making, pod_finding(pod, who))
