"""What the server that a dump is loaded into has, and what the branch's database holds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_count

_QUERY: Final = """
select pg_catalog.json_build_object(
  'version', current_setting('server_version'), 'major', current_setting('server_version_num')::int / 10000,
  'user', current_user, 'database', pg_catalog.current_database(),
  'encoding', current_setting('server_encoding'),
  'roles', (select pg_catalog.json_agg(rolname) from pg_catalog.pg_roles),
  'databases', (select pg_catalog.json_agg(datname) from pg_catalog.pg_database),
  'extensions', (select pg_catalog.json_agg(name) from pg_catalog.pg_available_extensions),
  'relations', (select count(*) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'),
  'schemas', (select count(*) from pg_catalog.pg_namespace
    where nspname !~ '^pg_' and nspname not in ('public', 'information_schema')))
"""

# All that the database holds, as a first use of it found it: the schema public stays, with its owner and grants. What
# belongs to an extension goes with it; plpgsql stays.
CLEAN: Final = """
do $clean$
declare thing record;
begin
  for thing in select oid from pg_catalog.pg_largeobject_metadata loop
    perform pg_catalog.lo_unlink(thing.oid);
  end loop;
  for thing in
    select pg_catalog.format('drop %s if exists %s cascade', kind, identity) as command from (
      select 1 as step, 'event trigger' as kind, pg_catalog.quote_ident(evtname) as identity
        from pg_catalog.pg_event_trigger
      union all select 2, 'publication', pg_catalog.quote_ident(pubname) from pg_catalog.pg_publication
      union all select 3, 'extension', pg_catalog.quote_ident(extname) from pg_catalog.pg_extension
        where extname <> 'plpgsql'
      union all select 4, 'foreign data wrapper', pg_catalog.quote_ident(fdwname)
        from pg_catalog.pg_foreign_data_wrapper
      union all select 5, 'schema', pg_catalog.quote_ident(nspname) from pg_catalog.pg_namespace
        where nspname !~ '^pg_' and nspname not in ('public', 'information_schema')
      union all select 6, 'cast', i.identity from pg_catalog.pg_cast c
        cross join lateral pg_catalog.pg_identify_object('pg_catalog.pg_cast'::pg_catalog.regclass, c.oid, 0) i
        where c.oid >= 16384
    ) as things order by step
  loop
    execute thing.command;
  end loop;
  loop
    select case when i.type in ('function', 'procedure', 'aggregate') then 'routine'
        when i.type = 'statistics object' then 'statistics' when i.type = 'composite type' then 'type'
        else i.type end as type, i.identity
      into thing
      from pg_catalog.pg_depend d cross join lateral pg_catalog.pg_identify_object(d.classid, d.objid, 0) i
      where d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass and d.deptype = 'n'
        and d.refobjid = pg_catalog.to_regnamespace('public') and i.type <> 'default acl'
      order by d.classid, d.objid limit 1;
    exit when not found;
    execute pg_catalog.format('drop %s %s cascade', thing.type, thing.identity);
  end loop;
end $clean$
"""


@dataclass(frozen=True)
class ServerFacts:
    """The server and the branch's database; `relations` and `schemas` count what the database holds."""

    version: str
    major: int
    user: str
    database: str
    encoding: str
    roles: list[str]
    databases: list[str]
    extensions: list[str]
    relations: int
    schemas: int

    @property
    def holds(self) -> str:
        """What the database holds, for people; empty for nothing."""
        if not self.relations and not self.schemas:
            return ""
        schemas = f" and {format_count(self.schemas, 'schema')} beside public" if self.schemas else ""
        return f"tables and views: {self.relations}{schemas}"


def observe_server(run_psql: Callable[[list[str]], int]) -> ServerFacts:
    """Return what the server has; `run_psql` runs psql with arguments as the superuser and returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="dbranch-") as directory:
        output = Path(directory, "facts")
        if run_psql(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-o", str(output), "-c", _QUERY]):
            message = "cannot ask the branch what it has; see the messages above; nothing was loaded"
            raise Failure(ExitCode.OTHER, "LoadFailed", message)
        return ServerFacts(**json.loads(output.read_text()))
