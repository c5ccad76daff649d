"""Postgres accepts connections. Nothing is done for it but to look: the script in the slot starts it."""

from __future__ import annotations

import re
from typing import Final

from dbranch.agent.branch.actions import Action, WriteSettings
from dbranch.agent.branch.facts import Answer, BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, runs
from dbranch.agent.slot.pod_status import PodFacts, pod_finding
from dbranch.agent.timing import MOUNT_PROPAGATION_RETRY_SECONDS
from dbranch.api.conditions import Condition, Finding, Reason

_INCOMPATIBLE: Final = re.compile(r"data is of PostgreSQL (\d+), image is (\d+)")


def is_final(start_blocked_by: str | None) -> bool:
    """True if the reason why a slot's script does not start Postgres cannot change by itself.

    >>> is_final("data is of PostgreSQL 16, image is 17"), is_final("no lock file"), is_final(None)
    (True, False, False)
    """
    return bool(_INCOMPATIBLE.match(start_blocked_by or ""))


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return facts.answer is Answer.ACCEPTS


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    subject, pod = desired.subject, facts.live_pod
    assert pod is not None
    incompatible = _incompatible_finding(desired, facts)
    if incompatible:
        return Planned(finding=incompatible)
    if facts.bind_not_propagated and pod.running:
        text = (
            f"{subject}: its data is bound and does not reach pod {pod.name}; Postgres is not started; restart "
            "the node's agent, and check that its base directory is mounted with Bidirectional propagation"
        )
        finding = Finding(Reason.MOUNT_NOT_PROPAGATED, text)
        return Planned(finding=finding, retry_after=MOUNT_PROPAGATION_RETRY_SECONDS)
    # A Postgres that ends because of a setting reads the corrected files at its next start.
    settings: tuple[Action, ...] = (WriteSettings(pod.name),) if facts.settings_outdated else ()
    return Planned(settings, finding=_starting_finding(pod, subject), awaits=pod.name)


def _starting_finding(pod: PodFacts, subject: str) -> Finding:
    if pod.running:
        starting = Finding(Reason.RECOVERING, f"Postgres of {subject} is starting")
    else:
        starting = Finding(Reason.WAITING_FOR_SLOT, f"{subject}: its pod {pod.name} is starting")
    return pod_finding(pod, subject) or starting


def _incompatible_finding(desired: Desired, facts: BranchFacts) -> Finding | None:
    """Return the finding if the image has another major version than the data, else None."""
    match = _INCOMPATIBLE.match(facts.start_blocked_by or "")
    if not match:
        return None
    image = desired.project.postgres.image
    text = (
        f"{desired.subject} holds data of PostgreSQL {match[1]}, image {image} is PostgreSQL {match[2]}; "
        f"Postgres is not started; set spec.postgres.image to a {match[1]}"
    )
    return Finding(Reason.IMAGE_INCOMPATIBLE, text)


START = Step("start", Condition.POSTGRES_READY, runs, _done, _plan)
