"""`dbranch load` around the load itself: the branch that is made for it, what is said meanwhile, its arguments."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest

from dbranch.api.errors import ApiError
from dbranch_cli import load_target
from dbranch_cli.dump_facts import DumpFacts
from dbranch_cli.dump_stream import DamagedDump
from dbranch_cli.failure import Failure
from dbranch_cli.load import LoadOptions, load, print_dry_run
from dbranch_cli.load_look import DumpFile
from dbranch_cli.load_server import ServerFacts
from dbranch_cli.load_target import new_branch
from dbranch_cli.progress import Progress, progress_text


class FakeStore:
    """Knows the branch `main`, and what is created and deleted."""

    def __init__(self, refuses: bool = False) -> None:
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.refuses = refuses

    def find_branch(self, project: str, branch: str) -> dict[str, Any] | None:
        return {} if branch == "main" else None

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["spec"] == {"project": "shop", "source": "main"}
        self.created.append(body["metadata"]["name"])
        return body

    def delete(self, live: dict[str, Any]) -> None:
        if self.refuses:
            raise ApiError(403, "Forbidden", "no right to delete")
        self.deleted.append(live["metadata"]["name"])


@pytest.fixture
def invocation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(load_target, "wait_for", lambda *args, **options: None)
    notes: list[str] = []
    return SimpleNamespace(
        store=FakeStore(),
        project_name="shop",
        namespace="team",
        human_output=True,
        notes=notes,
        print_note=notes.append,
    )


def test_a_branch_that_was_made_for_a_load_stays(invocation: Any) -> None:
    with new_branch(invocation, "loaded", "main", 1) as name:
        assert name == "loaded"
    assert (invocation.store.created, invocation.store.deleted) == (["shop-loaded"], [])


@pytest.mark.parametrize("error", [Failure(1, "LoadFailed", "x"), KeyboardInterrupt(), SystemExit(143)])
def test_a_branch_that_was_made_for_a_load_goes_if_that_fails(invocation: Any, error: BaseException) -> None:
    with pytest.raises(type(error)), new_branch(invocation, "loaded", "main", 1):
        raise error
    assert invocation.store.deleted == ["shop-loaded"]
    assert invocation.notes[-1] == "branch loaded is removed, since nothing was loaded into it"


def test_a_branch_that_cannot_be_removed_is_named(invocation: Any) -> None:
    invocation.store.refuses = True
    with (
        pytest.raises(Failure, match="the load's own"),
        new_branch(invocation, "loaded", "main", 1),
    ):
        raise Failure(1, "LoadFailed", "the load's own failure")
    assert "run 'dbranch delete loaded'" in invocation.notes[-1]


def test_a_branch_that_exists_is_neither_loaded_nor_removed(invocation: Any) -> None:
    with pytest.raises(Failure, match="already exists"), new_branch(invocation, "main", "main", 1):
        pytest.fail("loaded")
    assert (invocation.store.created, invocation.store.deleted) == ([], [])


def test_without_a_name_no_branch_is_made(invocation: Any) -> None:
    with new_branch(invocation, None, "main", 1) as name:
        assert name is None
    assert invocation.store.created == []


def test_a_file_is_looked_at_whole_and_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "dump.sql.gz"
    script = b"create table t ();\n" * 10000 + b"alter table t owner to bob;\n"
    path.write_bytes(gzip.compress(script))
    dump = DumpFile(str(path), quiet=True)
    facts = dump.inspect(atomic=True)
    assert (facts.dump_format, facts.packing, facts.roles, facts.complete) == ("SQL", "gzip", ["bob"], True)
    with dump.chunks("loading") as (_, chunks):
        assert b"".join(chunks) == script


def test_of_a_pipe_the_beginning_is_looked_at_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    script = b"alter table t owner to bob;\n" + b"select 1;\n" * 20000 + b"alter table t owner to ann;\n"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(script)))
    dump = DumpFile("-", quiet=True)
    facts = dump.inspect(atomic=True)
    assert (facts.roles, facts.complete) == (["bob"], False)
    with dump.chunks("loading") as (_, chunks):
        assert b"".join(chunks) == script


def test_where_the_beginning_of_a_pipe_ends_is_no_end_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first 64 KiB end with "commit", of which the semicolon comes behind.
    script = b"-" * (65536 - 7) + b"\ncommit;\nselect 1;\n"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(script)))
    assert not DumpFile("-", quiet=True).inspect(atomic=True).complete


def test_a_short_pipe_is_looked_at_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    script = b"select 1;\ncopy t from stdin;\n1\n"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(script)))
    with pytest.raises(DamagedDump, match="cut off"):
        DumpFile("-", quiet=True).inspect(atomic=True)


def test_progress_is_a_line_every_ten_seconds_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress, quiet = Progress("loading", 100 << 20, False), Progress("loading", 100 << 20, True)
    for _ in range(25):
        clock[0] += 1
        progress.add(1 << 20)
        quiet.add(1 << 20)
    progress.clear()
    assert capsys.readouterr().err.splitlines() == [
        "- loading:  10 %, 10Mi of 100Mi, 1Mi/s, 90 s left",
        "- loading:  20 %, 20Mi of 100Mi, 1Mi/s, 80 s left",
    ]


@pytest.mark.parametrize("count", [0, 1, 999_999_999, 10**12 - 1])
def test_a_bar_fits_a_terminal_of_eighty_columns(count: int) -> None:
    assert len(progress_text("loading", count, 10**12, 12345.6, bar=True)) <= 80


def test_a_dry_run_prints_an_object_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    facts = DumpFacts("custom", "zstd", "pg_dump", "17.2", "16.4", roles=["bob"], complete=True)
    server = ServerFacts("17.2", 17, "postgres", "dbranch", "UTF8", [], [], [], relations=2, schemas=1)
    options = LoadOptions("loaded", True, True, False, {}, True)
    print_dry_run(cast(Any, SimpleNamespace(human_output=False)), "x", facts, server, options, ["bob"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["branch"] == "loaded" and printed["missingRoles"] == ["bob"] and printed["transaction"]
    assert (printed["format"], printed["packing"], printed["serverVersion"]) == ("custom", "zstd", "16.4")
    print_dry_run(cast(Any, SimpleNamespace(human_output=True)), "x", facts, server, options, ["b\x1bob"])
    assert capsys.readouterr().out.splitlines() == [
        "x would be loaded into branch loaded (Postgres 17.2)",
        r"roles would be created, without login: b\x1bob",
        "dropped before: tables and views: 2 and 1 schema beside public",
    ]


def test_a_role_map_has_two_names() -> None:
    with pytest.raises(click.BadParameter, match="is not OLD=NEW"):
        load.make_context("load", ["x.sql", "--role-map", "shop"])


def test_the_help_fits_eighty_columns() -> None:
    context = click.Context(load, info_name="load", terminal_width=80, max_content_width=80)
    text = load.get_help(context)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "dbranch load shop.sql.gz" in text
