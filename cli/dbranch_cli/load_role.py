"""The role that loads a dump for the application. Pure.

It is a superuser for that time, so that a dump may create what only a superuser may. It cannot log in and nobody is
a member of it, so one that an interrupted load leaves behind gives nobody anything. What the dump gives no owner goes
to the application's role in the end, but extensions with all that is theirs go to the superuser: who owns a function
may execute it, and some lead to the superuser (dblink_connect_u).
"""

from __future__ import annotations

from dataclasses import dataclass

# Of the types of pg_identify_object those that ALTER calls otherwise.
_GIVE = """
do $give$
declare thing record;
begin
  for thing in
    select case when i.type in ('function', 'procedure', 'aggregate') then 'routine'
      when i.type = 'statistics object' then 'statistics' else i.type end as type, i.identity
    from pg_catalog.pg_shdepend d cross join lateral pg_catalog.pg_identify_object(d.classid, d.objid, 0) i
    where d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass and d.deptype = 'o'
      and d.refobjid = (select oid from pg_catalog.pg_roles where rolname = {loader_text})
      and d.dbid = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
      and i.type not in ('foreign-data wrapper', 'event trigger', 'extension', 'default acl', 'language')
      and not exists (select from pg_catalog.pg_depend e
        where e.classid = d.classid and e.objid = d.objid and e.objsubid = 0
          and (e.deptype = 'e' or (i.type = 'sequence' and e.deptype in ('a', 'i') and e.refobjsubid > 0)))
  loop
    execute pg_catalog.format('alter %s %s owner to %s', thing.type, thing.identity, {owner_text});
  end loop;
end $give$
"""


def quote_identifier(name: str) -> str:
    """Quote a name for SQL.

    >>> quote_identifier('a"b')
    '"a""b"'
    """
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True)
class LoadRole:
    """A role `name` of its own for each load; `owner`: the application's role; `superuser`: who is connected."""

    name: str
    owner: str
    superuser: str

    @property
    def create(self) -> str:
        """The statement that creates it."""
        return f"create role {quote_identifier(self.name)} superuser nologin"

    @property
    def become(self) -> str:
        """The statement after which the session creates everything as this role."""
        return f"set session authorization {quote_identifier(self.name)}"

    @property
    def finish(self) -> tuple[str, ...]:
        """The statements that give away what it owns and drop it."""
        name, owner = quote_identifier(self.name), quote_identifier(self.owner)
        return (
            "reset session authorization",
            _GIVE.format(loader_text=_literal(self.name), owner_text=_literal(owner)),
            f"reassign owned by {name} to {quote_identifier(self.superuser)}",
            f"drop owned by {name}",
            f"drop role {name}",
        )
