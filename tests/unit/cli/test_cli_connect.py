"""Connection strings, libpq's environment, dump formats, the spec of `init`, the goals of `wait`."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from tests import factories

from dbranch.api.conditions import Condition
from dbranch.api.secrets import secret_texts
from dbranch.controller.manifests import Credentials, Release, conn_secret
from dbranch_cli.branches import parse_goal
from dbranch_cli.connect import client_environment
from dbranch_cli.connection_strings import as_external, as_superuser, format_connection
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.load_role import LoadRole
from dbranch_cli.load_run import program_for, psql_arguments
from dbranch_cli.projects import project_spec
from dbranch_cli.waiting import current_condition, has_condition, is_routed, is_stopped, last_reason

SECRET = {
    "host": "shop.team-a.svc",
    "port": "5432",
    "username": "postgres",
    "password": "it's & secret",
    "database": "dbranch",
    "uri": "postgresql://postgres:it%27s%20%26%20secret@shop.team-a.svc:5432/dbranch",
}


def test_connection_strings() -> None:
    assert format_connection(SECRET, "uri") == SECRET["uri"]
    assert json.loads(format_connection(SECRET, "json")) == SECRET
    assert format_connection(SECRET, "jdbc") == (
        "jdbc:postgresql://shop.team-a.svc:5432/dbranch?user=postgres&password=it%27s+%26+secret"
    )
    lines = [shlex.split(line) for line in format_connection(SECRET, "env").split("\n")]
    assert lines[0] == ["export", "PGHOST=shop.team-a.svc"]
    assert ["export", "PGPASSWORD=it's & secret"] in lines


def test_the_superusers_connection_string_of_a_branch() -> None:
    superuser = as_superuser(
        {**SECRET, "uri": "postgresql://app:x@shop-x.team-a.svc:5432/dbranch"},
        {"username": "alice", "password": "p@ss"},
    )
    assert superuser["uri"] == "postgresql://alice:p%40ss@shop-x.team-a.svc:5432/dbranch"
    assert (superuser["username"], superuser["password"]) == ("alice", "p@ss")


RELEASE = Release("dbranch", "dbranch-nodes", "dbranch-server")


@pytest.mark.parametrize("host", ["db.example.com", "2001:db8::7"])
def test_the_connection_strings_for_clients_outside_are_those_of_the_secret(host: str) -> None:
    shop = factories.project("shop").spec(proxy={"externalHost": host, "externalPort": 6432}).parsed()
    branch = factories.branch("x").parsed()
    credentials = Credentials("app", "p@ss", "dbranch")
    secret = secret_texts(conn_secret(shop, RELEASE, credentials, branch))
    external = as_external(secret, "shop")
    options = "options=-c%20dbranch.branch%3Dx"
    url_host = f"[{host}]" if ":" in host else host
    assert external["uri"] == f"postgresql://app:p%40ss@{url_host}:6432/dbranch?{options}"
    assert json.loads(format_connection(external, "json")) == external
    assert external["host"] == host and external["options"] == "-c dbranch.branch=x"
    jdbc = format_connection(external, "jdbc")
    assert jdbc.startswith(f"jdbc:postgresql://{url_host}:6432/dbranch?")
    assert jdbc.endswith("&options=-c+dbranch.branch%3Dx")
    env = format_connection(external, "env").splitlines()
    assert {f"export PGHOST={host}", "export PGOPTIONS='-c dbranch.branch=x'"} <= set(env)
    superuser = as_external(as_superuser(secret, {"username": "postgres", "password": "a b"}), "shop")
    assert superuser["uri"] == f"postgresql://postgres:a%20b@{url_host}:6432/dbranch?{options}"
    project = as_external(secret_texts(conn_secret(shop, RELEASE, credentials)), "shop")
    assert project["uri"] == f"postgresql://app:p%40ss@{url_host}:6432/dbranch" and "options" not in project


def test_a_project_without_an_address_outside_says_what_to_set() -> None:
    with pytest.raises(Failure, match=r"project shop .*; set spec\.proxy\.externalHost") as failed:
        as_external(SECRET, "shop")
    assert failed.value.code == ExitCode.NOT_FOUND


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
    production = {"PGSSLMODE": "verify-full", "PGTARGETSESSIONATTRS": "read-write", "PGSERVICEFILE": "f"}
    assert not client_environment(production, SECRET, 1, None).keys() & production.keys()
    named = client_environment({"PGOPTIONS": "-c work_mem=8MB"}, SECRET, 1, "feature-x")
    assert named["PGOPTIONS"] == "-c work_mem=8MB -c dbranch.branch=feature-x"


@pytest.mark.parametrize(
    ("prefix", "program"),
    [
        (b"PGDMP\x01\x0e", "pg_restore"),
        (b"toc.dat".ljust(257, b"\0") + b"ustar\x00", "pg_restore"),
        (b"other.txt".ljust(257, b"\0") + b"ustar\x00", "psql"),
        (b"-- PostgreSQL database dump\n", "psql"),
        (b"", "psql"),
    ],
)
def test_the_format_of_a_dump(prefix: bytes, program: str) -> None:
    assert program_for(prefix) == program


def test_a_dump_is_loaded_in_one_transaction_by_default() -> None:
    for role in (None, LoadRole("loader", "app", "postgres")):
        arguments = psql_arguments(role, True)
        assert "--single-transaction" in arguments and "ON_ERROR_STOP=1" in arguments
        assert "--single-transaction" not in psql_arguments(role, False)
    # The dump is between what makes the role and what takes it away.
    dump = arguments.index("-f")
    assert 'create role "loader" superuser nologin' in arguments[dump - 2] and "drop role" in arguments[-1]


def test_the_spec_that_init_applies() -> None:
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
    with pytest.raises(Failure, match="invalid --parameter work_mem: use KEY=VALUE") as failure:
        project_spec(parameters=("work_mem",))
    assert failure.value.code == 2


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


def test_a_condition_of_an_older_generation_does_not_count() -> None:
    assert has_condition(Condition.READY)(live(ready("True", "Available")))
    assert not has_condition(Condition.READY)(live(ready("True", "Available", observed=1)))
    assert current_condition(live(ready("True", "Available", observed=1)), Condition.READY) is None
    assert is_stopped(live(ready("False", "Stopped")))
    assert not is_stopped(live(ready("False", "Stopped", observed=1)))


def test_is_routed_needs_the_branch_and_the_condition() -> None:
    routed = {**ready("True", "Routed"), "type": "Routed"}
    status: dict[str, Any] = {"route": {"generation": 3, "branch": "feature-x"}}
    assert is_routed("feature-x")(live(routed, **status))
    assert not is_routed("main")(live(routed, **status))
    assert not is_routed("feature-x")(live({**routed, "status": "False"}, **status))
    assert not is_routed("feature-x")(live({**routed, "observedGeneration": 1}, **status))


def test_the_last_reason_in_the_message_of_a_time_out() -> None:
    assert last_reason(live(ready("False", "SourceNotFound"))) == "SourceNotFound: m"
    assert "check that the dbranch controller is running" in last_reason(live())
    assert "not reconciled yet" in last_reason(live(ready("True", "Available", observed=1)))
    routed = {**ready("False", "BranchNotReady"), "type": "Routed"}
    assert last_reason(live(ready("True", "Available"), routed), Condition.ROUTED) == "BranchNotReady: m"


@pytest.mark.parametrize(
    ("text", "condition_type"),
    [
        ("Ready", "Ready"),
        ("ready", "Ready"),
        ("condition=Ready", "Ready"),
        ("PostgresReady=False", "PostgresReady"),
    ],
)
def test_goals(text: str, condition_type: str) -> None:
    assert parse_goal(text)[1] == condition_type
