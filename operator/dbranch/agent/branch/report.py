"""Build `status.node` of a branch after a reconcile. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.status import error_message, failed_postgres_finding, failed_storage_finding
from dbranch.agent.volume.marker import Marker
from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import InvalidInput, NotAccepting, SqlFailed


def node_fields(
    desired: Desired,
    facts: BranchFacts,
    marker: Marker | None,
    slot: str | None,
    storage: Finding,
    postgres: Finding | None,
) -> dict[str, Any]:
    """Return the fields of `status.node`; None removes a field.

    `facts` are those on which the last plan was made, `marker` is the branch's after its actions, `slot` the one that
    was bound or created last. `postgres` None: the status keeps what it says.
    """
    node: dict[str, Any] = {
        "storage": storage.as_dict(),
        **_endpoint_fields(desired, facts, marker, slot),
    }
    if not desired.awaits_restore:
        # Until then a new spec is obeyed by the data that a restore is about to put in place.
        node["observedGeneration"] = desired.branch.generation
    if postgres:
        node["postgres"] = postgres.as_dict()
    if marker:
        node |= {"sourceUID": marker.origin.uid, "snapshotTime": marker.snapshot_time}
        node |= {"alterSystemResetAt": marker.alter_system_reset or None, "generation": marker.generation}
        node["opened"] = marker.opened or None
    return node


def serving_pod(facts: BranchFacts, marker: Marker | None) -> PodFacts | None:
    """Return the pod whose Postgres users reach, as far as is known, if there is one."""
    return facts.live_pod if replace(facts, marker=marker).serves else None


def _endpoint_fields(
    desired: Desired, facts: BranchFacts, marker: Marker | None, slot: str | None
) -> dict[str, Any]:
    """Return slot, pod, address and port; the address is None unless Postgres accepts users' connections."""
    port = names.branch_port(desired.branch.uid)
    pod = serving_pod(facts, marker)
    major = marker.major if marker else ""
    if pod:
        return {
            "slot": pod.name,
            "pod": pod.name,
            "address": pod.address,
            "port": port,
            "imageID": pod.image_id,
            # One that was not asked now may have a later one than was reported; its next answer says so.
            "postgresVersion": facts.server_version or desired.branch.node.postgres_version or f"{major}",
            "restartedAt": (pod.restarted_at or "")[: names.MAX_TIME_LENGTH] or None,
        }
    name = slot or (facts.live_pod.name if facts.live_pod else None)
    fields: dict[str, Any] = {"pod": name, "address": None, "port": port}
    # Without a pod the last slot's name stays in the status: the next name is derived from it.
    return fields | ({"slot": name} if name else {})


def failed_findings(
    desired: Desired, facts: BranchFacts, marker: Marker | None, storage: Finding, error: Exception
) -> tuple[Finding, Finding | None]:
    """Return the findings about storage (`storage` if the branch is stored) and Postgres after an action failed."""
    if marker is None:
        return failed_storage_finding(error, desired.subject), None
    message = error_message(error, desired.subject)
    if serving_pod(facts, marker):
        rejected = isinstance(error, InvalidInput)
        return storage, Finding(Reason.SETTINGS_REJECTED if rejected else Reason.SESSION_FAILED, message)
    if facts.server_version and not marker.opened and not isinstance(error, InvalidInput):
        # Postgres runs, and is not ready for users.
        said = isinstance(error, SqlFailed) or (isinstance(error, NotAccepting) and bool(error.sqlstate))
        is_cleaning = said and not marker.cleaned
        return storage, Finding(Reason.CLEANING_FAILED if is_cleaning else Reason.RECOVERING, message)
    return storage, failed_postgres_finding(error, desired.subject)


def still_starting_finding(desired: Desired) -> Finding:
    """Return that Postgres is starting, in the words of the status if it says that already."""
    reported = desired.branch.node.postgres
    if reported and not reported.admits:
        return reported
    return Finding(Reason.RECOVERING, f"Postgres of {desired.subject} is starting")
