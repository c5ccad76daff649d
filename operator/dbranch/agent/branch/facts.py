"""What a branch should be, and what is true of it on its node. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dbranch.agent.pool.space import Space
from dbranch.agent.postgres.answer import Answer, RejectedSetting
from dbranch.agent.slot.pod_spec import SlotClass, slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.volume.brake import Brake
from dbranch.agent.volume.marker import BranchNames, Marker, NewerMarker
from dbranch.agent.volume.settings import Settings
from dbranch.api import names
from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import Finding
from dbranch.api.enums import NodeRestoreState
from dbranch.api.project import Project
from dbranch.api.restore import BranchRestore


@dataclass(frozen=True)
class Desired:
    """A project and one of its branches as they should be, and as their status reported them last.

    `restore`: what is meant is the data that this restore prepares beside the branch's own. It runs, whether the
    branch does or not, and admits no user.
    """

    project: Project
    branch: Branch
    restore: BranchRestore | None = None

    @property
    def subject(self) -> str:
        """The branch in messages."""
        return f"branch {self.branch.name}"

    @property
    def runs(self) -> bool:
        """True if the branch's Postgres is to run."""
        return self.restore is not None or should_run(self.project, self.branch)

    @property
    def awaits_restore(self) -> bool:
        """True if a restore is going to exchange the branch's data: what a restart would do waits for that."""
        order, answer = self.branch.restore, self.branch.node.restore
        if order is None:
            return False
        before = (NodeRestoreState.PREPARING, NodeRestoreState.PREPARED)
        return answer is None or answer.uid != order.uid or answer.state in before

    @property
    def next_slot(self) -> str:
        """The name of the slot that a new pod gets."""
        attempt = self.restore.uid if self.restore else self.branch.node.slot or ""
        return names.slot_name(self.branch.uid, attempt)

    @property
    def reset_command(self) -> str:
        """The command that undoes what ALTER SYSTEM has set, in messages."""
        return f"dbranch restart {self.branch.name} --reset-alter-system"

    @property
    def slot_class(self) -> SlotClass:
        """The class that the branch's slot is to have."""
        return slot_class_of(self.project, self.branch)

    @property
    def settings(self) -> Settings:
        """What the branch's settings files are rendered from."""
        project, branch = self.project, self.branch
        return Settings(
            names.branch_port(branch.uid),
            {**project.postgres.parameters, **branch.parameters},
            BranchNames(project.namespace, project.name, branch.name),
            frozenset(branch.parameters),
        )

    @property
    def alter_system_reset_at(self) -> str:
        """The request to undo ALTER SYSTEM, cut to what its status field holds; empty if there is none."""
        return self.branch.annotations.get(names.ALTER_SYSTEM_RESET_AT, "")[: names.MAX_TIME_LENGTH]

    def roles(self, superuser: str) -> tuple[str, ...]:
        """The roles whose passwords are the project's, in the order of its password's version.

        `superuser`: of the branch's data; it may be the application's role itself.
        """
        return tuple(dict.fromkeys((self.project.postgres.user, superuser)))

    @property
    def version(self) -> tuple[object, ...]:
        """What changes whenever somebody asks for something else, or for another try."""
        annotations = self.branch.annotations
        requests = (names.AGENT_REQUESTED_AT, names.RESTARTED_AT, names.ALTER_SYSTEM_RESET_AT)
        return self.branch.generation, self.project.generation, *map(annotations.get, requests)


@dataclass(frozen=True)
class BranchFacts:
    """What is true of a branch on its node.

    `marker`: of its subvolume, None before it is stored. `retained_uid`: the UID under which an adopted pool holds
    its data. `source_problem`: why its source cannot be copied, looked up only before the branch is stored. `newer`:
    a newer release wrote its data.

    `pods`: its Postgres pods, `stray_pods`: those of a restore beside it in which nothing is bound. `warm_pods`: pods
    of its class that it can claim; read only if it has no pod.
    `initdb_pod`: the one-shot pod of a root branch; `initdb_done`: the initdb area holds a complete database.
    `backoff_seconds`: by step, for how long it creates no pod, since its last one failed.

    `bound_slots`: the slots in which its subvolume or initdb area is bound. `start_blocked_by`: why the script in
    the bound slot does not start Postgres; `bind_not_propagated`: the script does not see what is bound there.

    `server_version`: of the Postgres in the bound slot that accepted the agent's session, None if none did; then
    `refusal` says what it does instead, `server_error` why, and `missing_superuser` that it has no role for the
    agent to log in. `was_serving`: users reached the Postgres in this pod's container when it was asked last;
    `unanswered_long`: it has not answered several times since. `pending_settings`: the names of its settings that
    need a restart. `rejected_settings`: what it does not take of its settings files. `altered`: it does not accept
    the agent's session, and ALTER SYSTEM has set something in it. `settings_outdated`: its
    settings files are not as the spec asks, or Postgres has not loaded them yet. `hba_closed`: its pg_hba.conf admits
    nobody, though it was opened: a restore was cut off.
    `outdated_collations`: what the running image sorts otherwise than the one that built the indexes; None unless the
    marker records another image than the pod's. `passwords_differ`: a role has another password than the project's
    Secrets say. `missing_role`: the application's, if Postgres does not have it. `brake`: what it may not do, since
    it fills the node's disk.
    """

    pool_mounted: bool
    space: Space
    marker: Marker | None = None
    pods: tuple[PodFacts, ...] = ()
    stray_pods: tuple[PodFacts, ...] = ()
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
    source_problem: Finding | None = None
    backoff_seconds: Mapping[str, float] = field(default_factory=dict)
    refusal: Answer = Answer.NO_ANSWER
    server_error: str = ""
    was_serving: bool = False
    unanswered_long: bool = False
    rejected_settings: tuple[RejectedSetting, ...] = ()
    altered: bool = False
    missing_superuser: bool = False
    outdated_collations: tuple[str, ...] | None = None
    settings_outdated: bool = False
    hba_closed: bool = False
    passwords_differ: bool = False
    missing_role: str | None = None
    brake: Brake | None = None

    @property
    def answer(self) -> Answer:
        """What Postgres answers."""
        return Answer.ACCEPTS if self.server_version else self.refusal

    @property
    def serves(self) -> bool:
        """True if users reach its Postgres as far as is known: a look that failed does not say that it is down."""
        pod = self.live_pod
        if pod is None or self.marker is None or not self.marker.opened:
            return False
        if self.answer is Answer.ACCEPTS:
            return True
        if not pod.running or self.start_blocked_by or self.bind_not_propagated:
            return False
        refuses = self.answer is Answer.REFUSES
        # One without the agent's role may be of a pool that was adopted just now, with another user.
        if refuses and not self.missing_superuser:
            return True
        return self.was_serving and (refuses or self.answer is Answer.NO_ANSWER)

    @property
    def live_pod(self) -> PodFacts | None:
        """The branch's pod that is neither terminating nor terminated; if there are several, the one bound."""
        live = [pod for pod in self.pods if not pod.terminating and not pod.terminated]
        return min(live, key=lambda pod: (pod.name not in self.bound_slots, pod.name), default=None)
