"""Decide which warm pods a node creates and deletes for branches that do not exist yet. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dbranch.agent.slot.pod_spec import SlotClass, slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import REJECTED_WARM_POD_RETRY_SECONDS
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.project import Project


@dataclass(frozen=True)
class WarmPodFacts:
    """A pod that no branch has claimed, and its age in seconds."""

    pod: PodFacts
    age_seconds: float = 0.0


@dataclass(frozen=True)
class WarmFacts:
    """A node's projects and warm pods.

    `node_full`: the node had no room for a branch's pod. `idle_seconds`: by class hash, how long ago a branch used a
    slot of the class, as far as it is known. `rejected`: by class hash, why the API server rejects the class's pods;
    `not_tried`: those of them that are not tried again yet.
    """

    projects: tuple[Project, ...] = ()
    warm_pods: tuple[WarmPodFacts, ...] = ()
    node_full: bool = False
    idle_seconds: Mapping[str, float] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)
    not_tried: frozenset[str] = frozenset()


@dataclass(frozen=True)
class WarmPlan:
    """The pods to delete, then the classes to create a warm pod of; a class is listed once per pod."""

    delete: tuple[PodFacts, ...] = ()
    create: tuple[SlotClass, ...] = ()


def classes_in_use(projects: Sequence[Project]) -> dict[str, SlotClass]:
    """Return `{class hash: class}` of the classes that new branches of running projects use.

    A branch with resources of its own has a class of its own, for which no pod is kept: nobody else could claim it.
    Nor is one for root branches: a project starts its root once, and copies again and again. A project without a
    database uses none: its first pod runs initdb.
    """
    in_use = (p for p in projects if p.running and not p.deleting and p.node.initialized)
    classes = (slot_class_of(project) for project in in_use)
    return {slot_class.class_hash: slot_class for slot_class in classes}


def plan_warm(limit: int, maximum: int, template_hash: str, facts: WarmFacts) -> WarmPlan:
    """Plan towards `limit` warm pods with this template hash for each class in use, `maximum` of all, and no others.

    A terminating pod counts until it is gone, so there are never more than `limit` and `maximum`. A pod that the node
    had no room for counts until it is tried again. On a full node there are none: branches go first.
    """
    no_pods = facts.node_full or limit < 1
    classes = {} if no_pods else classes_in_use(facts.projects)
    desired = _desired_counts(limit, maximum, classes, facts)
    delete: list[PodFacts] = []
    kept, leaving = Counter[str](), Counter[str]()
    # Running pods first, so that a surplus is taken from those that do not run yet.
    for warm in sorted(facts.warm_pods, key=lambda warm: (not warm.pod.running, warm.pod.name)):
        pod = warm.pod
        class_hash = _class_of(pod, classes)
        retry = pod.terminated and warm.age_seconds > REJECTED_WARM_POD_RETRY_SECONDS
        usable = class_hash in classes and pod.template_hash == template_hash and not retry
        if pod.terminating:
            leaving[class_hash] += 1
        elif usable and kept[class_hash] < desired[class_hash]:
            kept[class_hash] += 1
        else:
            leaving[class_hash] += 1
            delete.append(pod)
    create = [
        classes[class_hash]
        for class_hash, count in desired.items()
        if class_hash not in facts.not_tried
        for _ in range(count - kept[class_hash] - leaving[class_hash])
    ]
    room = max(0, maximum - kept.total() - leaving.total())
    return WarmPlan(tuple(delete), tuple(create[:room]))


def _desired_counts(
    limit: int, maximum: int, classes: Mapping[str, SlotClass], facts: WarmFacts
) -> Counter[str]:
    """Return how many pods each class shall have; those used last come first if there cannot be `limit` of each."""
    # A warm pod is created when a branch has claimed the last one, so its age says after a restart when that was.
    ages = dict.fromkeys(classes, math.inf)
    for warm in facts.warm_pods:
        class_hash = _class_of(warm.pod, classes)
        if class_hash in ages and not (warm.pod.terminating or warm.pod.terminated):
            ages[class_hash] = min(ages[class_hash], warm.age_seconds)
    idle = {**ages, **{key: seconds for key, seconds in facts.idle_seconds.items() if key in ages}}
    by_use = sorted(classes, key=lambda class_hash: (idle[class_hash], class_hash))
    each_once = [class_hash for _ in range(limit) for class_hash in by_use]
    return Counter(each_once[:maximum])


def _class_of(pod: PodFacts, classes: Mapping[str, SlotClass]) -> str:
    """Return the hash of the class that the pod is of now; its own if that is none of `classes`.

    A pod that was created by its image's tag is of the class with the digest, once that is known.
    """
    if pod.class_hash in classes:
        return pod.class_hash
    matching = (class_hash for class_hash, slot_class in sorted(classes.items()) if slot_class.includes(pod))
    return next(matching, pod.class_hash)


def rejection_finding(facts: WarmFacts, project: Project) -> Finding | None:
    """Return the finding about the pods of the project's class if the API server rejects them, else None."""
    class_hash = slot_class_of(project).class_hash
    cause = facts.rejected.get(class_hash)
    if cause is None or class_hash not in classes_in_use([project]):
        return None
    subject, advice = f"project {project.name}: ", "; new branches cannot start; correct spec.postgres"
    room = MESSAGE_LIMIT - len(subject) - len(advice)
    shown = cause if len(cause) <= room else f"{cause[: room - 1]}…"
    return Finding(Reason.WARM_SLOTS_REJECTED, f"{subject}{shown}{advice}")


def warm_count(limit: int, template_hash: str, facts: WarmFacts, project: Project) -> int | None:
    """Return how many warm pods a new branch of the project could claim; None if none are kept for it."""
    slot_class = slot_class_of(project)
    if limit < 1 or slot_class.class_hash not in classes_in_use([project]):
        return None
    return sum(is_free(warm.pod, template_hash) and slot_class.includes(warm.pod) for warm in facts.warm_pods)


def free_counts(template_hash: str, facts: WarmFacts) -> dict[tuple[str, str], int]:
    """Return `{(class hash, image): number of warm pods that can be claimed}` for each class in use."""
    classes = classes_in_use(facts.projects)
    free_pods = (warm.pod for warm in facts.warm_pods if is_free(warm.pod, template_hash))
    free = Counter(_class_of(pod, classes) for pod in free_pods)
    return {(class_hash, slot_class.image): free[class_hash] for class_hash, slot_class in classes.items()}


def is_free(pod: PodFacts, template_hash: str) -> bool:
    """True if a branch can claim this warm pod now."""
    return pod.running and not pod.terminating and pod.template_hash == template_hash
