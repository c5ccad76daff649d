"""What an agent does about data that a newer release wrote: nothing, and it says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.agent.branch_model import COPY, PROJECT, ROOMY, ROOT

from dbranch.agent.branch.actions import DeletePod, RemoveSlot
from dbranch.agent.branch.facts import BranchFacts
from dbranch.agent.branch.plan import plan_branch
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.status import failed_storage_finding
from dbranch.agent.volume.marker import NewerMarker
from dbranch.api.branch import Branch, BranchNode
from dbranch.api.conditions import MESSAGE_LIMIT, STALLED_REASONS, Reason
from dbranch.api.errors import StorageUnclear

FACTS = BranchFacts(
    pool_mounted=True,
    space=ROOMY,
    newer=NewerMarker(3),
    pods=(PodFacts("slot-a", running=True),),
    bound_slots=("slot-a", "slot-b"),
)


@pytest.mark.parametrize("branch", [ROOT, COPY])
@pytest.mark.parametrize("stored", [None, "2026-01-01T00:00:00Z"])
def test_nothing_is_planned_and_the_finding_says_what_to_do(branch: Branch, stored: str | None) -> None:
    branch = replace(branch, node=BranchNode(snapshot_time=stored))
    planned = plan_branch(PROJECT, branch, FACTS)
    assert planned.actions == () and planned.storage.reason == Reason.STORAGE_UNCLEAR
    assert planned.storage.message == (
        f"branch {branch.name} was written by a newer release of dbranch (format 3); nothing is touched; "
        "upgrade the agent of node n1"
    )
    assert planned.storage.status == "False" and Reason.STORAGE_UNCLEAR in STALLED_REASONS


def test_a_branch_that_shall_rest_comes_to_rest() -> None:
    planned = plan_branch(PROJECT, replace(COPY, state="Stopped"), FACTS)
    assert planned.actions == (RemoveSlot("slot-b"), DeletePod(FACTS.pods[0]))
    assert planned.storage.reason == Reason.STORAGE_UNCLEAR
    assert planned.postgres and planned.postgres.reason == Reason.STOPPED


def test_an_action_that_met_it_reports_the_same_reason() -> None:
    error = StorageUnclear("subvolume u was written by a newer release of dbranch (format 3)")
    finding = failed_storage_finding(error, "branch x")
    assert finding.reason == Reason.STORAGE_UNCLEAR and len(finding.message) <= MESSAGE_LIMIT
