"""Connection strings, libpq's environment, the forms of a dump, what `init` writes, what `wait` waits for."""

from __future__ import annotations

import io
import json
import shlex
from typing import Any

import pytest

from dbranch.api.conditions import Condition
from dbranch_cli.branches import goal_of
from dbranch_cli.connect import client_environment, connection_text
from dbranch_cli.failure import Failure
from dbranch_cli.load import _head_of, _Joined, program_for, restore_arguments, script_arguments
from dbranch_cli.projects import project_spec
from dbranch_cli.waiting import current, holds, is_routed, is_stopped, last_word

SECRET = {
    "host": "shop.team-a.svc",
    "port": "5432",
    "username": "postgres",
    "password": "it's & secret",
    "database": "dbranch",
    "uri": "postgresql://postgres:it%27s%20%26%20secret@shop.team-a.svc:5432/dbranch",
}


def test_connection_strings() -> None:
    assert connection_text(SECRET, "uri") == SECRET["uri"]
    assert json.loads(connection_text(SECRET, "json")) == SECRET
    assert connection_text(SECRET, "jdbc") == (
        "jdbc:postgresql://shop.team-a.svc:5432/dbranch?user=postgres&password=it%27s+%26+secret"
    )
    lines = [shlex.split(line) for line in connection_text(SECRET, "env").split("\n")]
    assert lines[0] == ["export", "PGHOST=shop.team-a.svc"]
    assert ["export", "PGPASSWORD=it's & secret"] in lines


def test_the_environment_of_psql() -> None:
    env = client_environment({"PATH": "/bin", "PGSERVICE": "x", "PGHOST": "y"}, SECRET, 40000, None)
    assert env == {
        "PATH": "/bin",
        "PGHOST": "127.0.0.1",
        "PGPORT": "40000",
        "PGUSER": "postgres",
        "PGPASSWORD": SECRET["password"],
        "PGDATABASE": "dbranch",
    }
    named = client_environment({"PGOPTIONS": "-c work_mem=8MB"}, SECRET, 1, "feature-x")
    assert named["PGOPTIONS"] == "-c work_mem=8MB -c dbranch.branch=feature-x"


@pytest.mark.parametrize(
    ("head", "program"),
    [
        (b"PGDMP\x01\x0e", "pg_restore"),
        (b"toc.dat".ljust(257, b"\0") + b"ustar\x00", "pg_restore"),
        (b"other.txt".ljust(257, b"\0") + b"ustar\x00", "psql"),
        (b"-- PostgreSQL database dump\n", "psql"),
        (b"", "psql"),
    ],
)
def test_the_form_of_a_dump(head: bytes, program: str) -> None:
    assert program_for(head) == program


def test_all_or_nothing_is_the_default() -> None:
    assert "--single-transaction" in script_arguments(True) and "ON_ERROR_STOP=1" in script_arguments(True)
    assert "--single-transaction" not in script_arguments(False)
    assert "--single-transaction" in restore_arguments(True)
    assert "--exit-on-error" in restore_arguments(False)


def test_a_head_that_comes_piece_by_piece() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 1, 7))

    source = Slow(bytes(range(256)) * 4)
    head = _head_of(source)
    assert len(head) == 512
    joined = _Joined(head, source)
    read = b""
    while piece := joined.read(100):
        read += piece
    assert read == bytes(range(256)) * 4


def test_what_init_writes() -> None:
    assert project_spec() == {}
    assert project_spec(
        image="x:1",
        size="2Gi",
        port=6432,
        parameters=("work_mem=8MB", "search_path=a=b"),
        password_secret="owner:pw",
        selectors=("disk=nvme",),
    ) == {
        "postgres": {
            "image": "x:1",
            "parameters": {"work_mem": "8MB", "search_path": "a=b"},
            "passwordSecret": {"name": "owner", "key": "pw"},
        },
        "storage": {"size": "2Gi", "nodeSelector": {"disk": "nvme"}},
        "proxy": {"port": 6432},
    }
    assert project_spec(password_secret="owner") == {"postgres": {"passwordSecret": {"name": "owner"}}}
    with pytest.raises(Failure, match="--parameter work_mem: write KEY=VALUE") as refused:
        project_spec(parameters=("work_mem",))
    assert refused.value.code == 2


def live(*conditions: dict[str, Any], generation: int = 2, **status: Any) -> dict[str, Any]:
    return {"metadata": {"generation": generation}, "status": {"conditions": list(conditions), **status}}


def ready(status: str, reason: str, observed: int = 2) -> dict[str, Any]:
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": "m",
        "observedGeneration": observed,
    }


def test_a_condition_of_an_older_spec_does_not_count() -> None:
    assert holds(Condition.READY)(live(ready("True", "Available")))
    assert not holds(Condition.READY)(live(ready("True", "Available", observed=1)))
    assert current(live(ready("True", "Available", observed=1)), Condition.READY) is None
    assert is_stopped(live(ready("False", "Stopped")))
    assert not is_stopped(live(ready("False", "Stopped", observed=1)))


def test_routed_is_the_branch_and_the_word_of_the_proxies() -> None:
    routed = {**ready("True", "Routed"), "type": "Routed"}
    there: dict[str, Any] = {"route": {"generation": 3, "branch": "feature-x"}}
    assert is_routed("feature-x")(live(routed, **there))
    assert not is_routed("main")(live(routed, **there))
    assert not is_routed("feature-x")(live({**routed, "status": "False"}, **there))
    assert not is_routed("feature-x")(live({**routed, "observedGeneration": 1}, **there))


def test_the_last_word_before_a_time_out() -> None:
    assert last_word(live(ready("False", "SourceNotFound"))) == "SourceNotFound: m"
    assert "is its controller running?" in last_word(live())
    assert "not looked at the change" in last_word(live(ready("True", "Available", observed=1)))
    routed = {**ready("False", "BranchNotReady"), "type": "Routed"}
    assert last_word(live(ready("True", "Available"), routed), Condition.ROUTED) == "BranchNotReady: m"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Ready", "Ready"),
        ("ready", "Ready"),
        ("condition=Ready", "Ready"),
        ("PostgresReady=False", "PostgresReady"),
    ],
)
def test_goals(said: str, kind: str) -> None:
    assert goal_of(said)[1] == kind
