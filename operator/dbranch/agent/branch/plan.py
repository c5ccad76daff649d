"""Plan the actions that bring a branch towards its spec, and the findings for its status. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from dbranch.agent.pool.space import Space, check_space
from dbranch.agent.slot.pod_spec import slot_class_of
from dbranch.agent.slot.pod_status import PodFacts, pod_finding
from dbranch.agent.timing import (
    INITDB_DONE_POLL_SECONDS,
    INITDB_PROMOTED_RETRY_SECONDS,
    INITDB_RETRY_SECONDS,
    MOUNT_PROPAGATION_RETRY_SECONDS,
    NO_SPACE_RETRY_SECONDS,
    POD_DELETION_POLL_SECONDS,
    PREVIOUS_POD_POLL_SECONDS,
    REJECTED_POD_RETRY_SECONDS,
)
from dbranch.agent.volume.marker import Marker, NewerMarker
from dbranch.api import names
from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import Project

# How many settings the message of RestartPending names.
_SHOWN_SETTINGS: Final = 5


@dataclass(frozen=True)
class BranchFacts:
    """What is true of a branch on its node.

    `marker`: of its subvolume, None before it is stored. `retained_uid`: the UID under which an adopted pool holds
    its data. `pods`: its Postgres pods. `warm_pods`: pods of its class that it can claim; read only if it has no
    pod. `initdb_pod`: the one-shot pod of a root branch; `initdb_done`: the initdb area holds a complete database.
    `bound_slots`: the slots in which its subvolume or initdb area is bound. `server_version`: of the Postgres that
    accepts connections in the bound slot, None while none does; `pending_settings`: the names of its settings that
    need a restart. `start_blocked_by`: why the script in the bound slot does not start Postgres;
    `bind_not_propagated`: the script does not see what is bound there. `newer`: a newer release wrote its data.
    """

    pool_mounted: bool
    space: Space
    marker: Marker | None = None
    pods: tuple[PodFacts, ...] = ()
    warm_pods: tuple[PodFacts, ...] = ()
    initdb_pod: PodFacts | None = None
    initdb_done: bool = False
    bound_slots: tuple[str, ...] = ()
    server_version: str | None = None
    pending_settings: tuple[str, ...] = ()
    start_blocked_by: str | None = None
    bind_not_propagated: bool = False
    retained_uid: str | None = None
    newer: NewerMarker | None = None


@dataclass(frozen=True)
class DeletePod:
    """Delete one of the branch's pods."""

    pod: PodFacts


@dataclass(frozen=True)
class RemoveSlot:
    """Unbind a slot and delete its directory."""

    slot: str


@dataclass(frozen=True)
class CreateInitdbArea:
    """Create an empty initdb area and bind it into the initdb pod's slot."""

    slot: str


@dataclass(frozen=True)
class CreateInitdbPod:
    """Create the pod that runs initdb in the area."""

    slot: str


@dataclass(frozen=True)
class PromoteInitdb:
    """Make the initdb area the root branch's subvolume and write status.node.initialized of the project."""


@dataclass(frozen=True)
class Claim:
    """Give a warm pod to the branch; if another branch has claimed it, the branch is planned again without it."""

    pod: PodFacts


@dataclass(frozen=True)
class CreatePod:
    """Create a slot's directory, then its pod."""

    slot: str


@dataclass(frozen=True)
class TakeSnapshot:
    """Take a snapshot of the source's subvolume."""

    source_uid: str


@dataclass(frozen=True)
class Adopt:
    """Make the data that the pool holds under another UID this branch's."""

    uid: str


@dataclass(frozen=True)
class Bind:
    """Bind the branch's subvolume into a slot."""

    slot: str


@dataclass(frozen=True)
class WriteSettings:
    """Write the settings files from the spec; reload the running Postgres if they have changed."""

    slot: str


@dataclass(frozen=True)
class SetPassword:
    """Set the owner's password in the running Postgres."""

    slot: str


@dataclass(frozen=True)
class AwaitPostgres:
    """Wait for Postgres to accept connections, clean it, open it to users and report it."""

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
    """Actions in order, and the findings about storage and Postgres once they are done.

    `postgres` None: the status keeps what it says. `retry_after`: seconds after which to reconcile again, if no
    event will come.
    """

    actions: tuple[Action, ...]
    storage: Finding
    postgres: Finding | None = None
    retry_after: float | None = None


def plan_branch(project: Project, branch: Branch, facts: BranchFacts) -> BranchPlan:
    """Plan towards a branch that is stored and, if it should run, runs in exactly one slot."""
    subject = f"branch {branch.name}"
    run = should_run(project, branch)
    pod_names = {pod.name for pod in facts.pods}
    # A slot is removed only when its pod is gone.
    remove_slots: list[Action] = [RemoveSlot(slot) for slot in facts.bound_slots if slot not in pod_names]
    delete_pods: list[Action] = [DeletePod(pod) for pod in facts.pods if not pod.terminating]
    if not facts.pool_mounted:
        if not run:
            # Also stop what runs on a lost pool: then the pool can be detached.
            return BranchPlan((*remove_slots, *delete_pods), *_stopped_findings(branch, subject))
        return BranchPlan(
            (), Finding(Reason.CREATING_POOL, f"pool of project {project.name} is not mounted yet")
        )
    if facts.newer:
        unclear = Finding(
            Reason.STORAGE_UNCLEAR,
            f"{subject} was written by a newer release of dbranch ({facts.newer}); nothing is touched; "
            f"upgrade the agent of node {project.node_name}",
        )
        if run:
            return BranchPlan((), unclear)
        return BranchPlan((*remove_slots, *delete_pods), unclear, _stopped_findings(branch, subject)[1])
    if facts.marker is None:
        if branch.node.snapshot_time:
            lost = f"{subject} was stored and its subvolume is gone; it is not created again; check the node's disk"
            return BranchPlan((), Finding(Reason.DATA_LOST, lost))
        if branch.is_root and facts.retained_uid is None:
            return _plan_initdb(project, branch, facts)
        no_space = None if facts.retained_uid else check_space(facts.space, subject)
        if no_space:
            return BranchPlan((), no_space, retry_after=NO_SPACE_RETRY_SECONDS)
    stored = Finding(Reason.STORED, f"{subject} is stored in the pool of project {project.name}")
    store: list[Action] = []
    if facts.marker is None and facts.retained_uid:
        store = [Adopt(facts.retained_uid)]
    elif facts.marker is None and branch.source_uid:
        store = [TakeSnapshot(branch.source_uid)]
    if not run:
        findings = _stopped_findings(branch, subject, stored)
        return BranchPlan((*remove_slots, *store, *delete_pods), *findings)
    actions, postgres, retry_after = _plan_postgres(project, branch, facts, subject, store)
    return BranchPlan((*remove_slots, *actions), stored, postgres, retry_after)


def _stopped_findings(branch: Branch, subject: str, stored: Finding | None = None) -> tuple[Finding, Finding]:
    """Return the findings about storage and Postgres of a stopped branch; `stored` None: its pool is not mounted."""
    stopped = Finding(
        Reason.STOPPED, f"{subject} is stopped; its data stays; set spec.state to Running to start it"
    )
    if stored is None:
        reported = branch.node.storage
        stored = reported if reported and reported.reason == Reason.STORED else stopped
    return stored, stopped


def _has_other_class(pod: PodFacts, project: Project, branch: Branch) -> bool:
    """True if the pod was created for another slot class than the branch's present one."""
    return pod.class_hash not in ("", slot_class_of(project, branch).class_hash)


def _waits_for_old_image(pod: PodFacts, project: Project) -> bool:
    """True if the pod never ran and waits for another image than the project's: it is replaced."""
    other_image = pod.image not in ("", project.postgres.image)
    return other_image and not pod.running and not pod.terminated and pod.restarts == 0


def _must_be_replaced(pod: PodFacts, project: Project, branch: Branch, facts: BranchFacts) -> bool:
    """True if a restart was requested that the pod does not serve, or if its Postgres cannot start."""
    restarted_at = branch.annotations.get(names.RESTARTED_AT)
    if restarted_at and pod.restarted_at != restarted_at:
        return True
    blocked = facts.start_blocked_by is not None
    return _waits_for_old_image(pod, project) or (blocked and _has_other_class(pod, project, branch))


_INCOMPATIBLE: Final = re.compile(r"data is of PostgreSQL (\d+), image is (\d+)")


def is_final(start_blocked_by: str | None) -> bool:
    """True if the reason why a slot's script does not start Postgres cannot change by itself.

    >>> is_final("data is of PostgreSQL 16, image is 17"), is_final("no lock file"), is_final(None)
    (True, False, False)
    """
    return bool(_INCOMPATIBLE.match(start_blocked_by or ""))


def _incompatible_finding(project: Project, facts: BranchFacts, subject: str) -> Finding | None:
    """Return the finding if the image has another major version than the data, else None."""
    match = _INCOMPATIBLE.match(facts.start_blocked_by or "")
    if not match:
        return None
    text = (
        f"{subject} holds data of PostgreSQL {match[1]}, image {project.postgres.image} is PostgreSQL {match[2]}; "
        f"Postgres is not started; set spec.postgres.image to a {match[1]}"
    )
    return Finding(Reason.IMAGE_INCOMPATIBLE, text)


def _accepting_finding(
    project: Project, branch: Branch, facts: BranchFacts, pod: PodFacts, subject: str
) -> Finding:
    pending = list(facts.pending_settings)
    if _has_other_class(pod, project, branch):
        pending.append("image" if pod.image != project.postgres.image else "resources")
    if pending:
        shown = ", ".join(pending[:_SHOWN_SETTINGS])
        if len(pending) > _SHOWN_SETTINGS:
            shown += f" and {len(pending) - _SHOWN_SETTINGS} more"
        text = (
            f"{subject} runs without its new {shown}; they take effect at its next start; "
            f"run dbranch restart {branch.name}"
        )
        return Finding(Reason.RESTART_PENDING, text)
    return Finding(Reason.ACCEPTING, f"Postgres {facts.server_version} of {subject} accepts connections")


def _plan_postgres(
    project: Project, branch: Branch, facts: BranchFacts, subject: str, store: list[Action]
) -> tuple[list[Action], Finding, float | None]:
    """Return the actions (`store` among them), the finding and `retry_after` for a branch that should run."""
    alive = [pod for pod in facts.pods if not pod.terminating and not pod.terminated]
    replaced = [pod for pod in alive if _must_be_replaced(pod, project, branch, facts)]
    # The pod that has the branch bound stays; a second one, of a reconcile that was cut off, is deleted.
    usable = sorted(
        (pod for pod in alive if pod not in replaced),
        key=lambda pod: (pod.name not in facts.bound_slots, pod.name),
    )
    terminated = [pod for pod in facts.pods if pod.terminated]
    delete_pods: list[Action] = [DeletePod(pod) for pod in terminated if not pod.terminating]
    delete_pods += [DeletePod(pod) for pod in (*replaced, *usable[1:])]
    if terminated:
        rejected = terminated[0]
        finding = pod_finding(rejected, subject) or Finding(
            Reason.POD_REJECTED, f"pod {rejected.name} has terminated"
        )
        return [*store, *delete_pods], finding, REJECTED_POD_RETRY_SECONDS
    if not usable:
        if facts.pods:
            text = f"{subject}: its previous pod {facts.pods[0].name} is still terminating; Postgres starts after it"
            finding = Finding(Reason.WAITING_FOR_SLOT, text)
            return [*store, *delete_pods], finding, PREVIOUS_POD_POLL_SECONDS
        if facts.warm_pods:
            # Branches that are planned at the same moment choose different pods.
            warm_pod = min(facts.warm_pods, key=lambda pod: names.slot_name(branch.uid, pod.name))
            slot = warm_pod.name
            finding = Finding(Reason.RECOVERING, f"Postgres of {subject} is starting")
            return [Claim(warm_pod), *store, Bind(slot), AwaitPostgres(slot)], finding, None
        slot = names.slot_name(branch.uid, branch.node.slot or "")
        finding = Finding(Reason.WAITING_FOR_SLOT, f"{subject}: its pod {slot} is starting")
        return [CreatePod(slot), *store, Bind(slot), AwaitPostgres(slot)], finding, None
    pod = usable[0]
    bound_here = pod.name in facts.bound_slots
    other_slots = [slot for slot in facts.bound_slots if slot != pod.name]
    if not bound_here and other_slots:
        text = f"{subject} is still bound in slot {other_slots[0]}; Postgres starts in {pod.name} after that"
        finding = Finding(Reason.WAITING_FOR_SLOT, text)
        return [*store, *delete_pods], finding, PREVIOUS_POD_POLL_SECONDS
    actions = delete_pods if bound_here else [*delete_pods, *store, Bind(pod.name)]
    if bound_here:
        if facts.server_version and facts.marker and facts.marker.cleaned:
            has_password = project.password_version in (None, facts.marker.password)
            password: list[Action] = [] if has_password else [SetPassword(pod.name)]
            finding = _accepting_finding(project, branch, facts, pod, subject)
            return [*actions, WriteSettings(pod.name), *password], finding, None
        incompatible = _incompatible_finding(project, facts, subject)
        if incompatible:
            return actions, incompatible, None
        if facts.bind_not_propagated and pod.running:
            text = (
                f"{subject}: its data is bound and does not reach pod {pod.name}; Postgres is not started; restart "
                "the node's agent, and check that its base directory is mounted with Bidirectional propagation"
            )
            finding = Finding(Reason.MOUNT_NOT_PROPAGATED, text)
            return actions, finding, MOUNT_PROPAGATION_RETRY_SECONDS
    if pod.running:
        starting = Finding(Reason.RECOVERING, f"Postgres of {subject} is starting")
    else:
        starting = Finding(Reason.WAITING_FOR_SLOT, f"{subject}: its pod {pod.name} is starting")
    settings: list[Action] = [WriteSettings(pod.name)] if facts.marker else []
    finding = pod_finding(pod, subject) or starting
    return [*actions, *settings, AwaitPostgres(pod.name)], finding, None


def _plan_initdb(project: Project, branch: Branch, facts: BranchFacts) -> BranchPlan:
    """Plan initdb, which runs once, in an empty area, in a pod of its own; a retry waits until that pod is gone."""
    subject = f"branch {branch.name}"
    slot = names.initdb_pod_name(project.uid)
    initializing = Finding(Reason.INITIALIZING, f"initdb runs for project {project.name} in pod {slot}")
    pod = facts.initdb_pod
    if pod is None:
        remove_slot: tuple[Action, ...] = (RemoveSlot(slot),) if slot in facts.bound_slots else ()
        if facts.initdb_done:
            # The next reconcile finds the branch stored and starts it.
            return BranchPlan(
                (*remove_slot, PromoteInitdb()), initializing, retry_after=INITDB_PROMOTED_RETRY_SECONDS
            )
        if project.node.initialized:
            lost = (
                f"{subject}: project {project.name} was initialized and its data is gone; "
                "initdb is not run again; check the node's disk"
            )
            return BranchPlan((), Finding(Reason.DATA_LOST, lost))
        return BranchPlan((*remove_slot, CreateInitdbArea(slot), CreateInitdbPod(slot)), initializing)
    if pod.terminating:
        return BranchPlan((), initializing, retry_after=POD_DELETION_POLL_SECONDS)
    if _waits_for_old_image(pod, project):
        return BranchPlan((DeletePod(pod),), initializing, retry_after=POD_DELETION_POLL_SECONDS)
    if pod.terminated:
        if facts.initdb_done:
            return BranchPlan((DeletePod(pod),), initializing, retry_after=INITDB_DONE_POLL_SECONDS)
        cause = pod.message or pod.reason or "no message"
        text = f"initdb of project {project.name} failed: {cause}; it is tried again"
        failed = Finding(Reason.INITDB_FAILED, text)
        return BranchPlan((DeletePod(pod),), failed, retry_after=INITDB_RETRY_SECONDS)
    return BranchPlan((), initializing, pod_finding(pod, subject))
