"""`use` and `activeBranch`: the same connection string reaches the new branch."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import TIMEOUT_SECONDS, Project, connected, eventually, read_line, run


@pytest.fixture(scope="module")
def two_branches(shop: Project) -> Iterator[Project]:
    """`shop` with a branch `feature-x`; the table `whoami` of a branch holds its name."""
    shop.branch("feature-x")
    for branch in ("main", "feature-x"):
        shop.sql(f"create table whoami as select '{branch}' as name", branch)
    yield shop
    shop.use("main")
    shop.discard("feature-x")


def test_use_moves_the_connection_string(two_branches: Project) -> None:
    uri = two_branches.uri()
    for branch in ("feature-x", "main"):
        outcome = two_branches.team.dbranch("-p", "shop", "use", branch)
        assert branch in outcome.output
        assert two_branches.team.sql(uri, "select name from whoami") == branch
        assert two_branches.status()["route"]["branch"] == branch
    assert two_branches.uri() == uri


def test_patch_of_active_branch(two_branches: Project) -> None:
    uri = two_branches.uri()
    for branch in ("feature-x", "main"):
        two_branches.team.kubectl(
            "patch", "dbproject", "shop", "--type=merge", "-p", f'{{"spec":{{"activeBranch":"{branch}"}}}}'
        )
        eventually(
            f"routed to {branch}",
            lambda b=branch: two_branches.status()["route"]["branch"] == b,
        )
        two_branches.team.wait_reason("dbproject", "shop", "Routed", "Routed")
        assert two_branches.team.sql(uri, "select name from whoami") == branch
        eventually(f"status.active of {branch}", lambda b=branch: two_branches.status(b).get("active"))


def test_after_routed_is_true_no_new_session_reaches_the_old_branch(two_branches: Project) -> None:
    """Ten switches: the first session after `Routed=True` is on the new branch every time."""
    uri = two_branches.uri()
    for round_ in range(10):
        branch = ("feature-x", "main")[round_ % 2]
        two_branches.use(branch)
        assert two_branches.team.sql(uri, "select name from whoami") == branch


def test_a_session_of_the_old_branch_ends_with_57p01(two_branches: Project) -> None:
    two_branches.use("main")
    session = subprocess.Popen(
        [
            *("kubectl", "-n", two_branches.team.name, "exec", "-i", "client", "--"),
            *("psql", two_branches.uri(), "-XAtq", "-v", "VERBOSITY=verbose"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert session.stdin and session.stdout
    session.stdin.write("select name from whoami;\n")
    session.stdin.flush()
    assert read_line(session.stdout) == "main"
    two_branches.use("feature-x")
    session.stdin.write("select name from whoami;\n")
    out, err = session.communicate(timeout=TIMEOUT_SECONDS)
    assert "57P01" in err, (out, err)
    assert "main" not in out
    two_branches.use("main")


def test_a_named_branch_by_the_startup_option(two_branches: Project) -> None:
    two_branches.use("main")
    uri = two_branches.uri()
    for separator in ("&" if "?" in uri else "?",):
        named = f"{uri}{separator}options=-c%20dbranch.branch%3Dfeature-x"
        assert two_branches.team.sql(named, "select name from whoami") == "feature-x"
        assert two_branches.team.sql(named, "show dbranch.branch") == "feature-x"
        missing = two_branches.team.rejection(named.replace("feature-x", "nowhere"))
        assert "nowhere" in missing and "feature-x" in missing


@contextmanager
def port_forward(project: Project, *args: str) -> Iterator[int]:
    """Run `dbranch start` on a free local port; yield the port once it listens."""
    forward = subprocess.Popen(
        ["dbranch", "-n", project.team.name, "-p", project.name, "start", "--port", "0", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert forward.stdout
    try:
        printed = ""
        while not (listening := re.search(r"localhost:(\d+)", printed)):
            line = read_line(forward.stdout)
            assert line or forward.poll() is None, printed
            printed += f"{line}\n"
        yield int(listening[1])
    finally:
        forward.terminate()
        forward.wait(TIMEOUT_SECONDS)


def local_psql(project: Project, port: int, query: str) -> str:
    """Run a query with this machine's psql through a local port; return its rows."""
    secret = project.team.secret(f"{project.name}-conn")
    env = {**os.environ, "PGPASSWORD": secret["password"], "PGCONNECT_TIMEOUT": "20"}
    argv = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", secret["username"], "-d", secret["database"]]
    outcome = connected(lambda: run([*argv, "-XAtq", "-c", query], env=env, check=False))
    assert outcome.code == 0, outcome.output
    return outcome.text


def test_dbranch_start_follows_the_switch(two_branches: Project) -> None:
    two_branches.use("main")
    with port_forward(two_branches) as port:
        for branch in ("main", "feature-x", "main"):
            two_branches.use(branch)
            assert local_psql(two_branches, port, "select name from whoami") == branch


def test_dbranch_psql_and_url_and_load(two_branches: Project) -> None:
    two_branches.use("main")
    team = two_branches.team
    assert team.dbranch("-p", "shop", "psql", "--", "-XAtqc", "select name from whoami").text == "main"
    assert (
        team.dbranch("-p", "shop", "psql", "feature-x", "--", "-XAtqc", "select name from whoami").text
        == "feature-x"
    )
    failed = team.dbranch(
        "-p", "shop", "psql", "--", "-v", "ON_ERROR_STOP=1", "-Xqc", "select 1/0", check=False
    )
    assert failed.code == 1 and "division by zero" in failed.err
    url = team.dbranch("-p", "shop", "url").text
    assert url == two_branches.uri()
    env = team.dbranch("-p", "shop", "url", "feature-x", "--format", "env").text
    assert re.search(rf"^(export )?PGHOST='?shop-feature-x\.{team.name}\.svc'?$", env, re.M), env
    team.dbranch(
        "-p",
        "shop",
        "load",
        "-",
        "feature-x",
        stdin="create table loaded (n int); insert into loaded values (7);",
    )
    assert two_branches.sql("select n from loaded", "feature-x") == "7"
    assert two_branches.sql("select to_regclass('loaded') is null", "main") == "t"
    broken = team.dbranch(
        "-p", "shop", "load", "-", "feature-x", stdin="create tabel oops (n int);", check=False
    )
    assert broken.code != 0 and "syntax error" in broken.err
    for script, words in (
        ("create table half (n int);\nbegin;\ncommit;\nrollback;\n", "line 4: ROLLBACK"),
        ("create table half (n int);\ncopy half from stdin;\n1\n", "cut off"),
    ):
        refused = team.dbranch("-p", "shop", "load", "-", "feature-x", stdin=script, check=False)
        assert refused.code != 0 and words in refused.err and "nothing was loaded" in refused.err
        assert two_branches.sql("select to_regclass('half') is null", "feature-x") == "t"
    script = "begin;\ncreate table whole (n int);\ncommit;\n"
    team.dbranch("-p", "shop", "load", "-", "feature-x", stdin=script)
    assert two_branches.sql("select to_regclass('whole') is null", "feature-x") == "f"
    logged = team.dbranch("-p", "shop", "logs", "feature-x", "--timestamps").text
    assert re.search(r"^\d{4}-\S+ .*database system is ready to accept connections", logged, re.M), logged
    # The other projects of the namespace are other tests' matter.
    examined = team.dbranch("doctor", check=False)
    assert examined.code in (0, 1, 7)
    assert re.search(r"^ok +controller: \S+: 1 of 1 ready", examined.out, re.M), examined.output
    assert re.search(r"^ok +policies: \d+, each bound", examined.out, re.M), examined.output
    assert team.dbranch("-p", "shop", "current").text == "shop/main"
