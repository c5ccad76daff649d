"""Postgres accepts connections. Nothing is done for it but to look: the script in the slot starts it."""

from __future__ import annotations

from dbranch.agent.branch.actions import Action, WriteSettings
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, runs
from dbranch.agent.postgres.answer import Answer
from dbranch.agent.slot.pod_status import PodFacts, pod_finding
from dbranch.agent.slot.start_blocks import StartBlock, start_block
from dbranch.agent.timing import (
    MISSING_SUPERUSER_RETRY_SECONDS,
    MOUNT_PROPAGATION_RETRY_SECONDS,
    UNANSWERED_RETRY_SECONDS,
)
from dbranch.api.conditions import Condition, Finding, Reason


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return facts.answer is Answer.ACCEPTS


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    subject, pod = desired.subject, facts.live_pod
    assert pod is not None
    if facts.serves:
        # Nothing is done in it until it can be asked.
        return Planned(finding=_unasked_finding(desired, facts), retry_after=UNANSWERED_RETRY_SECONDS)
    block = start_block(facts.start_blocked_by)
    if block and block.is_version:
        return Planned(finding=_incompatible_finding(desired, block))
    if facts.bind_not_propagated and pod.running:
        text = (
            f"{subject}: its data is bound and does not reach pod {pod.name}; Postgres is not started; restart "
            "the node's agent, and check that its base directory is mounted with Bidirectional propagation"
        )
        finding = Finding(Reason.MOUNT_NOT_PROPAGATED, text)
        return Planned(finding=finding, retry_after=MOUNT_PROPAGATION_RETRY_SECONDS)
    if facts.missing_superuser:
        return Planned(
            finding=_missing_superuser_finding(desired, facts), retry_after=MISSING_SUPERUSER_RETRY_SECONDS
        )
    if facts.answer is Answer.REFUSES and pod.running:
        return Planned(finding=_refusal_finding(desired, facts), retry_after=UNANSWERED_RETRY_SECONDS)
    # A Postgres that ends because of a setting reads the corrected files at its next start.
    settings: tuple[Action, ...] = (WriteSettings(pod.name),) if facts.settings_outdated else ()
    return Planned(settings, finding=_starting_finding(desired, facts, pod, block), awaits=pod.name)


def _unasked_finding(desired: Desired, facts: BranchFacts) -> Finding:
    """Return what is said of a Postgres that serves users and was not asked: nothing new, until that lasts."""
    reported = desired.branch.node.postgres
    if facts.answer is Answer.REFUSES:
        text = (
            f"Postgres of {desired.subject} accepts connections and refuses dbranch's ({facts.server_error}); "
            "settings and passwords wait; end sessions or see its log"
        )
        return Finding(Reason.SESSION_FAILED, text)
    if facts.unanswered_long or reported is None:
        text = (
            f"Postgres of {desired.subject} runs and does not answer ({facts.server_error}); its address stays; "
            "see the log and the load of its pod, or restart the branch"
        )
        return Finding(Reason.NOT_ANSWERING, text)
    return reported


def _refusal_finding(desired: Desired, facts: BranchFacts) -> Finding:
    text = (
        f"Postgres of {desired.subject} runs and refuses dbranch's sessions ({facts.server_error}); it admits "
        "nobody; see its log"
    )
    return Finding(Reason.START_BLOCKED, text)


def _starting_finding(
    desired: Desired, facts: BranchFacts, pod: PodFacts, block: StartBlock | None
) -> Finding:
    subject = desired.subject
    problem = pod_finding(pod, subject, desired.reset_command if facts.altered else "")
    if problem:
        return problem
    if not pod.running:
        return Finding(Reason.WAITING_FOR_SLOT, f"{subject}: its pod {pod.name} is starting")
    if block:
        text = f"{subject}: {block.fact}; Postgres is not started; {block.advice}"
        return Finding(Reason.START_BLOCKED, text)
    return Finding(Reason.RECOVERING, f"Postgres of {subject} is starting")


def _incompatible_finding(desired: Desired, block: StartBlock) -> Finding:
    """Return the finding if the image has another major version than the data."""
    image = desired.project.postgres.image
    text = (
        f"{desired.subject} holds data of PostgreSQL {block.data_major}, image {image} is PostgreSQL "
        f"{block.image_major}; Postgres is not started; set spec.postgres.image to a {block.data_major}"
    )
    return Finding(Reason.IMAGE_INCOMPATIBLE, text)


def _missing_superuser_finding(desired: Desired, facts: BranchFacts) -> Finding:
    role = (
        f'role "{facts.marker.superuser}"' if facts.marker and facts.marker.superuser else "superuser's role"
    )
    text = (
        f"Postgres of {desired.subject} runs and has no {role} with LOGIN, by which dbranch works in it; nothing is "
        "changed in it; give the superuser that name and LOGIN again"
    )
    return Finding(Reason.START_BLOCKED, text)


START = Step("start", Condition.POSTGRES_READY, runs, _done, _plan)
