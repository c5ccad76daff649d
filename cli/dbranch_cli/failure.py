"""How the command line fails: an exit code, one word and a sentence."""

from __future__ import annotations

import re
from typing import Final

from dbranch.api.errors import ApiError, ClusterUnreachable, DbranchError, InvalidInput

OTHER: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
FORBIDDEN: Final = 4
TIMED_OUT: Final = 5
REFUSED: Final = 6
STALLED: Final = 7
INTERRUPTED: Final = 130

# What an admission policy's refusal looks like, as an API server of 1.32 or later words it.
_POLICY = re.compile(
    r"ValidatingAdmissionPolicy '(?P<policy>[^']+)'.*?denied request:\s*(?P<said>.*)", re.DOTALL
)


class Failure(DbranchError):
    """A command that ends with `code`; `reason` is one word in CamelCase, the text a sentence for people."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(message)

    def as_dict(self) -> dict[str, dict[str, object]]:
        """The form of `-o json`: `{"error": {"code", "reason", "message"}}`."""
        return {"error": {"code": self.code, "reason": self.reason, "message": str(self)}}


def failure_of(error: DbranchError) -> Failure:
    """Any of dbranch's exceptions as the failure that the command ends with."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, InvalidInput):
        return Failure(USAGE, "InvalidInput", str(error))
    if isinstance(error, ClusterUnreachable):
        return Failure(OTHER, "Unreachable", str(error))
    if isinstance(error, ApiError):
        return _of_refused(error)
    return Failure(OTHER, "Error", str(error))


def _of_refused(error: ApiError) -> Failure:
    message, reason = str(error), error.reason
    policy = _POLICY.search(message)
    if error.status in (403, 422) and policy:
        return Failure(REFUSED, reason, f"{policy['said'].strip()} (policy {policy['policy']})")
    if error.status == 403 and "denied the request" in message:  # an admission webhook
        return Failure(REFUSED, reason, message)
    if error.status == 401:
        return Failure(
            FORBIDDEN, "Unauthorized", f"not logged in: {message}; renew the login of this kubeconfig's user"
        )
    if error.status == 403:
        return Failure(FORBIDDEN, "Forbidden", message)
    if error.status in (404, 410):
        return Failure(NOT_FOUND, reason, message)
    if error.status in (409, 422):
        return Failure(REFUSED, reason, message)
    return Failure(OTHER, reason, message)
