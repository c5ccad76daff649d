"""What a namespace may have, by the chart's value `limits`: whoever exceeds it, and how it is said. Pure.

The admission policies (`helm/dbranch/templates/limits.yaml`) refuse what a single object asks for, and read the same
data. What they have not refused, since it was there before the limit, is reported (AboveLimit). How many objects
there are can be counted here only: the newest are not bound to a node (LimitExceeded).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dbranch.api.branch import Branch
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.errors import InvalidInput
from dbranch.api.project import Project
from dbranch.api.quantity import format_bytes, parse_quantity
from dbranch.api.snapshot import Snapshot

COUNTS: Final = ("projects", "branches", "snapshotsPerBranch", "snapshotsPerProject", "proxyReplicas")
QUANTITIES: Final = ("storageSize", "cpu", "memory", "ephemeralStorage")
LISTS: Final = ("images", "nodeSelectors", "extendedResources")
# By limit, the resource of a pod.
RESOURCES: Final[Mapping[str, str]] = {
    "cpu": "cpu",
    "ephemeralStorage": "ephemeral-storage",
    "memory": "memory",
}
_DEFAULT_LIMITS: Final = "postgres.defaultResources.limits."


@dataclass(frozen=True)
class NamespaceLimits:
    """The limits of one namespace. `data`: as in Limits."""

    namespace: str = ""
    data: Mapping[str, str] = field(default_factory=dict)

    def text(self, limit: str) -> str:
        """Return the limit as it is written: "" for none, of a list `*`."""
        none = "*" if limit in LISTS else ""
        return self.data.get(f"{self.namespace}.{limit}", self.data.get(limit, none))

    def count(self, limit: str) -> int | None:
        """Return how many there may be; None if that is not limited."""
        text = self.text(limit)
        return int(text) if text else None

    def path(self, limit: str) -> str:
        """Return where in the chart's values the limit stands."""
        of = f"namespaces.{self.namespace}." if f"{self.namespace}.{limit}" in self.data else ""
        return f"limits.{of}{limit}"

    def is_exceeded(self, limit: str, quantity: str | int) -> bool:
        return bool(self.text(limit)) and _is_more(quantity, self.text(limit))

    def allows(self, limit: str, text: str) -> bool:
        """Return True if the list has the text, or a pattern for it.

        What a pattern with a tag leaves open holds no `/`: in `postgres:5000/x` postgres would be a registry.
        """
        return any(_matches(pattern, text) for pattern in self.text(limit).split(" "))


@dataclass(frozen=True)
class Limits:
    """The limits of all namespaces. `data`: as in the chart's policies, by limit, and by `<namespace>.<limit>`."""

    data: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Parse the data as JSON. Raises InvalidInput if a number cannot be read.

        >>> Limits.parse('{"branches": "20", "team.branches": "50"}').of("team").count("branches")
        50
        """
        try:
            data = {str(key): str(value) for key, value in json.loads(text or "{}").items()}
            for key, value in data.items():
                limit = key.rpartition(".")[2]
                if value and limit in COUNTS:
                    int(value)
                elif value and limit in QUANTITIES:
                    parse_quantity(value)
        except (ValueError, AttributeError, InvalidInput) as error:
            raise InvalidInput(f"the chart's value limits cannot be used: {text!r}") from error
        return cls(data)

    def of(self, namespace: str) -> NamespaceLimits:
        return NamespaceLimits(namespace, self.data)


NO_LIMITS: Final = NamespaceLimits()


def turn(item: Project | Branch) -> tuple[bool, str, str]:
    """Return the order in which objects get a place: who is bound keeps his, of all others the oldest is first."""
    name = item.name if isinstance(item, Project) else item.object_name
    return item.node_name is None, item.created or "", name


def excess(items: Iterable[Project | Branch], limit: int | None) -> frozenset[str]:
    """Return the UIDs of those who come behind the limit.

    Who is being deleted has a place as long as there is something of it on a node.
    """
    if limit is None:
        return frozenset()
    counted = sorted((item for item in items if item.node_name is not None or not item.deleting), key=turn)
    return frozenset(item.uid for item in counted[limit:])


def reached_snapshot_limit(
    branch_uid: str, snapshots: Iterable[Snapshot], limits: NamespaceLimits
) -> str | None:
    """Return the limit that leaves no place for another snapshot of the branch. `snapshots`: others of its project.

    Those that are bound have their places; records of restores and deletions, which come and go by themselves, take
    none.
    """
    bound = [snapshot for snapshot in snapshots if snapshot.node_name is not None and not snapshot.is_record]
    counts = {
        "snapshotsPerBranch": sum(snapshot.branch_uid == branch_uid for snapshot in bound),
        "snapshotsPerProject": len(bound),
    }
    for limit, count in counts.items():
        allowed = limits.count(limit)
        if allowed is not None and count >= allowed:
            return limit
    return None


def refused_finding(item: Project | Branch, limits: NamespaceLimits) -> Finding:
    """Return the finding of Scheduled of an object that gets no place in its namespace."""
    limit, subject = _count_of(item)
    fact = f"{limits.path(limit)} of the dbranch chart allows {limits.text(limit)}"
    advice = "delete one, or ask a cluster administrator to raise it"
    return Finding(Reason.LIMIT_EXCEEDED, f"{subject} is not made: {fact}; {advice}")


def above_finding(item: Project | Branch, limits: NamespaceLimits, is_excess: bool) -> Finding | None:
    """Return the finding of Scheduled of a bound object that exceeds a limit; None if it exceeds none."""
    limit, subject = _count_of(item)
    has, advice = "it is one more", "delete one"
    if not is_excess:
        limit, has = next(_exceeded_by(item, limits), ("", ""))
        advice = "lower it"
    if not limit:
        return None

    def text(has: str, allowed: str) -> str:
        fact = f"{subject}: {has}, {limits.path(limit)} of the dbranch chart allows {allowed}"
        return f"{fact}; it goes on; {advice}, or ask a cluster administrator"

    allowed = limits.text(limit) or "nothing"
    room = MESSAGE_LIMIT - len(text("", ""))
    has = _cut(has, max(room // 2, room - len(allowed)))
    return Finding(Reason.ABOVE_LIMIT, text(has, _cut(allowed, room - len(has))))


def _exceeded_by(item: Project | Branch, limits: NamespaceLimits) -> Iterator[tuple[str, str]]:
    return (
        exceeded_by_project(item, limits) if isinstance(item, Project) else exceeded_by_branch(item, limits)
    )


def exceeded_by_project(project: Project, limits: NamespaceLimits) -> Iterator[tuple[str, str]]:
    """Yield each limit that the project's spec exceeds, but the counts, with what it has, in words."""
    if limits.is_exceeded("storageSize", project.size):
        yield "storageSize", f"storage.size {format_bytes(project.size)}"
    replicas = project.proxy.replicas
    if limits.is_exceeded("proxyReplicas", replicas):
        yield "proxyReplicas", f"proxy.replicas {replicas}"
    if not limits.allows("images", project.postgres.image):
        yield "images", f"postgres.image {project.postgres.image}"
    labels = [f"{key}={value}" for key, value in sorted(project.node_selector.items())]
    excluded = [label for label in labels if not limits.allows("nodeSelectors", label)]
    if excluded:
        yield "nodeSelectors", f"storage.nodeSelector {', '.join(excluded)}"
    yield from _exceeded_by_resources(project.postgres.resources, limits)


def exceeded_by_branch(branch: Branch, limits: NamespaceLimits) -> Iterator[tuple[str, str]]:
    """Yield each limit that the branch's own resources exceed, with what it has, in words."""
    if branch.resources:
        yield from _exceeded_by_resources(branch.resources, limits)


def _exceeded_by_resources(
    resources: Mapping[str, Any], limits: NamespaceLimits
) -> Iterator[tuple[str, str]]:
    requested, limited = resources.get("requests") or {}, resources.get("limits") or {}
    for limit, name in RESOURCES.items():
        if limits.is_exceeded(limit, requested.get(name, 0)):
            yield limit, f"resources.requests.{name} {requested[name]}"
            continue
        # As the agent does: the default is that of a resource of which nothing is said.
        default = "" if name in requested else limits.data.get(_DEFAULT_LIMITS + limit, "")
        amount = limited.get(name, default)
        if limits.text(limit) and (amount == "" or limits.is_exceeded(limit, amount)):
            yield (
                limit,
                f"resources.limits.{name} {amount}" if amount != "" else f"no resources.limits.{name}",
            )
    names = sorted({*requested, *limited} - set(RESOURCES.values()))
    excluded = [name for name in names if not limits.allows("extendedResources", name)]
    if excluded:
        yield "extendedResources", f"resources of {', '.join(excluded)}"


def _count_of(item: Project | Branch) -> tuple[str, str]:
    """Return the limit that counts such objects, and the object in words."""
    if isinstance(item, Project):
        return "projects", f"project {item.name}"
    return "branches", f"branch {item.name}"


def _is_more(one: str | int, other: str | int) -> bool:
    """Compare quantities. One that cannot be read, which the API server would refuse, is no more than any."""
    try:
        return parse_quantity(one) > parse_quantity(other)
    except InvalidInput:
        return False


def _matches(pattern: str, text: str) -> bool:
    if not pattern.endswith("*"):
        return text == pattern
    begin = pattern[:-1]
    has_tag = ":" in pattern.rpartition("/")[2]
    return text.startswith(begin) and not (has_tag and "/" in text[len(begin) :])


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"
