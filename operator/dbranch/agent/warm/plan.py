"""Decide which warm pods a node creates and deletes for branches that do not exist yet. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dbranch.agent.slot.pod_spec import SlotClass, slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import REJECTED_WARM_POD_RETRY_SECONDS, WARM_POD_START_SECONDS
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.project import Project

# How many warm pods start at a time, so that those of a refill take nothing from the branches that start beside them.
STARTING_WARM_PODS: Final = 2


@dataclass(frozen=True)
class WarmPodFacts:
    """A pod that no branch has claimed, and its age in seconds."""

    pod: PodFacts
    age_seconds: float = 0.0


@dataclass(frozen=True)
class WarmFacts:
    """A node's projects and warm pods.

    `node_full`: the node had no room for a branch's pod. `idle_seconds`: by class hash, how long ago a branch used a
    slot of the class, as far as it is known. `targets`: by class hash, how many pods a class shall have where that is
    not the minimum. `rejected`: by class hash, why the API server rejects the class's pods;
    `not_tried`: those of them that are not tried again yet.
    """

    projects: tuple[Project, ...] = ()
    warm_pods: tuple[WarmPodFacts, ...] = ()
    node_full: bool = False
    idle_seconds: Mapping[str, float] = field(default_factory=dict)
    targets: Mapping[str, int] = field(default_factory=dict)
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
    """Plan towards the target of each class in use (`limit` by default) of warm pods with this template hash.

    There are `maximum` of all classes at most, and no others. A terminating pod counts until it is gone, so there are
    never more. A pod that the node
    had no room for counts until it is tried again. On a full node there are none: branches go first.
    """
    classes = {} if facts.node_full or limit < 1 else classes_in_use(facts.projects)
    desired = target_counts(limit, maximum, facts)
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


def next_batch(create: Sequence[SlotClass], facts: WarmFacts) -> tuple[SlotClass, ...]:
    """Return which of the pods to create come now: so many that few start at a time, on the node and of each class.

    A class whose pods do not start, whatever the cause, gets no more of them, and holds up no other class.
    """
    classes = classes_in_use(facts.projects)
    starting = [warm for warm in facts.warm_pods if not (warm.pod.running or warm.pod.terminating)]
    of_class = Counter(_class_of(warm.pod, classes) for warm in starting)
    room = STARTING_WARM_PODS - count_starting(facts)
    batch: list[SlotClass] = []
    for slot_class in create:
        if len(batch) < room and of_class[slot_class.class_hash] < STARTING_WARM_PODS:
            batch.append(slot_class)
            of_class[slot_class.class_hash] += 1
    return tuple(batch)


def count_starting(facts: WarmFacts) -> int:
    """Return how many warm pods are about to run, without those that have taken too long."""
    return sum(
        not (warm.pod.running or warm.pod.terminating or warm.pod.terminated)
        and warm.age_seconds < WARM_POD_START_SECONDS
        for warm in facts.warm_pods
    )


def target_counts(limit: int, maximum: int, facts: WarmFacts) -> Counter[str]:
    """Return how many pods each class shall have; those used last come first if there cannot be as many of each."""
    classes = {} if facts.node_full or limit < 1 else classes_in_use(facts.projects)
    # A warm pod is created when a branch has claimed the last one, so its age says after a restart when that was.
    ages = dict.fromkeys(classes, math.inf)
    for warm in facts.warm_pods:
        class_hash = _class_of(warm.pod, classes)
        if class_hash in ages and not (warm.pod.terminating or warm.pod.terminated):
            ages[class_hash] = min(ages[class_hash], warm.age_seconds)
    idle = {**ages, **{key: seconds for key, seconds in facts.idle_seconds.items() if key in ages}}
    by_use = sorted(classes, key=lambda class_hash: (idle[class_hash], class_hash))
    targets = {class_hash: facts.targets.get(class_hash, limit) for class_hash in by_use}
    rounds = range(max(targets.values(), default=0))
    each_once = [class_hash for n in rounds for class_hash in by_use if n < targets[class_hash]]
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
    return labelled(free, facts)


def labelled(counts: Mapping[str, int], facts: WarmFacts) -> dict[tuple[str, str], int]:
    """Return `{(class hash, image): count}` for each class in use, of counts by class hash."""
    classes = classes_in_use(facts.projects)
    return {(key, slot_class.image): counts.get(key, 0) for key, slot_class in classes.items()}


def is_free(pod: PodFacts, template_hash: str) -> bool:
    """True if a branch can claim this warm pod now."""
    return pod.running and not pod.terminating and pod.template_hash == template_hash
