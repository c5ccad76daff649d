"""How long a Postgres that does not answer is believed to serve, and what ends that."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.unit.agent.branch_model import COPY, PROJECT, ROOMY, marker

from dbranch.agent.branch import answers
from dbranch.agent.branch.answers import AnswerMemory
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.postgres.answer import Answer
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import UNANSWERED_SECONDS
from dbranch.api.branch import BranchNode
from dbranch.api.conditions import Finding, Reason

POD = PodFacts("slot-a", "pod-uid", running=True, address="10.0.0.9")
SILENT = BranchFacts(
    True, ROOMY, marker=replace(marker(COPY), opened=True), pods=(POD,), bound_slots=("slot-a",)
)
REPORTED = BranchNode(postgres=Finding(Reason.ACCEPTING, "m"), pod="slot-a", address="10.0.0.9")
SERVING = Desired(PROJECT, replace(COPY, node=REPORTED))


def test_silence_is_reported_after_several_looks_over_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(answers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    memory = AnswerMemory()
    first = memory.judged(SERVING, SILENT)
    assert first.serves and not first.unanswered_long
    # Long, and not often; then both.
    now[0] += UNANSWERED_SECONDS
    assert not memory.judged(SERVING, SILENT).unanswered_long
    last = memory.judged(SERVING, SILENT)
    assert last.unanswered_long and last.serves
    assert not memory.judged(SERVING, replace(SILENT, server_version="17.6")).unanswered_long
    assert not memory.judged(SERVING, SILENT).unanswered_long


@pytest.mark.parametrize(
    "node",
    [
        replace(REPORTED, address=None),
        replace(REPORTED, pod="slot-b"),
        replace(REPORTED, postgres=Finding(Reason.RECOVERING, "m")),
        BranchNode(),
    ],
)
def test_one_that_was_not_reported_to_serve_does_not(node: BranchNode) -> None:
    assert not AnswerMemory().judged(Desired(PROJECT, replace(COPY, node=node)), SILENT).serves


def test_another_container_has_not_answered_yet() -> None:
    memory = AnswerMemory()
    memory.judged(SERVING, replace(SILENT, server_version="17.6"))
    assert memory.judged(SERVING, SILENT).serves
    assert not memory.judged(SERVING, replace(SILENT, pods=(replace(POD, restarts=1),))).serves
    assert not memory.judged(SERVING, replace(SILENT, refusal=Answer.STARTING)).serves
