"""The node and the namespace in which an agent acts, and what its pods get by default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dbranch.api.errors import InvalidInput
from dbranch.api.quantity import parse_bytes


@dataclass(frozen=True)
class PodDefaults:
    """What a Postgres pod gets where its project does not ask for something else; the chart's values `postgres`.

    `resources`: requests and limits, each of a resource for which the project sets neither. `shared_memory`: the size
    of `/dev/shm` in a pod without a limit of memory, "" for none. `root_priority`, `copy_priority`: the names of the
    PriorityClasses of root branches and of all others, "" for none.
    """

    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shared_memory: str = ""
    root_priority: str = ""
    copy_priority: str = ""

    @classmethod
    def parse(cls, text: str) -> PodDefaults:
        """Parse the JSON of the chart's values `postgres`. Raises InvalidInput if it has another form."""
        try:
            values = json.loads(text or "{}")
            classes = values.get("priorityClasses") or {}
            return cls(
                values.get("defaultResources") or {},
                str(values.get("sharedMemory") or ""),
                str(classes.get("root") or ""),
                str(classes.get("copy") or ""),
            )
        except (ValueError, AttributeError) as error:
            raise InvalidInput(f"the chart's values postgres cannot be used: {text!r}") from error


@dataclass(frozen=True)
class Threshold:
    """Free space of a disk: a part of it, and at least so many bytes."""

    part: float = 0.0
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Parse kubelet's form: a percentage or a quantity. Raises InvalidInput if it is neither.

        >>> Threshold.parse("10%"), Threshold.parse("1Gi")
        (Threshold(part=0.1, size=0), Threshold(part=0.0, size=1073741824))
        """
        if not text.endswith("%"):
            return cls(size=parse_bytes(text))
        try:
            return cls(part=float(text.removesuffix("%")) / 100)
        except ValueError as error:
            raise InvalidInput(
                f"{text!r} is neither a percentage nor a quantity; write it as 10% or 20Gi"
            ) from error

    def of(self, total: int) -> int:
        """Return the bytes of a disk of `total` bytes."""
        return max(int(self.part * total), self.size)


@dataclass(frozen=True)
class NodeContext:
    """Where an agent creates its pods: its node (name and UID), the nodes' namespace, the Helm release; and how.

    `eviction`: the free space of the disk under the base directory below which kubelet evicts pods. `strict_groups`:
    the node can keep an image from giving its user more groups than the pod's (`supplementalGroupsPolicy`). `quotas`:
    new pools get simple quotas, where the kernel has them.
    """

    node: str
    node_uid: str
    namespace: str
    release: str
    pods: PodDefaults = field(default_factory=PodDefaults)
    eviction: Threshold = Threshold()
    strict_groups: bool = False
    quotas: bool = True
