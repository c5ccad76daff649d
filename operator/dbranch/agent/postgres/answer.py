"""What a Postgres answers the agent, and what it says of itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from dbranch.api.errors import NotAccepting, SqlFailed

# Of a server that runs and takes sessions, though not this one: no connection is left, the database is missing or
# closed. Source: https://www.postgresql.org/docs/current/errcodes-appendix.html.
_REFUSED_STATES: Final = ("53300", "3D000", "55000")
_AUTHORIZATION_CLASS: Final = "28"
# invalid_authorization_specification, of the function that looks up the session's role: there is none, or it has no
# LOGIN. The text of the error is in the server's language. Source: miscinit.c, 14 to 18.
_NO_ROLE: Final = ("28000", "InitializeSessionUserId")
# Starting up, shutting down, in recovery.
_NOT_NOW_CLASS: Final = "57P"


class Answer(StrEnum):
    """What the Postgres in the bound slot answers to the agent.

    `REFUSES`: it accepts connections, but not the agent's. `NO_ANSWER`: nothing is known.
    """

    ACCEPTS = "accepts"
    REFUSES = "refuses"
    STARTING = "starting"
    NO_ANSWER = "no answer"


def answer_of(error: NotAccepting | SqlFailed) -> Answer:
    """Return what the error says of the server: that a session failed does not say that the server is down.

    >>> answer_of(NotAccepting("too many clients", "53300")), answer_of(SqlFailed("too slow"))
    (<Answer.REFUSES: 'refuses'>, <Answer.NO_ANSWER: 'no answer'>)
    >>> answer_of(NotAccepting("starting up", "57P03")), answer_of(NotAccepting("no socket", no_server=True))
    (<Answer.STARTING: 'starting'>, <Answer.STARTING: 'starting'>)
    """
    state = error.sqlstate
    if (isinstance(error, NotAccepting) and error.no_server) or state.startswith(_NOT_NOW_CLASS):
        return Answer.STARTING
    refused = state in _REFUSED_STATES or state.startswith(_AUTHORIZATION_CLASS)
    # A statement that failed was one of a session.
    return Answer.REFUSES if refused or (state and isinstance(error, SqlFailed)) else Answer.NO_ANSWER


def is_role_missing(error: NotAccepting | SqlFailed) -> bool:
    """True if the server has no role of the session's user that may log in.

    >>> is_role_missing(NotAccepting("Rolle »postgres« existiert nicht", "28000", routine="InitializeSessionUserId"))
    True
    >>> is_role_missing(NotAccepting('role "postgres" does not exist', "28000", routine="ClientAuthentication"))
    False
    """
    return (error.sqlstate, error.routine) == _NO_ROLE


@dataclass(frozen=True)
class RejectedSetting:
    """What a Postgres does not take of its settings files: one line, without a value of ALTER SYSTEM.

    `altered`: ALTER SYSTEM has set it; else spec.postgres.parameters has.
    """

    text: str
    altered: bool = False


@dataclass(frozen=True)
class ServerFacts:
    """What a Postgres says of itself.

    `version`: None unless it accepts the agent's session; then `answer` says what it does instead, and `error` why,
    in one line. `missing_superuser`: it has no role of the endpoint's user that may log in. `pending_settings`: the
    names of the settings that need a restart. `rejected_settings`: what it does not take of its settings files.
    `loaded_at`: when it read its settings files last, as `time.time()` counts. `passwords`: by role that exists, the
    version of its password as of `api.scram.version_of`, "" without one.
    """

    version: str | None = None
    answer: Answer = Answer.NO_ANSWER
    error: str = ""
    pending_settings: tuple[str, ...] = ()
    rejected_settings: tuple[RejectedSetting, ...] = ()
    loaded_at: float = 0.0
    missing_superuser: bool = False
    passwords: Mapping[str, str] = field(default_factory=dict)
