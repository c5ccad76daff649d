"""The text of a branch's settings files and marker. Pure.

What protects the source and the data stands on Postgres' command line (slot-start.sh), which beats
ALTER SYSTEM. What stands here is read from the branch's subvolume, where the tenant cannot write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dbranch.agent.volume.marker import BranchNames, Role
from dbranch.api.errors import InvalidInput
from dbranch.api.parameters import FORCED

_KEY: Final = re.compile(r"[a-z_][a-z0-9_.]*")
_PREPARED: Final = "max_prepared_transactions"

# On btrfs a new file is as good as an old one, and zeroes are only written twice.
_ALWAYS: Final = {"wal_init_zero": "off", "wal_recycle": "off"}
# A copy must not run its source's jobs again, unless its own parameters ask for it. slot-start.sh reads these
# lines: libraries that it leaves out of shared_preload_libraries, and settings; both go on the command line, so
# that ALTER SYSTEM cannot undo them. TimescaleDB cannot be left out: its tables need it.
_PRELOADED: Final = "shared_preload_libraries"
_SCHEDULERS: Final = "pg_cron pg_partman_bgw pg_timetable pglogical bdr pg_task pg_dbms_job"
_WORKERS: Final = "timescaledb.max_background_workers"


@dataclass(frozen=True)
class Settings:
    """What a branch's files say. `parameters`: the project's, then the branch's over them; `own`: the names
    that the branch sets itself; `port`: the branch's (names.branch_port); `user`: `spec.postgres.user`, the
    superuser; `names` goes into the marker and says the branch's role."""

    user: str
    port: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    names: BranchNames = field(default_factory=BranchNames)
    own: frozenset[str] = frozenset()


def check_parameters(parameters: Mapping[str, str]) -> None:
    """InvalidInput naming the parameter that users may not set, or a value that no file can hold."""
    for key, value in parameters.items():
        if _KEY.fullmatch(key) is None:
            raise InvalidInput(f"parameter {key!r} is no name of a setting; write it in lower case")
        if key in FORCED:
            raise InvalidInput(f"parameter {key} is set by dbranch; take it out of postgres.parameters")
        if "\0" in value:
            raise InvalidInput(f"parameter {key} holds a NUL character; no settings file can")


def quoted(value: str) -> str:
    """A value as postgresql.conf reads it back.

    >>> print(quoted("it's\\n"))
    'it''s\\n'
    """
    text = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{text}'"


def render_postgresql_conf(settings: Settings, role: Role, prepared_floor: int = 0) -> str:
    """postgresql.conf. InvalidInput as `check_parameters`; the last line of a setting wins."""
    check_parameters(settings.parameters)
    lines = {**settings.parameters, **_ALWAYS}
    if prepared_of(settings.parameters) < prepared_floor:
        lines[_PREPARED] = str(prepared_floor)
    head = "# Written by dbranch from spec.postgres.parameters; ALTER SYSTEM comes after it.\n"
    jobs = "" if role is Role.ROOT else _jobs_off(settings.own)
    return head + jobs + "".join(f"{key} = {quoted(value)}\n" for key, value in sorted(lines.items()))


def _jobs_off(own: frozenset[str]) -> str:
    """What keeps preloaded schedulers still; nothing of what the branch itself asks for."""
    off = "" if _PRELOADED in own else f"# Not loaded in a copy: {_SCHEDULERS}\n"
    return off if _WORKERS in own else f"{off}# Set in a copy: {_WORKERS}=0\n"


def prepared_of(parameters: Mapping[str, str]) -> int:
    """`max_prepared_transactions` in a set of parameters; 0, Postgres' default, where it is not."""
    try:
        return int(parameters.get(_PREPARED, "0"))
    except ValueError:
        return 0


def read_prepared(*confs: str) -> int:
    """The largest `max_prepared_transactions` that the texts of settings files set."""
    pattern = re.compile(rf"(?mi)^\s*{_PREPARED}\s*=?\s*'?(\d+)")
    return max((int(number) for conf in confs for number in pattern.findall(conf)), default=0)


def _role(user: str) -> str:
    return '"' + user.replace('"', '""') + '"'


def render_hba(user: str, is_open: bool) -> str:
    """pg_hba.conf. Until the branch is cleaned (`is_open` False), only the agent gets in."""
    role = _role(user)
    if not is_open:
        return f"# Written by dbranch: not cleaned yet, so only the agent gets in.\nlocal all {role} peer map=agent\n"
    return (
        "# Written by dbranch: the agent and the pod's own user by the socket, everybody by password.\n"
        f"local all {role} peer map=pod\n"
        "local all all scram-sha-256\n"
        "host all all all scram-sha-256\n"
    )


def render_ident(user: str) -> str:
    """pg_ident.conf: which user of the system may be the superuser. `postgres` is the pod's own user."""
    role = _role(user)
    return f"# Written by dbranch.\nagent root {role}\npod root {role}\npod postgres {role}\n"
