"""Delete the controller and the agents in turn, repeatedly, while the tests run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

from tests.e2e.cluster import NODES, SYSTEM, Cluster

# Both together come last: neither may depend on the other finishing what it began.
_TURNS = (("controller",), ("agent",), ("controller", "agent"))


class Chaos:
    """A thread that deletes dbranch's pods whenever they have been Ready for `interval` seconds, while in `with`.

    If the machine is so slow that the pods need longer than that to do any work, nothing ever completes.
    """

    def __init__(self, cluster: Cluster, interval: float) -> None:
        self._cluster, self._interval, self._stop = cluster, interval, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        # Held while pods are deleted, and while none may be.
        self._turn = threading.Lock()
        self.deleted = 0

    def __enter__(self) -> Chaos:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        print(f"chaos: {self.deleted} pods deleted")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Delete nothing while in `with`."""
        with self._turn:
            yield

    def _run(self) -> None:
        for components in cycle(_TURNS):
            self._await_ready()
            if self._stop.wait(self._interval):
                return
            with self._turn:
                self._delete(components)

    def _delete(self, components: tuple[str, ...]) -> None:
        for component in components:
            namespace = SYSTEM if component == "controller" else NODES
            outcome = self._cluster.kubectl(
                *("delete", "pods", "-n", namespace, "-l", f"app.kubernetes.io/component={component}"),
                *("--wait=false", "--grace-period=1", "-o", "name"),
                check=False,
            )
            self.deleted += len(outcome.text.splitlines())

    def _await_ready(self) -> None:
        for namespace, workload in (
            (SYSTEM, "deployment/dbranch-controller"),
            (NODES, "daemonset/dbranch-agent"),
        ):
            self._cluster.kubectl(
                "rollout", "status", "-n", namespace, workload, "--timeout=60s", check=False
            )
