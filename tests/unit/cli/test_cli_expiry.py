"""extend, protect, unprotect, `create --ttl`, and what `use`, `list` and `show` say of a branch's time."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.fakes.api import FakeApi
from tests.fakes.connection import stop_clock
from tests.unit.cli.example import HOURS_3, NOW, TEAM, use_example

from dbranch.api.errors import DbranchError, InvalidInput
from dbranch.api.expiry import format_time
from dbranch.kube.client import branch_path, project_path
from dbranch_cli import durations, formatting
from dbranch_cli.durations import parse_moment, parse_period, parse_ttl
from dbranch_cli.expiry_view import leaving_note
from dbranch_cli.main import cli

PR, FEATURE, SHOP = (
    branch_path(TEAM, "shop-pr-118"),
    branch_path(TEAM, "shop-feature-x"),
    project_path(TEAM, "shop"),
)
DAY = timedelta(days=1)


def at(days: float) -> str:
    return format_time(NOW + timedelta(days=days))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApi:
    return use_example(monkeypatch, tmp_path, {})


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words), prog_name="dbranch")


def said(*words: str) -> str:
    result = run(*words)
    assert result.exception is None, result.exception
    return result.output.strip()


def refused(*words: str) -> str:
    result = run(*words)
    assert isinstance(result.exception, DbranchError), result.output
    return str(result.exception)


def spec_of(api: FakeApi, path: str) -> dict[str, Any]:
    body = api.peek(path)
    assert body is not None
    spec: dict[str, Any] = body["spec"]
    return spec


# extend.


def test_extending_sets_a_time_that_is_later_and_never_an_earlier_one(api: FakeApi) -> None:
    assert said("extend", "pr-118", "7d") == f"branch pr-118 stays until {at(7)} (in 7d)"
    assert spec_of(api, PR)["expirationTime"] == at(7)
    api.merge(f"{PR}/status", {"status": {"expirationTime": at(7)}})
    assert said("extend", "pr-118", "2d") == f"branch pr-118 stays until {at(7)} (in 7d) as it is"
    assert spec_of(api, PR)["expirationTime"] == at(7)


def test_times_are_by_the_clock_of_the_api_server(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    # The user's own is three weeks ahead.
    stop_clock(monkeypatch, NOW + 21 * DAY, durations, formatting)
    assert said("extend", "pr-118", "7d") == f"branch pr-118 stays until {at(7)} (in 7d)"
    assert said("protect", "pr-118", "--for", "2d") == f"branch pr-118 is protected until {at(2)} (in 2d)"
    said("create", "brief", "--expires", "in 3d", "--no-wait")
    assert spec_of(api, f"{PR.rpartition('/')[0]}/shop-brief")["expirationTime"] == at(3)
    assert "is past" in refused("create", "late", "--expires", at(-1), "--no-wait")


def test_extending_says_where_the_cap_of_the_project_cuts_it(api: FakeApi) -> None:
    api.merge(SHOP, {"spec": {"branchPolicy": {"maxTTL": "120h"}}})
    text = said("extend", "pr-118", "7d")
    assert text == (
        "branch pr-118 stays until 2030-01-18T11:45:30Z (in 4d): maxTTL 120h of project shop allows no more"
    )
    # It counts in full when the cap is raised.
    assert spec_of(api, PR)["expirationTime"] == at(7)
    # A grace that is beyond the cap stays.
    api.merge(SHOP, {"spec": {"branchPolicy": {"maxTTL": "1h"}}})
    api.merge(f"{PR}/status", {"status": {"expirationTime": at(1)}})
    assert said("extend", "pr-118", "2d").startswith(f"branch pr-118 stays until {at(1)} (in 1d): maxTTL 1h")


def test_a_branch_that_does_not_expire_is_given_no_time(api: FakeApi) -> None:
    assert said("extend", "feature-x", "2d") == "branch feature-x does not expire; there is nothing to extend"
    assert "expirationTime" not in spec_of(api, FEATURE)
    # One that does not while it is active has one all the same: its own is far off, or past.
    api.merge(FEATURE, {"spec": {"ttl": "720h"}})
    assert said("extend", "feature-x", "2d").endswith("as it is")
    api.merge(FEATURE, {"spec": {"ttl": "1h"}})
    assert said("extend", "feature-x", "2d") == f"branch feature-x stays until {at(2)} (in 2d)"


@pytest.mark.parametrize("duration", ["", "0d", "never", "2", "-1d", "2030-01-01"])
def test_what_is_no_duration_extends_nothing(api: FakeApi, duration: str) -> None:
    assert "write it as" in refused("extend", "pr-118", "--", duration)


def test_what_git_owns_is_left_to_git(api: FakeApi) -> None:
    entry = {
        "manager": "argocd-controller",
        "operation": "Apply",
        "fieldsV1": {"f:spec": {f"f:{field}": {} for field in ("expirationTime", "protectedUntil")}},
    }
    api.merge(PR, {"metadata": {"managedFields": [entry]}, "spec": {"protectedUntil": at(1)}})
    assert "managed by argocd-controller" in refused("extend", "pr-118", "7d")
    assert "managed by argocd-controller" in refused("unprotect", "pr-118")
    said("extend", "pr-118", "7d", "--force")
    assert spec_of(api, PR)["expirationTime"] == at(7)


def test_results_for_programs(api: FakeApi) -> None:
    for words in (("extend", "pr-118", "7d"), ("protect", "pr-118"), ("unprotect", "pr-118")):
        body = json.loads(run(*words, "-o", "json").stdout)
        assert body["metadata"]["name"] == "shop-pr-118"


# protect, unprotect.


def test_protecting_without_end_and_for_a_while(api: FakeApi) -> None:
    text = said("protect", "pr-118", "--for", "7d")
    assert text == f"branch pr-118 is protected until {at(7)} (in 7d)"
    assert "protection" not in spec_of(api, PR) and spec_of(api, PR)["protectedUntil"] == at(7)
    # It never shortens.
    assert f"until {at(7)}" in said("protect", "pr-118", "--for", "1d")
    assert said("protect", "pr-118") == "branch pr-118 is protected without end"
    assert spec_of(api, PR)["protection"] == "Enabled"
    assert "without end as long as" in said("protect", "pr-118", "--for", "9d")
    assert said("unprotect", "pr-118") == "branch pr-118 is not protected"
    assert spec_of(api, PR)["protection"] == "Disabled" and "protectedUntil" not in spec_of(api, PR)
    # Of one that is not, nothing is written.
    api.take_requests()
    said("unprotect", "pr-118")
    assert api.take_writes() == []


def test_unprotecting_takes_away_what_others_have_set(api: FakeApi) -> None:
    api.merge(PR, {"spec": {"protectedUntil": at(3)}})
    said("unprotect", "pr-118")
    assert "protectedUntil" not in spec_of(api, PR)


def test_a_lease_that_has_ended_is_no_protection(api: FakeApi) -> None:
    api.merge(PR, {"spec": {"protectedUntil": at(-1)}})
    assert f"Protection  until {at(-1)} (now)" in said("show", "pr-118")
    api.merge(f"{PR}/status", {"status": {"protectionEnded": at(-1)}})
    assert "Protection" not in said("show", "pr-118")
    assert "Protection  Enabled" in _shown_with(api, {"protection": "Enabled"})


def _shown_with(api: FakeApi, spec: dict[str, Any]) -> str:
    api.merge(PR, {"spec": spec})
    return said("show", "pr-118")


# create, list, show.


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (("--ttl", "3d"), {"ttl": "72h"}),
        (("--ttl", "never"), {"ttl": "Never"}),
        (("--expires", "in 3d"), {"expirationTime": at(3)}),
        (("--expires", "2030-02-01T01:00:00+01:00"), {"expirationTime": "2030-02-01T00:00:00Z"}),
        ((), {}),
    ],
)
def test_creating_with_a_time(api: FakeApi, options: tuple[str, ...], spec: dict[str, str]) -> None:
    printed = yaml.safe_load(said("create", "b", "-s", "main", *options, "--dry-run=client"))
    assert printed["spec"] == {"project": "shop", "source": "main", **spec}
    said("create", "b", "-s", "main", *options, "--no-wait")
    assert spec_of(api, branch_path(TEAM, "shop-b")) == printed["spec"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--ttl", "3d", "--expires", "in 3d"), "leave one of them out"),
        (("--ttl", "tomorrow"), "write it as"),
        (("--expires", "2h ago"), "is past"),
        (("--expires", "2029-01-01"), "is past"),
        (("--expires", "soon"), "invalid time"),
    ],
)
def test_a_time_that_is_none(api: FakeApi, options: tuple[str, ...], text: str) -> None:
    assert text in refused("create", "b", *options)
    assert api.peek(branch_path(TEAM, "shop-b")) is None


def test_a_branch_that_is_reused_keeps_its_time_and_that_is_said(api: FakeApi) -> None:
    text = said("create", "feature-x", "--if-exists", "reuse", "--ttl", "3d", "--no-wait")
    assert "keeps its own time to expire; 'dbranch extend feature-x DURATION'" in text
    assert "ttl" not in spec_of(api, FEATURE)


def test_list_and_show_say_when_a_branch_goes(api: FakeApi) -> None:
    rows = [line.split() for line in said("list").splitlines()]
    column = rows[0].index("EXPIRES")
    assert rows[0][column + 1] == "AGE" and rows[3][-3:-1] == ["in", "2d"]
    assert "Expires   2030-01-16T11:45:30Z (in 2d)" in said("show", "pr-118")
    assert "Expires   never" in said("show", "feature-x")
    blocked = {"type": "ExpirationBlocked", "status": "True", "reason": "ActiveBranch", "message": ""}
    api.merge(f"{FEATURE}/status", {"status": {"conditions": [blocked]}})
    assert "Expires   not now: ActiveBranch" in said("show", "feature-x")


# use.


def test_using_another_branch_says_that_the_old_one_is_past_its_time(api: FakeApi) -> None:
    api.merge(FEATURE, {"spec": {"ttl": "1h"}})
    text = said("use", "main", "--no-wait")
    assert "feature-x is past its time and goes today " in text
    assert "; keep it: dbranch extend feature-x 7d" in text


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"ttl": "1h"}, "x is past its time and goes today 13:00; keep it: dbranch extend x 7d"),
        ({"expirationTime": "2030-01-13T11:00:00Z"}, "x is past its time and goes today 14:30;"),
        ({"ttl": "720h"}, None),
        ({}, None),
        ({"ttl": "1h", "protection": "Enabled"}, None),
        ({"ttl": "1h", "protectedUntil": at(9)}, None),
    ],
)
def test_what_a_switch_says_of_the_branch_that_it_leaves(change: dict[str, str], note: str | None) -> None:
    body = {
        "metadata": {"name": "shop-x", "creationTimestamp": HOURS_3},
        "spec": {"project": "shop", **change},
    }
    project: dict[str, Any] = {"metadata": {"name": "shop"}, "spec": {}}
    text = leaving_note(project, body, NOW)
    assert (text or "").startswith(note or "") and (text is None) == (note is None)


def test_of_a_branch_that_only_the_cap_ends_a_protection_is_what_keeps_it() -> None:
    body = {
        "metadata": {"name": "shop-x", "creationTimestamp": "2029-01-01T00:00:00Z"},
        "spec": {"project": "shop", "ttl": "Never"},
    }
    project = {"metadata": {"name": "shop"}, "spec": {"branchPolicy": {"maxTTL": "72h"}}}
    text = leaving_note(project, body, NOW)
    assert text == "x is past its time and goes tomorrow 12:00; keep it: dbranch protect x --for 7d"


# Durations.


@pytest.mark.parametrize("parse", [parse_ttl, lambda text: parse_moment(text, NOW)])
def test_what_is_read_as_a_time_is_in_the_bounds_of_the_api(parse: Callable[[str], object]) -> None:
    for text in ("99999999h", "1h1h1h1h", "", "0d", "1.5h"):
        with pytest.raises(InvalidInput):
            parse(text)


def test_a_period_has_an_end() -> None:
    assert parse_period("2w", "DURATION") == 14 * DAY
    with pytest.raises(InvalidInput):
        parse_period("Never", "DURATION")
