"""The text of a branch's settings files. Pure.

Settings that protect the source and the data are on Postgres' command line (slot-start.sh), which beats ALTER SYSTEM.
The others are in these files at the top of the branch's subvolume, where the tenant cannot write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dbranch.agent.layout import PG_HBA, PG_IDENT, PORT, POSTGRESQL_CONF
from dbranch.agent.volume.marker import BranchNames, Marker, Role
from dbranch.api.errors import InvalidInput
from dbranch.api.parameters import FORCED

_KEY: Final = re.compile(r"[a-z_][a-z0-9_.]*")
_MAX_PREPARED: Final = "max_prepared_transactions"

# On btrfs, reusing a WAL file gains nothing, and writing zeros first means writing twice.
_ALWAYS: Final = {"wal_init_zero": "off", "wal_recycle": "off"}
# A copy must not run its source's jobs, unless its own parameters ask for it. slot-start.sh reads these comment
# lines: libraries that it removes from shared_preload_libraries, and settings; both go on the command line, so that
# ALTER SYSTEM cannot undo them. TimescaleDB cannot be removed: its tables need it.
_PRELOAD: Final = "shared_preload_libraries"
_SCHEDULERS: Final = "pg_cron pg_partman_bgw pg_timetable pglogical bdr pg_task pg_dbms_job"
_WORKERS: Final = "timescaledb.max_background_workers"


@dataclass(frozen=True)
class Settings:
    """What a branch's files are rendered from.

    `user`: `spec.postgres.user`, the superuser; `port`: the branch's (names.branch_port); `parameters`: the
    project's, overridden by the branch's; `own`: the names that the branch sets itself; `names`: for the marker,
    and for the branch's role. `read_only`: transactions are, unless they ask for more.
    """

    user: str
    port: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    names: BranchNames = field(default_factory=BranchNames)
    own: frozenset[str] = frozenset()
    read_only: bool = False


def check_parameters(parameters: Mapping[str, str]) -> None:
    """Raise InvalidInput, naming it, if a parameter may not be set by users or its value fits in no file."""
    for key, value in parameters.items():
        if _KEY.fullmatch(key) is None:
            raise InvalidInput(f"parameter {key!r} is no name of a setting; write it in lower case")
        if key in FORCED:
            raise InvalidInput(f"parameter {key} is set by dbranch; take it out of postgres.parameters")
        if "\0" in value:
            raise InvalidInput(f"parameter {key} holds a NUL character; no settings file can")


def quote(value: str) -> str:
    """Quote a value for postgresql.conf.

    >>> print(quote("it's\\n"))
    'it''s\\n'
    """
    text = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{text}'"


def render_postgresql_conf(settings: Settings, role: Role, prepared_floor: int = 0) -> str:
    """Render postgresql.conf. Raises InvalidInput as `check_parameters` does."""
    check_parameters(settings.parameters)
    lines = {**settings.parameters, **_ALWAYS}
    if max_prepared_of(settings.parameters) < prepared_floor:
        lines[_MAX_PREPARED] = str(prepared_floor)
    if settings.read_only:
        lines["default_transaction_read_only"] = "on"
    comment = "# Written by dbranch from spec.postgres.parameters; ALTER SYSTEM comes after it.\n"
    jobs = "" if role is Role.ROOT else _disabled_jobs(settings.own)
    return comment + jobs + "".join(f"{key} = {quote(value)}\n" for key, value in sorted(lines.items()))


def _disabled_jobs(own: frozenset[str]) -> str:
    """Render the lines that keep preloaded schedulers from running, except those that the branch itself sets."""
    lines = "" if _PRELOAD in own else f"# Not loaded in a copy: {_SCHEDULERS}\n"
    return lines if _WORKERS in own else f"{lines}# Set in a copy: {_WORKERS}=0\n"


def max_prepared_of(parameters: Mapping[str, str]) -> int:
    """Return `max_prepared_transactions` of a set of parameters; 0, Postgres' default, if it is not set."""
    try:
        return int(parameters.get(_MAX_PREPARED, "0"))
    except ValueError:
        return 0


def max_prepared_in(*confs: str) -> int:
    """Return the largest `max_prepared_transactions` that the texts of settings files set; 0 if none does."""
    pattern = re.compile(rf"(?mi)^\s*{_MAX_PREPARED}\s*=?\s*'?(\d+)")
    return max((int(number) for conf in confs for number in pattern.findall(conf)), default=0)


def _role(user: str) -> str:
    return '"' + user.replace('"', '""') + '"'


def render_hba(user: str, is_open: bool) -> str:
    """Render pg_hba.conf. Until the branch is opened (`is_open` False), only the agent can connect."""
    role = _role(user)
    if not is_open:
        comment = "# Written by dbranch: not opened yet, so only the agent can connect.\n"
        return f"{comment}local all {role} peer map=agent\n"
    return (
        "# Written by dbranch: the agent and the pod's own user by the socket, everybody else by password.\n"
        f"local all {role} peer map=pod\n"
        "local all all scram-sha-256\n"
        "host all all all scram-sha-256\n"
    )


def render_ident(user: str) -> str:
    """Render pg_ident.conf: which system users may connect as the superuser. `postgres` is the pod's own user."""
    role = _role(user)
    return f"# Written by dbranch.\nagent root {role}\npod root {role}\npod postgres {role}\n"


def render_files(settings: Settings, marker: Marker) -> dict[str, str]:
    """Return `{name: text}` of a branch's settings files. Raises InvalidInput as `check_parameters` does."""
    return {
        PORT: f"{settings.port}\n",
        POSTGRESQL_CONF: render_postgresql_conf(settings, marker.role, marker.prepared_floor),
        PG_HBA: render_hba(settings.user, marker.opened),
        PG_IDENT: render_ident(settings.user),
    }
