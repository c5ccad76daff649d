"""Projects and branches that are deleted together with something that dbranch does not know."""

from __future__ import annotations

from typing import Final

from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.controller.events import EmitEvent
from dbranch.runtime.limited import LimitedDict

# The reason of an Event, of no condition.
FOREIGN_OWNER: Final = "ForeignOwner"
_MAX_REMEMBERED: Final = 1000


class ForeignOwners:
    """Emits an Event, once for each object and its owners, while its `ownerReferences` name what is not dbranch's.

    When the last of them is deleted, the garbage collector deletes the object, and nobody is asked.
    """

    def __init__(self, emit_event: EmitEvent) -> None:
        self._emit_event = emit_event
        self._emitted: LimitedDict[str, tuple[str, ...]] = LimitedDict(_MAX_REMEMBERED)

    def report(self, item: Project | Branch) -> None:
        """Emit the Event if it has to be, and was not yet."""
        if item.foreign_owners and self._emitted.get(item.uid) != item.foreign_owners:
            self._emitted[item.uid] = item.foreign_owners
            self._emit_event(item, "Warning", FOREIGN_OWNER, _message(item))


def _message(item: Project | Branch) -> str:
    owners = " and ".join(item.foreign_owners)
    advice = "remove metadata.ownerReferences if that is not meant"
    if isinstance(item, Project):
        effect = "it is deleted with that, unless it is protected, and its data with it"
        return f"project {item.name} is owned by {owners}; {effect}; {advice}"
    effect = "it is deleted with that as soon as it is not active and not protected"
    return f"branch {item.name} is owned by {owners}; {effect}; {advice}"
