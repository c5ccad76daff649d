"""What an object's condition says of what was refused, or of a reconcile that failed. Pure."""

from __future__ import annotations

import re
from typing import Final

from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.errors import (
    ApiError,
    BeingDeleted,
    ClusterUnreachable,
    DbranchError,
    NameTaken,
    ObjectRefused,
)

# What the API server begins with, and the subject says already.
_REFUSAL_PREFIX: Final = re.compile(r'^[\w.]+ "[^"]*" is (forbidden|invalid): ')
# BadRequest and Forbidden (admission, quota), too large, Invalid; InternalError if a webhook does not answer.
_REFUSAL_STATUS: Final = frozenset({400, 403, 413, 422, 500})


def is_refusal(error: ApiError) -> bool:
    """Return True if the API server rejects the object as it is, so that only a change of something else helps."""
    return error.status in _REFUSAL_STATUS


def refusal_finding(error: DbranchError, effect: str) -> Finding:
    """Return the finding of an object that could not be applied. `effect`: what follows from that, in words."""
    if isinstance(error, NameTaken):
        return Finding(Reason.NAME_TAKEN, str(error))
    if isinstance(error, BeingDeleted):
        text = f"{error}; {effect}; it goes on when that is gone"
        return Finding(Reason.WAITING_FOR_DELETION, text)
    subject = error.subject if isinstance(error, ObjectRefused) else "the API server refuses a request"
    return Finding(
        Reason.OBJECT_REFUSED, refusal_message(subject, str(error), f"{effect}; it is tried again")
    )


def refusal_message(subject: str, sentence: str, advice: str) -> str:
    """Return `<subject>: <sentence>; <advice>`, with the sentence cut so that the message is not."""
    sentence = sentence_of(sentence)
    room = MESSAGE_LIMIT - len(f"{subject}: ; {advice}")
    if len(sentence) > room:
        sentence = sentence[: room - 1] + "…"
    return f"{subject}: {sentence}; {advice}"


def sentence_of(text: str) -> str:
    """Return the API server's sentence on one line, without the object's name in front.

    >>> sentence_of('services "shop-x" is forbidden: exceeded quota: few')
    'exceeded quota: few'
    """
    return _REFUSAL_PREFIX.sub("", " ".join(text.split()))


def failure_finding(subject: str, error: Exception) -> Finding | None:
    """Return what to report of an exception; None if the object is not to blame: no answer, or written meanwhile."""
    if isinstance(error, ClusterUnreachable | OSError):
        return None
    if isinstance(error, ApiError) and error.status in (404, 409):
        return None
    cause = str(error) if isinstance(error, DbranchError) else f"unexpected {type(error).__name__}"
    return Finding(
        Reason.RECONCILE_FAILED, f"{subject}: {cause}; it is tried again; see the controller's log"
    )
