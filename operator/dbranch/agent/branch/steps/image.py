"""The data is known to be sorted as the running image sorts it. Another image may have another C library or ICU."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import RecordImage
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, runs, slot_of
from dbranch.agent.slot.image_ref import digest_of
from dbranch.api.conditions import Condition


def _done(desired: Desired, facts: BranchFacts) -> bool:
    # Collations that sort otherwise are reported; only a person can rebuild what is ordered by them.
    return facts.outdated_collations != ()


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    assert facts.live_pod is not None
    digest = digest_of(facts.live_pod.image_id)
    marker = facts.marker.with_image(digest) if facts.marker else None
    then = replace(facts, marker=marker, outdated_collations=None)
    return Planned((RecordImage(slot_of(facts), digest),), then=then)


IMAGE = Step("image", Condition.POSTGRES_READY, runs, _done, _plan)
