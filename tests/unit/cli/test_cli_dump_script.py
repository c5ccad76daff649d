"""What of a script would break "all or nothing", and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dbranch_cli.dump_script import Script, UnsafeScript
from dbranch_cli.dump_stream import DamagedDump


def load(text: str, atomic: bool = True, size: int = 7) -> str:
    """Return what is passed on of a script that arrives in pieces."""
    data = text.encode()
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(Script(atomic).pass_on(chunks)).decode()


HARMLESS = r"""
-- commit; in a comment
/* commit; /* nested */ rollback; */
select 'commit;', 'it''s; commit;', E'\'; commit;', "commit;", $$ commit; $$, $a$ $$ rollback; $a$, 1 as commit;
insert into t values ('
commit;
\connect other
');
create function f() returns int language plpgsql as $$ begin commit; return 1; end $$;
create or replace procedure p() begin atomic select case when true then 1 end; update t set n = 2; end;
create function g(int) returns int
  begin atomic
    select case $1 when 1 then case when true then 2 end else 3 end;
  end;
create rule r as on insert to t do also (delete from u; update u set n = 1);
savepoint s; rollback to savepoint s; rollback work to s; release s;
select e'a', name'b', a$b from c$d;
copy t (a, b) from stdin;
commit;
\connect other
it's data
\.
\restrict abc
set standard_conforming_strings = off;
select 'a\'; commit;';
set standard_conforming_strings = on;
select 'a\';
do $$ begin perform 1; end $$;
"""


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100000])
def test_what_only_looks_like_a_command_is_passed_on(size: int) -> None:
    assert load(HARMLESS, size=size) == HARMLESS


@pytest.mark.parametrize(
    "command",
    [
        "begin;",
        "BEGIN TRANSACTION;",
        "start transaction;",
        "commit;",
        "COMMIT WORK ;",
        "end;",
        "/* x */ commit /* y */;",
    ],
)
def test_a_scripts_own_transactions_are_left_out_of_the_one_that_it_is_loaded_in(command: str) -> None:
    script = Script(atomic=True)
    text = f"select 1; {command} select 2;\n"
    passed = b"".join(script.pass_on([text.encode()])).decode()
    assert script.left_out == 1
    assert passed.split() in (
        ["select", "1;", "select", "2;"],
        ["select", "1;", "/*", "x", "*/", "select", "2;"],
    )
    assert load(text, atomic=False) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select 1;\nrollback;\n", "line 2: ROLLBACK ends the transaction"),
        ("ABORT;\n", "line 1: ABORT ends"),
        ("prepare transaction 'x';\n", "line 1: PREPARE TRANSACTION ends"),
        ("commit\n  ;\n", "line 2: COMMIT ends"),
        ("commit \\g\n", "line 1: COMMIT ends"),
        ("select 1;\n\\connect other\n", r"line 2: \\connect leaves"),
        ("\\c -\n", r"line 1: \\connect leaves"),
        ("\\q\n", r"line 1: \\q ends the load"),
        ("copy t from stdin;\n1\n\\.\nrollback;\n", "line 4: ROLLBACK"),
    ],
)
def test_what_would_end_the_transaction_is_never_passed_on(text: str, words: str) -> None:
    with pytest.raises(UnsafeScript, match=words):
        load(text)
    passed: list[bytes] = []
    with pytest.raises(UnsafeScript):
        passed.extend(Script(atomic=True).pass_on([line.encode() for line in text.splitlines(keepends=True)]))
    assert b"".join(passed).decode() == "".join(text.splitlines(keepends=True)[:-1])


def test_without_a_transaction_a_script_may_connect_and_commit() -> None:
    text = "\\connect other\nbegin;\nrollback;\n"
    assert load(text, atomic=False) == text
    with pytest.raises(UnsafeScript):
        load("\\q\n", atomic=False)


@pytest.mark.parametrize(
    "text",
    [
        "copy t from stdin;\n1\n2\n",
        "copy t from stdin;\n1\n\\.x\n",
        "copy t from stdin;\n",
        "\\copy t from stdin\n1\n",
        "select 'abc\n",
        "select $a$ abc\n",
        "/* abc\n",
        "-- PostgreSQL database dump\ncreate table t (n int);\n",
        "-- PostgreSQL database cluster dump\n-- PostgreSQL database dump\n-- PostgreSQL database dump complete\n",
    ],
)
def test_a_script_that_is_cut_off(text: str) -> None:
    with pytest.raises(DamagedDump, match="it is cut off"):
        load(text)


@pytest.mark.parametrize(
    "text",
    [
        "--\n-- PostgreSQL database dump\n--\nselect 1;\n--\n-- PostgreSQL database dump complete\n--\n",
        "-- PostgreSQL database dump\r\n-- PostgreSQL database dump complete\r\n\\unrestrict x\r\n"
        + "select 1;\n" * 900,
        "-- PostgreSQL database cluster dump\nselect 1;\n-- PostgreSQL database cluster dump complete\n",
        "copy t from stdin;\r\n1\r\n\\.\r\n",
        "copy t from stdin;\n\\.",
        "select 1",
        "",
    ],
)
def test_a_script_that_is_whole(text: str) -> None:
    assert load(text) == text


def test_the_schema_that_there_is_already_is_not_created_again() -> None:
    assert load("CREATE SCHEMA public;\n") == "CREATE SCHEMA if not exists public;\n"
    assert load("create schema\tpublic ;select 1;\n") == "create schema if not exists\tpublic ;select 1;\n"
    for other in (
        "CREATE SCHEMA public2;\n",
        "create schema public authorization x;\n",
        "select 'create schema public;';\n",
    ):
        assert load(other) == other


QUOTING = ["'", '"', "$$", "$a$", "--", "/*", "*/", "\\", ";", "(", ")", "e'"]
TOKENS = st.sampled_from(
    [*QUOTING, "\n", " ", "x", "commit", "begin", "end", "copy t from stdin;\n", "\\.\n"]
)


ROWS = r"""
INSERT INTO "T;" (a, "b""c") VALUES (1, 'it''s; commit;', E'a\';');
insert into t values
	(1, 'a;', null),
	(2, '-- /* $$', 'x\');
insert into t values (1, '
rollback;');
insert into t select f(1; 2);
"""


def test_lines_of_inserts() -> None:
    text = ROWS.replace("f(1; 2)", "f(1)")
    assert load(text) == text
    with pytest.raises(UnsafeScript, match="line 9: COMMIT"):
        load(text + "rollback to x; commit\\g\n")
    with pytest.raises(UnsafeScript, match="line 2: ROLLBACK"):
        load("insert into t values (1, 'a');\nrollback;\n")
    with pytest.raises(UnsafeScript, match="line 1: ROLLBACK"):
        load("insert into t values (1, 'a'); rollback;\n")


def test_reading_lines_of_inserts_at_once_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [HARMLESS, ROWS, ROWS + "copy t from stdin;\n", "begin;\n" + ROWS]
    at_once = [outcome_of(text) for text in texts]
    monkeypatch.setattr(Script, "_read_plain", lambda *_: False)
    assert [outcome_of(text) for text in texts] == at_once


def outcome_of(text: str, size: int = 64) -> tuple[str, str]:
    try:
        return "", load(text, size=size)
    except DamagedDump as error:
        return str(error), ""


@settings(max_examples=300, deadline=None)
@given(st.lists(TOKENS, max_size=30).map("".join), st.integers(1, 9))
def test_pieces_make_no_difference(text: str, size: int) -> None:
    assert outcome_of(text, size) == outcome_of(text, len(text) + 1)


@settings(max_examples=300, deadline=None)
@given(st.lists(TOKENS, max_size=30).map("".join))
@example("commit)(")
@example("''\ncommit;")
def test_lines_read_at_once_make_no_difference(text: str) -> None:
    at_once = outcome_of(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Script, "_read_plain", lambda *_: False)
        assert outcome_of(text) == at_once
