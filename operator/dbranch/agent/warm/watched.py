"""The warm pods that the watch of pods has seen, so that a branch need not list them. Thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from dbranch.agent.slot.pod_spec import SlotClass
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.warm.plan import is_free
from dbranch.api.errors import SlotTaken


class WatchedWarmPods:
    """Pods without a branch as the watch has seen them last, a moment behind the API server.

    That is enough to choose one: the claim tests that it is still this pod, and free. Nothing is deleted or created
    by what stands here.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pods: dict[str, PodFacts] = {}
        # The names of those that a branch of this process is claiming now.
        self._reserved: set[str] = set()

    def put(self, pod: PodFacts) -> None:
        """Remember a pod without a branch, as the watch has just seen it."""
        with self._guard:
            self._pods[pod.name] = pod

    def forget(self, name: str) -> None:
        """Forget a pod that is claimed or gone."""
        with self._guard:
            self._pods.pop(name, None)

    def keep_only(self, names: Collection[str]) -> None:
        """Forget all pods but those that were listed."""
        with self._guard:
            self._pods = {name: pod for name, pod in self._pods.items() if name in names}

    def free(self, slot_class: SlotClass, template_hash: str) -> tuple[PodFacts, ...]:
        """Return the pods of this class and template that a branch can claim, by name."""
        with self._guard:
            pods = sorted(self._pods.values(), key=lambda pod: pod.name)
            return tuple(
                pod
                for pod in pods
                if pod.name not in self._reserved and is_free(pod, template_hash) and slot_class.includes(pod)
            )

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """Keep other branches of this process from claiming the pod; behind that it is not free any more here.

        Raises SlotTaken if one is claiming it. A pod that was not claimed after all is found by a list.
        """
        with self._guard:
            if name in self._reserved:
                raise SlotTaken(f"slot {name} is being claimed by another branch")
            self._reserved.add(name)
        try:
            yield
        finally:
            with self._guard:
                self._reserved.discard(name)
                self._pods.pop(name, None)
