"""Ask a running Postgres what it is, in one session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dbranch.agent.layout import Layout
from dbranch.agent.postgres.answer import Answer, RejectedSetting, ServerFacts, answer_of, is_role_missing
from dbranch.agent.postgres.session import Endpoint, connect, version_of
from dbranch.api.conditions import printable
from dbranch.api.errors import NotAccepting, SqlFailed

# Characters of the line of a setting that is rejected.
_LINE_LENGTH: Final = 120
_LOADED_AT: Final = "extract(epoch from pg_catalog.pg_conf_load_time())::float8"
# The script of the slot starts a copy, and a root that is quiet, with 0.
JOBS_SETTING: Final = "max_logical_replication_workers"
_PENDING: Final = (
    "(select pg_catalog.string_agg(name, ' ' order by name) from pg_catalog.pg_settings where pending_restart"
    f" or (name = '{JOBS_SETTING}' and setting = '0' and source = 'command line'))"
)
# A setting that waits for a restart has an error there, too: that it could not be applied. Values that somebody gave
# by ALTER SYSTEM may be secrets; its lines begin with a "*".
_ALTERED: Final = "*"
_REJECTED: Final = (
    "(select pg_catalog.string_agg(case when sourcefile like '%/postgresql.auto.conf' then"
    f" concat('{_ALTERED}', name, ' of ALTER SYSTEM (', error, ')')"
    " else concat(name, ' = ', left(setting, 40), ' (', error, ')') end, chr(10) order by seqno)"
    " from (select * from pg_catalog.pg_file_settings f where f.error is not null and not exists"
    " (select from pg_catalog.pg_settings s where s.pending_restart and lower(s.name) = lower(f.name))"
    " order by f.seqno limit 3) f)"
)
_PASSWORD: Final = (
    "(select coalesce(left(encode(sha256(convert_to(rolpassword, 'UTF8')), 'hex'), 16), '')"
    " from pg_catalog.pg_authid where rolname = %s)"
)


def observe_server(layout: Layout, endpoint: Endpoint, roles: Sequence[str] = ()) -> ServerFacts:
    """Ask the Postgres in a slot, in one session; `roles`: those whose passwords are compared."""
    query = "select " + ", ".join((_LOADED_AT, _PENDING, _REJECTED, *(_PASSWORD for _ in roles)))
    try:
        with connect(layout, endpoint) as session:
            version = version_of(session)
            row = session.execute(query, roles, columns=3 + len(roles))[0]
            loaded_at, pending = float(row[0]), tuple(str(row[1] or "").split())
            rejected = tuple(map(_rejected_setting, str(row[2] or "").splitlines()[:3]))
    except (NotAccepting, SqlFailed) as error:
        text = str(error).removeprefix(f"Postgres in slot {endpoint.slot}: ")
        return ServerFacts(answer=answer_of(error), error=text, missing_superuser=is_role_missing(error))
    except (IndexError, TypeError, ValueError):
        return ServerFacts(error="it answers something else than a Postgres")
    passwords = {role: str(hashed) for role, hashed in zip(roles, row[3:], strict=True) if hashed is not None}
    return ServerFacts(version, Answer.ACCEPTS, "", pending, rejected, loaded_at, passwords=passwords)


def _rejected_setting(line: str) -> RejectedSetting:
    text = printable(line.removeprefix(_ALTERED))[:_LINE_LENGTH]
    return RejectedSetting(text, altered=line.startswith(_ALTERED))
