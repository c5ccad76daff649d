"""Events about projects, branches, snapshots and restores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dbranch.api.branch import Branch
from dbranch.api.conditions import (
    TRUE_REASONS,
    WARNING_REASONS,
    Condition,
    Finding,
    Reason,
    find_condition,
)
from dbranch.api.enums import OnSwitch
from dbranch.api.project import Project

# The reason of an Event, of no condition: a generated password's Secret was gone, and another one is in force.
PASSWORD_GENERATED: Final = "PasswordGenerated"
# Likewise: the route of a project leads to another branch.
SWITCHED: Final = "Switched"

# Likewise: a branch or snapshot will be deleted sooner than was said before; it is deleted since its time has come; a
# branch that Git makes again has a time to expire.
EXPIRING: Final = "Expiring"
EXPIRED: Final = "Expired"
EXPIRING_IN_GIT: Final = "ExpiringInGit"
# Likewise, of a branch: a restore gave it other data; one did not; a copy of former data was deleted.
RESTORED: Final = "Restored"
RESTORE_FAILED: Final = "RestoreFailed"
REFRESH_FAILED: Final = "RefreshFailed"
UNDO_REMOVED: Final = "UndoRemoved"

# Likewise: a branch that was deleted is made again, with its data.
UNDELETED: Final = "Undeleted"

# What becomes of the sessions on the old branch, by spec.proxy.onSwitch.
_FATES: Final[Mapping[OnSwitch, str]] = {
    OnSwitch.TERMINATE: "are ended",
    OnSwitch.DRAIN: "end with their transactions",
    OnSwitch.KEEP: "stay until they close",
}

# Called with the object, and the Event's type (Normal or Warning), reason and message.
EmitEvent = Callable[[Project | Branch, str, str, str], None]


def emit_transition(
    item: Project | Branch,
    ready: Finding,
    conditions: Iterable[Mapping[str, Any]],
    emit_event: EmitEvent,
    switched: bool = False,
) -> None:
    """Emit an Event about the object if the reason of Ready is another than in its status.

    None for a new object's Pending, nor, if the project's route has just `switched`, for the proxies that have yet to
    take it: Switched says that. Also for each of the new `conditions` that is True and yet a warning: Ready does
    not say it.
    """
    # That a new object waits for its agent needs no Event: in a burst it would be a write more for each branch.
    is_first_wait = ready.reason == Reason.PENDING and find_condition(item.status, Condition.READY) is None
    waits_for_switch = switched and ready.reason == Reason.PROXY_NOT_READY
    if not is_first_wait and not waits_for_switch and _is_new(item, Condition.READY, ready.reason):
        event_type = "Warning" if ready.reason in WARNING_REASONS else "Normal"
        emit_event(item, event_type, ready.reason.value, ready.message)
    for condition in conditions:
        reason = Reason(condition["reason"])
        if reason in WARNING_REASONS & TRUE_REASONS and _is_new(item, Condition(condition["type"]), reason):
            emit_event(item, "Warning", reason.value, condition["message"])


def emit_switch(project: Project, route: Mapping[str, Any] | None, emit_event: EmitEvent) -> bool:
    """Emit an Event about the project if its route leads to another branch than before; return whether it does.

    `route`: as it was written; `project`: as before. The sessions are those that its proxies have reported.
    """
    if route is None or project.route is None or route["branch"] == project.route.branch:
        return False
    old = project.route.branch
    reported = [entry for pod in project.proxies for entry in pod.branches if entry.branch == old]
    count = sum(entry.sessions + entry.draining for entry in reported)
    sessions = f"{count} session{'' if count == 1 else 's'} on {old}"
    fate = _FATES.get(project.proxy.on_switch, "end")
    text = (
        f"new sessions of project {project.name} reach {route['branch']}, no longer {old} "
        f"(generation {route['generation']}); {sessions} {fate}, as far as the proxies have reported"
    )
    emit_event(project, "Normal", SWITCHED, text)
    return True


def _is_new(item: Project | Branch, condition: Condition, reason: Reason) -> bool:
    """True if the condition in the object's status has another reason, or none."""
    previous = find_condition(item.status, condition)
    return previous is None or previous.get("reason") != reason.value
