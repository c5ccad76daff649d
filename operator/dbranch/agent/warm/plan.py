"""Decide which warm pods a node creates and deletes for branches that do not exist yet. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dbranch.agent.slot.pod_spec import SlotClass, slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import REJECTED_WARM_POD_RETRY_SECONDS
from dbranch.api.branch import Branch, should_run
from dbranch.api.project import Project


@dataclass(frozen=True)
class WarmPodFacts:
    """A pod that no branch has claimed, and its age in seconds."""

    pod: PodFacts
    age_seconds: float = 0.0


@dataclass(frozen=True)
class WarmFacts:
    """A node's projects, branches and warm pods. `node_full`: the node had no room for a branch's pod."""

    projects: tuple[Project, ...] = ()
    branches: tuple[Branch, ...] = ()
    warm_pods: tuple[WarmPodFacts, ...] = ()
    node_full: bool = False


@dataclass(frozen=True)
class WarmPlan:
    """The pods to delete, then the classes to create a warm pod of; a class is listed once per pod."""

    delete: tuple[PodFacts, ...] = ()
    create: tuple[SlotClass, ...] = ()


def classes_in_use(projects: Sequence[Project], branches: Sequence[Branch]) -> dict[str, SlotClass]:
    """Return `{class hash: class}` of the classes that running branches and new branches of running projects use.

    A project without a database uses none: its first pod runs initdb. The class of root branches is not kept warm: a
    project starts its root once, and copies again and again.
    """
    classes: dict[str, SlotClass] = {}
    running_projects = {
        (project.namespace, project.name): project
        for project in projects
        if project.running and not project.deleting and project.node.initialized
    }
    for project in running_projects.values():
        slot_class = slot_class_of(project)
        classes.setdefault(slot_class.class_hash, slot_class)
    for branch in branches:
        owner = running_projects.get((branch.namespace, branch.project))
        if owner and should_run(owner, branch) and not (branch.deleting or branch.is_root):
            slot_class = slot_class_of(owner, branch)
            classes.setdefault(slot_class.class_hash, slot_class)
    return classes


def plan_warm(limit: int, template_hash: str, facts: WarmFacts) -> WarmPlan:
    """Plan towards `limit` warm pods with this template hash for each class in use, and no others.

    A terminating pod counts until it is gone, so there are never more than `limit`. A pod that the node had no
    room for counts until it is tried again. On a full node there are none: branches go first.
    """
    no_pods = facts.node_full or limit < 1
    classes = {} if no_pods else classes_in_use(facts.projects, facts.branches)
    delete: list[PodFacts] = []
    kept, leaving = Counter[str](), Counter[str]()
    # Running pods first, so that a surplus is taken from those that do not run yet.
    for warm in sorted(facts.warm_pods, key=lambda warm: (not warm.pod.running, warm.pod.name)):
        pod = warm.pod
        class_hash = pod.class_hash
        retry = pod.terminated and warm.age_seconds > REJECTED_WARM_POD_RETRY_SECONDS
        usable = class_hash in classes and pod.template_hash == template_hash and not retry
        if pod.terminating:
            leaving[class_hash] += 1
        elif usable and kept[class_hash] < limit:
            kept[class_hash] += 1
        else:
            leaving[class_hash] += 1
            delete.append(pod)
    create = [
        slot_class
        for class_hash, slot_class in classes.items()
        for _ in range(limit - kept[class_hash] - leaving[class_hash])
    ]
    return WarmPlan(tuple(delete), tuple(create))


def warm_count(limit: int, template_hash: str, facts: WarmFacts, project: Project) -> int | None:
    """Return how many warm pods a new branch of the project could claim; None if none are kept for it."""
    class_hash = slot_class_of(project).class_hash
    if limit < 1 or class_hash not in classes_in_use([project], ()):
        return None
    return sum(
        is_free(warm.pod, template_hash) and warm.pod.class_hash == class_hash for warm in facts.warm_pods
    )


def free_counts(template_hash: str, facts: WarmFacts) -> dict[tuple[str, str], int]:
    """Return `{(class hash, image): number of warm pods that can be claimed}` for each class in use."""
    free = Counter(warm.pod.class_hash for warm in facts.warm_pods if is_free(warm.pod, template_hash))
    classes = classes_in_use(facts.projects, facts.branches)
    return {(class_hash, slot_class.image): free[class_hash] for class_hash, slot_class in classes.items()}


def is_free(pod: PodFacts, template_hash: str) -> bool:
    """True if a branch can claim this warm pod now."""
    return pod.running and not pod.terminating and pod.template_hash == template_hash
