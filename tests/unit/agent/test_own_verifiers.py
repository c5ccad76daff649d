"""Each branch gets verifiers that no other branch has; the Secret with them is read once for several branches."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.fakes.api import FakeApi
from tests.unit.agent.branch_model import COPY, PROJECT, marker

from dbranch.agent.branch import effect
from dbranch.agent.branch.actions import SetOwnVerifiers
from dbranch.agent.branch.effect import BranchEffects, Outcome
from dbranch.agent.branch.facts import Desired
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.volume.marker import Marker
from dbranch.agent.warm.watched import WatchedWarmPods
from dbranch.api import names
from dbranch.api.scram import joined_version, render_branch_verifiers
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.timings import StepTimer

SECRETS = path_of("v1", "secrets", "dbranch-nodes")


class Bench:
    """The effects of branches of one project on a node, without Postgres. `markers`: by the branch's UID."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.api, self.markers = FakeApi(), dict[str, Marker]()
        self.version = "v1"
        context = NodeContext("n1", "n-uid", "dbranch-nodes", "dbranch")
        self.effects = BranchEffects(
            cast(Cluster, self.api), Layout(Path("/base")), context, WatchedWarmPods()
        )
        monkeypatch.setattr(effect.NodeSecrets, "_current_token", lambda _, **__: "")
        monkeypatch.setattr(self.api, "get", lambda path, token="", get=self.api.get: get(path))
        monkeypatch.setattr(
            effect, "observe_subvolumes", lambda *_: SimpleNamespace(branches=dict(self.markers))
        )
        monkeypatch.setattr(effect, "ensure_own_verifiers", self._ensure)
        self.write(count)

    def _ensure(self, _: object, __: str, uid: str, ___: object, verifiers: dict[str, str]) -> Marker:
        own = marker(COPY).with_own_verifiers(joined_version(*verifiers.values()))
        self.markers[uid] = own
        return own

    def write(self, count: int) -> None:
        """Write the Secret with verifiers for so many branches, as the controller does."""
        text = render_branch_verifiers(
            self.version, [(f"{self.version}-a{i}", f"b{i}") for i in range(count)]
        )
        name = names.verifier_secret_name(PROJECT.uid)
        self.api.remove_pod(f"{SECRETS}/{name}")
        self.api.put(
            SECRETS,
            {
                "kind": "Secret",
                "metadata": {"name": name},
                "data": {"branches": b64encode(text.encode()).decode()},
            },
        )

    def give(self, uid: str) -> int:
        """Give the branch verifiers of its own; return how often the Secret was read."""
        project = replace(PROJECT, password_version=self.version)
        self.api.take_requests()
        outcome = Outcome(marker(COPY), StepTimer())
        self.effects.apply(Desired(project, replace(COPY, uid=uid)), SetOwnVerifiers("slot-a"), outcome)
        return len(self.api.take_requests())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    return Bench(monkeypatch, 4)


def test_the_secret_is_read_once_until_its_verifiers_are_used_up(bench: Bench) -> None:
    assert [bench.give(f"uid-{i}") for i in range(4)] == [1, 0, 0, 0]
    # There is none left, neither here nor in the Secret.
    assert bench.give("uid-4") == 1 and "uid-4" not in bench.markers
    bench.write(8)
    assert bench.give("uid-4") == 1 and bench.give("uid-5") == 0
    assert len({own.verifiers for own in bench.markers.values()}) == 6


def test_other_passwords_have_other_verifiers(bench: Bench) -> None:
    bench.give("uid-0")
    bench.version = "v2"
    # The controller has not written them yet: the old ones are of no use.
    assert bench.give("uid-1") == 1 and "uid-1" not in bench.markers
    bench.write(4)
    assert bench.give("uid-1") == 1
    assert bench.markers["uid-1"].verifiers == joined_version("v2-a0", "b0")
