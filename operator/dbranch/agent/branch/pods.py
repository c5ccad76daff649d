"""Which of a branch's pods stays, and which are deleted. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.slot.pod_spec import slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.volume.marker import Marker
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project


@dataclass(frozen=True)
class PodChoice:
    """The pod that stays, if any; those to delete; those that have terminated, which are deleted, too."""

    pod: PodFacts | None
    surplus: tuple[PodFacts, ...]
    terminated: tuple[PodFacts, ...]


def choose_pod(desired: Desired, facts: BranchFacts) -> PodChoice:
    """Choose the pod that stays: the one that has the branch bound; a second one, of a cut-off reconcile, goes."""
    alive = [pod for pod in facts.pods if not pod.terminating and not pod.terminated]
    replaced = [pod for pod in alive if _must_be_replaced(pod, desired, facts)]
    usable = sorted(
        (pod for pod in alive if pod not in replaced),
        key=lambda pod: (pod.name not in facts.bound_slots, pod.name),
    )
    terminated = tuple(pod for pod in facts.pods if pod.terminated)
    surplus = (*(pod for pod in terminated if not pod.terminating), *replaced, *usable[1:])
    return PodChoice(usable[0] if usable else None, surplus, terminated)


def is_beside(
    pod: PodFacts,
    branch: Branch,
    marker: Marker | None,
    bound_slots: Collection[str],
    restore_slots: Collection[str],
) -> bool:
    """True if the pod is that of a restore beside the branch's data, and none of the branch's own.

    What is bound in a slot says whose pod it is, before and after an exchange. `bound_slots`: with the branch's own
    data, `marker` of that; `restore_slots`: with that of a restore.
    """
    if pod.name in bound_slots or pod.name in restore_slots:
        return pod.name in restore_slots
    if pod.restore is None:
        return False
    if marker is None:
        # Not known without a pool. Only what is asked for now can be what lies beside.
        return branch.restore is not None and branch.restore.uid == pod.restore
    return marker.restore is None or marker.restore.uid != pod.restore


def has_other_class(pod: PodFacts, desired: Desired) -> bool:
    """True if the pod was created for another slot class than the branch's present one."""
    return bool(pod.class_hash) and not desired.slot_class.includes_apart_from_priority(pod)


def waits_for_old_image(pod: PodFacts, project: Project) -> bool:
    """True if the pod never ran and waits for another image than the project's: it is replaced."""
    other_image = pod.image not in ("", project.postgres.image, slot_class_of(project).pod_image)
    return other_image and not pod.running and not pod.terminated and pod.restarts == 0


def reset_is_due(desired: Desired, facts: BranchFacts) -> bool:
    """True if a request to undo ALTER SYSTEM was not obeyed yet in the branch's data."""
    requested_at = "" if desired.awaits_restore else desired.alter_system_reset_at
    return bool(requested_at) and facts.marker is not None and facts.marker.alter_system_reset != requested_at


def _must_be_replaced(pod: PodFacts, desired: Desired, facts: BranchFacts) -> bool:
    """True if a restart was requested that the pod does not serve, or if its Postgres cannot start.

    Only without a Postgres ALTER SYSTEM can be undone, so the pod that has the branch bound goes for that.
    """
    restarted_at = desired.branch.annotations.get(names.RESTARTED_AT)
    if restarted_at and pod.restarted_at != restarted_at and not desired.awaits_restore:
        return True
    if reset_is_due(desired, facts) and pod.name in facts.bound_slots:
        return True
    blocked = facts.start_blocked_by is not None
    return waits_for_old_image(pod, desired.project) or (blocked and has_other_class(pod, desired))
