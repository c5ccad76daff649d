"""How a command fails: an exit code, a reason in CamelCase and a message."""

from __future__ import annotations

import re
from enum import IntEnum

from dbranch.api.errors import ApiError, ClusterUnreachable, DbranchError, InvalidInput


class ExitCode(IntEnum):
    """The exit codes of `dbranch`, as docs/cli.md lists them."""

    OTHER = 1
    USAGE = 2
    NOT_FOUND = 3
    FORBIDDEN = 4
    TIMED_OUT = 5
    REFUSED = 6
    STALLED = 7
    INTERRUPTED = 130


# The denial of a ValidatingAdmissionPolicy, as API servers from 1.32 on word it.
_POLICY_DENIAL = re.compile(
    r"ValidatingAdmissionPolicy '(?P<policy>[^']+)'.*?denied request:\s*(?P<message>.*)", re.DOTALL
)


class Failure(DbranchError):
    """The end of a command with exit code `code`; `reason` is one word in CamelCase, the text a sentence."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(message)

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Return what `-o json` prints: `{"error": {"code", "reason", "message"}}`."""
        return {"error": {"code": int(self.code), "reason": self.reason, "message": str(self)}}


def failure_from(error: DbranchError) -> Failure:
    """Convert any exception of dbranch to the Failure that the command ends with."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, InvalidInput):
        return Failure(ExitCode.USAGE, "InvalidInput", str(error))
    if isinstance(error, ClusterUnreachable):
        return Failure(ExitCode.OTHER, "Unreachable", str(error))
    if isinstance(error, ApiError):
        return _failure_from_api_error(error)
    return Failure(ExitCode.OTHER, "Error", str(error))


def _failure_from_api_error(error: ApiError) -> Failure:
    message, reason = str(error), error.reason
    denial = _POLICY_DENIAL.search(message)
    if error.status in (403, 422) and denial:
        text = f"{denial['message'].strip()} (policy {denial['policy']})"
        return Failure(ExitCode.REFUSED, reason, text)
    if error.status == 403 and "denied the request" in message:  # an admission webhook
        return Failure(ExitCode.REFUSED, reason, message)
    if error.status == 401:
        text = f"not logged in: {message}; renew the credentials of this kubeconfig's user"
        return Failure(ExitCode.FORBIDDEN, "Unauthorized", text)
    if error.status == 403:
        return Failure(ExitCode.FORBIDDEN, "Forbidden", message)
    if error.status in (404, 410):
        return Failure(ExitCode.NOT_FOUND, reason, message)
    if error.status in (409, 422):
        return Failure(ExitCode.REFUSED, reason, message)
    return Failure(ExitCode.OTHER, reason, message)
