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
from dbranch.api.parameters import FORCED, NAME_PATTERN

_KEY: Final = re.compile(NAME_PATTERN)
_MAX_PREPARED: Final = "max_prepared_transactions"

# On btrfs, reusing a WAL file gains nothing, and writing zeros first means writing twice.
_ALWAYS: Final = {"wal_init_zero": "off", "wal_recycle": "off"}
# A copy must not run its source's jobs, unless its own parameters ask for it; nor must quiet data. slot-start.sh
# reads these comment lines: libraries that it removes from shared_preload_libraries, and settings; both go on the
# command line, so that ALTER SYSTEM cannot undo them. TimescaleDB cannot be removed: its tables need it.
_PRELOAD: Final = "shared_preload_libraries"
_SCHEDULERS: Final = "pg_cron pg_partman_bgw pg_timetable pglogical bdr pg_task pg_dbms_job"
_WORKERS: Final = "timescaledb.max_background_workers"


@dataclass(frozen=True)
class Settings:
    """What a branch's files are rendered from.

    `port`: the branch's (names.branch_port); `parameters`: the project's, overridden by the branch's; `own`: the
    names that the branch sets itself; `names`: for the marker, and for the branch's role. `read_only`: transactions
    are, unless they ask for more.
    """

    port: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    names: BranchNames = field(default_factory=BranchNames)
    own: frozenset[str] = frozenset()
    read_only: bool = False


def check_parameters(parameters: Mapping[str, str]) -> None:
    """Raise InvalidInput, naming it, if a parameter may not be set by users or its value fits in no file."""
    for key, value in parameters.items():
        if _KEY.fullmatch(key) is None:
            raise InvalidInput(
                f"parameter {key!r} is no name that postgresql.conf takes; Postgres would not start with it; "
                "take it out of postgres.parameters"
            )
        if key in FORCED:
            raise InvalidInput(f"parameter {key} is set by dbranch; take it out of postgres.parameters")
        if "\0" in value:
            raise InvalidInput(f"parameter {key} holds a NUL character; no settings file can")


# What initdb writes according to the locale, the time zone and its options. Not what it probes in its own pod
# (max_connections, shared_buffers, dynamic_shared_memory_type): the branch's pod has other limits.
_INITDB_KEYS: Final = frozenset(
    {
        "datestyle", "default_text_search_config", "lc_messages", "lc_monetary", "lc_numeric", "lc_time",
        "log_timezone", "max_wal_size", "min_wal_size", "timezone",
    }
)  # fmt: skip
_INITDB_LINE: Final = re.compile(r"(?m)^(\w+) = (?:'([^'\\]{0,128})'|(\w{1,128}))(?:\s*#.*)?$")


def initdb_settings_in(conf: str) -> dict[str, str]:
    """Return the settings that initdb chose, by their names in lower case, from the text of its postgresql.conf.

    >>> initdb_settings_in("max_connections = 100\\ndatestyle = 'iso, mdy'\\n#port = 5432\\nmax_wal_size = 1GB\\t# x")
    {'datestyle': 'iso, mdy', 'max_wal_size': '1GB'}
    """
    lines = (match.groups() for match in _INITDB_LINE.finditer(conf))
    return {key.lower(): quoted or bare or "" for key, quoted, bare in lines if key.lower() in _INITDB_KEYS}


def quote(value: str) -> str:
    """Quote a value for postgresql.conf.

    >>> print(quote("it's\\n"))
    'it''s\\n'
    """
    text = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{text}'"


def render_postgresql_conf(
    settings: Settings, role: Role, prepared_floor: int = 0, initdb_settings: Mapping[str, str] | None = None
) -> str:
    """Render postgresql.conf: `initdb_settings` below the parameters. Raises InvalidInput as `check_parameters`."""
    check_parameters(settings.parameters)
    lines = {**(initdb_settings or {}), **settings.parameters, **_ALWAYS}
    if max_prepared_of(settings.parameters) < prepared_floor:
        lines[_MAX_PREPARED] = str(prepared_floor)
    if settings.read_only:
        lines["default_transaction_read_only"] = "on"
    comment = "# Written by dbranch from spec.postgres.parameters; ALTER SYSTEM comes after it.\n"
    jobs = "" if role is Role.ROOT else _disabled_jobs(settings.own)
    # slot-start.sh reads it: ALTER SYSTEM may have set less.
    jobs += f"# At least: {_MAX_PREPARED}={prepared_floor}\n" if prepared_floor else ""
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


def _role(user: str) -> str:
    return '"' + user.replace('"', '""') + '"'


def render_hba(superuser: str, is_open: bool) -> str:
    """Render pg_hba.conf. Until the branch is opened (`is_open` False), only the agent can connect.

    The method md5 also takes SCRAM verifiers, and asks for SCRAM then. `all` does not match physical replication.
    """
    role = _role(superuser)
    if not is_open:
        comment = "# Written by dbranch: not opened yet, so only the agent can connect.\n"
        return f"{comment}local all {role} peer map=agent\n"
    return (
        "# Written by dbranch: the agent and the pod's own user by the socket, everybody else by password.\n"
        f"local all {role} peer map=pod\n"
        f"local replication {role} peer map=pod\n"
        "local all all md5\n"
        "local replication all md5\n"
        "host all all all md5\n"
        "host replication all all md5\n"
    )


def render_ident(superuser: str) -> str:
    """Render pg_ident.conf: which system users may connect as the superuser. `postgres` is the pod's own user."""
    role = _role(superuser)
    return f"# Written by dbranch.\nagent root {role}\npod root {role}\npod postgres {role}\n"


def superuser_in(ident: str) -> str:
    """Return the superuser's role in the text of a pg_ident.conf that `render_ident` made; "" if it has none.

    >>> superuser_in(render_ident("alice"))
    'alice'
    """
    match = re.search(r'(?m)^agent root "([^"]+)"$', ident)
    return match[1] if match else ""


def render_files(settings: Settings, marker: Marker) -> dict[str, str]:
    """Return `{name: text}` of a branch's settings files. Raises InvalidInput as `check_parameters` does."""
    return {
        PORT: f"{settings.port}\n",
        POSTGRESQL_CONF: render_postgresql_conf(
            settings, marker.running_role, marker.prepared_floor, marker.initdb_settings
        ),
        PG_HBA: render_hba(marker.superuser, marker.opened),
        PG_IDENT: render_ident(marker.superuser),
    }
