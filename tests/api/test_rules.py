"""The CRDs' rules on what initdb is given, on roles and on parameters: asked of the API server, as a user."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.test_policies import Api, Shop, admin, shop, team

from dbranch.api import names
from dbranch.api.parameters import IMPOSSIBLE_VALUES
from dbranch.kube.client import path_of

__all__ = ["admin", "shop", "team"]


def project_with(name: str = "new", **postgres: Any) -> dict[str, Any]:
    kind = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND}
    return {**kind, "metadata": {"name": name}, "spec": {"postgres": postgres}}


def projects(team: str) -> str:
    return path_of(names.API_VERSION, names.PROJECTS, team)


def test_the_application_is_app_unless_another_is_named(admin: Api, team: str) -> None:
    made = admin.allowed("POST", projects(team), project_with(), dry=True)
    assert made["spec"]["postgres"]["user"] == "app"
    made = admin.allowed("POST", projects(team), project_with(user="postgres"), dry=True)
    assert made["spec"]["postgres"]["user"] == "postgres"
    for reserved in ("public", "none", "pg_x"):
        assert "reserved" in admin.rejected("POST", projects(team), project_with(user=reserved))


def test_the_users_name_is_immutable_and_the_message_says_what_it_stays(admin: Api, team: str) -> None:
    admin.allowed("POST", projects(team), project_with(user="postgres"))
    change = {"spec": {"postgres": {"user": "app"}}}
    assert "leave it postgres" in admin.rejected("PATCH", f"{projects(team)}/new", change)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("app.settings.jwt_secret", "x"),
        ("a..b", "x"),
        (".b", "x"),
        ("b.", "x"),
        ("a-b", "x"),
        ("Work_Mem", "x"),
        *((name, value.upper()) for name, value in IMPOSSIBLE_VALUES.items()),
    ],
)
def test_a_parameter_that_no_settings_file_takes_is_refused(
    admin: Api, team: str, shop: Shop, key: str, value: str
) -> None:
    message = admin.rejected("POST", projects(team), project_with(parameters={key: value}))
    assert "parameter" in message or key in message
    path = path_of(names.API_VERSION, names.BRANCHES, team, "shop-feature-x")
    admin.rejected("PATCH", path, {"spec": {"postgres": {"parameters": {key: value}}}})


def test_a_parameter_of_an_extension_is_taken(admin: Api, team: str) -> None:
    parameters = {"pg_stat_statements.track": "all", "work_mem": "7MB", "io_method": "worker"}
    admin.allowed("POST", projects(team), project_with(parameters=parameters), dry=True)


def test_initdb_is_given_what_is_asked_for_once(admin: Api, team: str) -> None:
    initdb = {"provider": "icu", "locale": "de-AT", "encoding": "UTF8", "args": ["--wal-segsize=64"]}
    admin.allowed("POST", projects(team), project_with("given", initdb=initdb))
    admin.allowed("POST", projects(team), project_with("plain"))
    for name, change in (("given", {"locale": "fr"}), ("given", None), ("plain", {"locale": "fr"})):
        patch = {"spec": {"postgres": {"initdb": change}}}
        assert "immutable" in admin.rejected("PATCH", f"{projects(team)}/{name}", patch)
    # Anything else may change.
    for name in ("given", "plain"):
        admin.allowed("PATCH", f"{projects(team)}/{name}", {"spec": {"postgres": {"image": "postgres:18"}}})


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "-D/elsewhere",
            "--pgdata=/elsewhere",
            "--username=x",
            "--auth=trust",
            "--waldir=/x",
            "--pwfile=/x",
        ),
        *("--no-data-checksums", "--set=port=1", "--allow-group-access", "--wal-segsize"),
        "--lc-time=C\n--auth=trust",
    ],
)
def test_another_argument_of_initdb_is_refused(admin: Api, team: str, argument: str) -> None:
    admin.rejected("POST", projects(team), project_with(initdb={"args": [argument]}))


def test_a_branch_with_the_name_of_the_superusers_secret_is_refused(admin: Api, shop: Shop) -> None:
    kind = {"apiVersion": names.API_VERSION, "kind": names.BRANCH_KIND}
    body = {**kind, "metadata": {"name": "shop-superuser"}, "spec": {"project": "shop", "source": "main"}}
    path = path_of(names.API_VERSION, names.BRANCHES, shop.team)
    assert "superuser" in admin.rejected("POST", path, body)
