"""The controller and the agents deleted in turn, again and again, while the tests go on."""

from __future__ import annotations

import threading
from itertools import cycle

from tests.e2e.cluster import NODES, SYSTEM, Cluster

# Both at once come last: what one has begun the other must not wait for in vain.
_TURNS = (("controller",), ("agent",), ("controller", "agent"))


class Chaos:
    """A thread that deletes pods of dbranch, each time they have been Ready for so many seconds, from `with` to
    its end. (On a machine so slow that they need longer than that to start, nothing would ever be done.)"""

    def __init__(self, cluster: Cluster, every: float) -> None:
        self._cluster, self._every, self._over = cluster, every, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.deleted = 0

    def __enter__(self) -> Chaos:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        print(f"chaos: {self.deleted} pods deleted")

    def _run(self) -> None:
        for turn in cycle(_TURNS):
            self._await_ready()
            if self._over.wait(self._every):
                return
            for component in turn:
                namespace = SYSTEM if component == "controller" else NODES
                said = self._cluster.kubectl(
                    *("delete", "pods", "-n", namespace, "-l", f"app.kubernetes.io/component={component}"),
                    *("--wait=false", "--grace-period=1", "-o", "name"),
                    check=False,
                )
                self.deleted += len(said.text.splitlines())

    def _await_ready(self) -> None:
        for namespace, what in (
            (SYSTEM, "deployment/dbranch-controller"),
            (NODES, "daemonset/dbranch-agent"),
        ):
            self._cluster.kubectl("rollout", "status", "-n", namespace, what, "--timeout=60s", check=False)
