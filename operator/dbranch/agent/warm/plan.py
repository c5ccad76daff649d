"""Which slots wait on a node for branches that do not exist yet: which to make, which to end. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dbranch.agent.slot.pod_spec import SlotClass, slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.api.branch import Branch, should_run
from dbranch.api.project import Project

# Seconds for which a waiting pod that the node had no room for stands for its class: so often it is tried.
AGAIN: Final = 600.0


@dataclass(frozen=True)
class Waiting:
    """A pod that no branch has claimed, and its age in seconds."""

    pod: PodFacts
    age: float = 0.0


@dataclass(frozen=True)
class WarmFacts:
    """A node's projects and branches, and the pods that wait there. `crowded`: it had no room for a branch's pod."""

    projects: tuple[Project, ...] = ()
    branches: tuple[Branch, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    crowded: bool = False


@dataclass(frozen=True)
class WarmPlan:
    """The pods to end, then the classes to make one more waiting pod of, each as often as it stands there."""

    end: tuple[PodFacts, ...] = ()
    make: tuple[SlotClass, ...] = ()


def classes_in_use(projects: Sequence[Project], branches: Sequence[Branch]) -> dict[str, SlotClass]:
    """Word -> class: what a new branch of each running project would take, and what running branches take.

    A project that holds no database yet has none: its first pods run initdb.
    """
    used: dict[str, SlotClass] = {}
    of_name = {
        (project.namespace, project.name): project
        for project in projects
        if project.running and not project.deleting and project.node.initialized
    }
    for project in of_name.values():
        used.setdefault(slot_class_of(project).word, slot_class_of(project))
    for branch in branches:
        above = of_name.get((branch.namespace, branch.project))
        if above and should_run(above, branch) and not branch.deleting:
            used.setdefault(slot_class_of(above, branch).word, slot_class_of(above, branch))
    return used


def plan_warm(limit: int, form: str, facts: WarmFacts) -> WarmPlan:
    """Towards `limit` waiting pods of each class in use, made of `form`, and none besides.

    One that is on its way out still counts, so there are never more; one that the node had no room for
    counts until it is tried again. On a crowded node none waits: a branch goes first.
    """
    used = {} if facts.crowded or limit < 1 else classes_in_use(facts.projects, facts.branches)
    end: list[PodFacts] = []
    kept, ending = Counter[str](), Counter[str]()
    # Those that run first: a surplus is ended at its other end.
    for waiting in sorted(facts.waiting, key=lambda w: (not w.pod.running, w.pod.name)):
        pod = waiting.pod
        word = pod.slot_class
        fits = word in used and pod.form == form and not (pod.over and waiting.age > AGAIN)
        if pod.terminating:
            ending[word] += 1
        elif fits and kept[word] < limit:
            kept[word] += 1
        else:
            ending[word] += 1
            end.append(pod)
    make = [kind for word, kind in used.items() for _ in range(limit - kept[word] - ending[word])]
    return WarmPlan(tuple(end), tuple(make))


def warm_count(limit: int, form: str, facts: WarmFacts, project: Project) -> int | None:
    """How many slots run and wait for a branch of the project; None where none are kept for it."""
    word = slot_class_of(project).word
    if limit < 1 or word not in classes_in_use([project], ()):
        return None
    return sum(is_free(w.pod, form) and w.pod.slot_class == word for w in facts.waiting)


def free_counts(form: str, facts: WarmFacts) -> dict[tuple[str, str], int]:
    """(class, image) -> how many slots run and wait for a branch, of each class in use."""
    free = Counter(w.pod.slot_class for w in facts.waiting if is_free(w.pod, form))
    used = classes_in_use(facts.projects, facts.branches)
    return {(word, kind.image): free[word] for word, kind in used.items()}


def is_free(pod: PodFacts, form: str) -> bool:
    """Whether a pod that no branch has claimed can be claimed now."""
    return pod.running and not pod.terminating and pod.form == form
