"""The agent's waiting slots: kept at their number behind the branches that take them."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot import pods
from dbranch.agent.slot.pod_spec import SlotClass, template_hash, warm_pod
from dbranch.agent.slot.scripts import read_slot_start
from dbranch.agent.warm.observe import observe_scheduled_here, observe_warm_pods
from dbranch.agent.warm.plan import WarmFacts, free_counts, plan_warm, warm_count
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.errors import DbranchError
from dbranch.api.project import Project
from dbranch.kube.client import Cluster, path_of
from dbranch.kube.status import patch_status

logger = logging.getLogger(__name__)

# Seconds between two visits that nothing asked for, and between two looks at all that is bound to the node.
_EVERY = 60.0
_PAUSE = 3.0
# Seconds that a visit waits for branches that are starting: what they need goes first, those of a burst, too.
_PATIENCE = 10.0
# Seconds for which no slot waits on a node that had no room for a branch's pod.
_CROWDED = 60.0


class WarmReconciler:
    """`limit` waiting slots of each class in use. What stands in the cluster is the only memory of them; of the
    projects and branches that may use them, what was listed last and what visits have said since."""

    def __init__(
        self, cluster: Cluster, layout: Layout, context: NodeContext, limit: int, metrics: AgentMetrics
    ) -> None:
        self._cluster, self._layout, self._context, self._limit = cluster, layout, context, limit
        self._metrics = metrics
        self._script = read_slot_start()
        self.form = template_hash(context, layout, self._script)
        self._guard, self._stirred = threading.Lock(), threading.Event()
        self._ended: set[str] = set()
        self._crowded_until = 0.0
        # By UID. The news are those that the next visit is to take in.
        self._bound: dict[str, Project | Branch] = {}
        self._news: dict[str, Project | Branch] = {}
        self._news_guard = threading.Lock()
        self._listed_at = -_EVERY
        # By UID: the number that a project was told since then.
        self._told: dict[str, int | None] = {}

    def stir(self, *news: Project | Branch) -> None:
        """Something may be missing, or too much: of the pods, or since these are as they are."""
        with self._news_guard:
            _take_in(self._news, news)
        self._stirred.set()

    def yield_slots(self) -> None:
        """The node had no room for a branch's pod: nothing waits there for a while."""
        self._crowded_until = time.monotonic() + _CROWDED
        self.stir()

    def keep(self, quiet: Callable[[float], None]) -> None:
        """For ever. `quiet` waits (so many seconds at most) until no branch is starting."""
        pause = 0.0
        while True:
            asked = self._stirred.wait(pause)
            self._stirred.clear()
            quiet(_PATIENCE)
            try:
                pause = self.reconcile(slow=not asked) or _EVERY
            except (DbranchError, OSError) as error:
                logger.warning("waiting slots: %s", error)
                pause, self._listed_at = _PAUSE, -_EVERY

    def reconcile(self, slow: bool = False) -> float | None:
        """One visit; the seconds after which it wants to come back, or None. `slow`: tell what is there anyway."""
        with self._guard:
            facts = self._facts()
            todo = plan_warm(self._limit, self.form, facts)
            if todo.end:
                # By what is remembered nothing is ended: an agent beside this one may have seen more.
                facts = self._facts(anew=True)
                todo = plan_warm(self._limit, self.form, facts)
            self._metrics.saw(free_counts(self.form, facts))
            for pod in todo.end:
                self._ended.add(pod.name)
                pods.delete_warm_pod(self._cluster, self._context.namespace, pod)
            for kind in todo.make:
                self._make(kind)
            self._remove_ended({waiting.pod.name for waiting in facts.waiting})
            settled = not todo.make and all(waiting.pod.running for waiting in facts.waiting)
            if slow or (settled and not self._ended):
                self._tell(facts)
            return 0.5 if self._ended else None

    def _facts(self, anew: bool = False) -> WarmFacts:
        # The news first: a list that is asked for behind them is not older than they.
        with self._news_guard:
            news, self._news = self._news, {}
        if anew or time.monotonic() >= self._listed_at + _EVERY:
            self._bound = {item.uid: item for item in observe_scheduled_here(self._cluster, self._context)}
            self._listed_at, self._told = time.monotonic(), {}
        else:
            _take_in(self._bound, news.values())
        return WarmFacts(
            tuple(item for item in self._bound.values() if isinstance(item, Project)),
            tuple(item for item in self._bound.values() if isinstance(item, Branch)),
            observe_warm_pods(self._cluster, self._context),
            time.monotonic() < self._crowded_until,
        )

    def _make(self, kind: SlotClass) -> None:
        """The directory, then its pod; one that is cut off between the two is swept."""
        name = names.warm_slot_name(secrets.token_hex(8))
        slot.ensure_slot(self._layout, name, kind.run_as_user)
        pods.ensure_pod(self._cluster, warm_pod(self._context, self._layout, kind, name, self._script))
        logger.info("slot %s waits for a branch (image %s)", name, kind.image)

    def _remove_ended(self, waiting: set[str]) -> None:
        """The directories of those that are gone. One that was claimed before its end was asked for is a branch's."""
        for name in self._ended - waiting:
            if self._cluster.get(path_of("v1", "pods", self._context.namespace, name)) is None:
                slot.ensure_slot_removed(self._layout, name)
            self._ended.discard(name)

    def _tell(self, facts: WarmFacts) -> None:
        for project in facts.projects:
            count = warm_count(self._limit, self.form, facts, project)
            if self._told.get(project.uid, project.node.warm_slots) != count and not project.deleting:
                patch_status(self._cluster, project, {"node": {"warmSlots": count}})
                self._told[project.uid] = count


def _take_in(known: dict[str, Project | Branch], news: Iterable[Project | Branch]) -> None:
    """A visit that took long may speak of a spec that is no longer."""
    known |= {n.uid: n for n in news if n.uid not in known or n.generation >= known[n.uid].generation}
