"""The texts of `list`, `status`, `show`, `tree` and `projects`; docs/cli.md has the examples."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from dbranch_cli.formatting import format_age, format_count, format_table
from dbranch_cli.view import (
    branch_block,
    branch_table,
    branch_tree,
    project_table,
    state_of,
    status_block,
)

NOW = datetime(2030, 1, 13, 12, 0, 0, tzinfo=UTC)
GI = 2**30


def condition(condition_type: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {"type": condition_type, "status": status, "reason": reason, "message": message}


def branch(name: str, source: str | None, created: str, **status: Any) -> dict[str, Any]:
    status = {"conditions": [condition("Ready", "True", "Available")], **status}
    return {
        "kind": "DBBranch",
        "metadata": {"name": f"shop-{name}", "namespace": "team-a", "creationTimestamp": created},
        "spec": {"project": "shop", **({"source": source} if source else {})},
        "status": status,
    }


PULL = "cannot pull postgres:17 (403); Postgres is not started; check postgres.imagePullSecrets"
MAIN = branch(
    "main",
    None,
    "2030-01-01T11:00:00Z",
    node={"logicalBytes": 41 * GI, "uniqueBytes": 39 * GI},
    nodeName="n1",
)
FEATURE = branch(
    "feature-x", "main", "2030-01-13T08:30:00Z", node={"logicalSize": "41Gi", "uniqueSize": "37Mi"}
)
PR = branch(
    "pr-118",
    "main",
    "2030-01-13T11:59:51Z",
    conditions=[condition("Ready", "False", "ImagePullFailed", PULL)],
)
PROJECT: dict[str, Any] = {
    "kind": "DBProject",
    "metadata": {"name": "shop", "namespace": "team-a", "creationTimestamp": "2030-01-01T11:00:00Z"},
    "spec": {
        "activeBranch": "feature-x",
        "postgres": {"image": "postgres:17"},
        "storage": {"size": "60Gi"},
        "proxy": {"port": 5432},
    },
    "status": {
        "conditions": [condition("Ready", "True", "Available"), condition("Routed", "True", "Draining")],
        "nodeName": "n1",
        "host": "shop.team-a.svc",
        "branches": 3,
        "route": {"generation": 7, "branch": "feature-x"},
        "routes": [
            {"branch": "main", "state": "Ready"},
            {"branch": "feature-x", "state": "Ready"},
            {"branch": "pr-118", "state": "Starting"},
        ],
        "proxies": [
            {
                "pod": "a",
                "generation": 7,
                "sessions": 10,
                "draining": 2,
                "branches": [{"branch": "feature-x", "sessions": 10}, {"branch": "main", "draining": 2}],
            },
            {"pod": "b", "generation": 7, "sessions": 4},
        ],
        "node": {"postgresVersion": "17.6", "usedSize": "39.1Gi", "hostFreeSize": "31Gi"},
    },
}


def test_list() -> None:
    assert branch_table(PROJECT, [MAIN, FEATURE, PR], wide=False, now=NOW) == "\n".join(
        [
            "ACTIVE  BRANCH     SOURCE  STATE    SIZE  UNIQUE  EXPIRES  AGE",
            "        main       -       Ready    41Gi  39Gi    -        12d",
            "*       feature-x  main    Ready    41Gi  37Mi    -        3h",
            "        pr-118     main    Pending  -     -       -        9s",
        ]
    )


def test_the_wide_list_has_reason_node_and_message() -> None:
    lines = branch_table(PROJECT, [MAIN, PR], wide=True, now=NOW).split("\n")
    assert lines[0].split()[-3:] == ["REASON", "NODE", "MESSAGE"]
    assert "Available" in lines[1] and "n1" in lines[1]
    assert lines[2].endswith(PULL)


def test_status() -> None:
    assert status_block(PROJECT, [MAIN, FEATURE, PR], "k3s") == "\n".join(
        [
            "Project   shop (namespace team-a, context k3s)",
            "Ready     True",
            "Active    feature-x, 14 sessions; 2 draining on main",
            "Connect   shop.team-a.svc:5432",
            "Postgres  17.6 (postgres:17)",
            "Pool      39.1Gi of 60Gi; node n1, disk 31Gi free",
            "Branches  3: 2 Ready, 1 Pending",
            f"! pr-118  ImagePullFailed: {PULL}",
        ]
    )


def test_the_wide_status_has_the_warm_slots() -> None:
    node = {**PROJECT["status"]["node"], "warmSlots": 1}
    project = {**PROJECT, "status": {**PROJECT["status"], "node": node}}
    assert status_block(project, [], "k3s", wide=True).endswith("Slots     1 warm")
    assert status_block(PROJECT, [], "k3s", wide=True).endswith("Slots     -")
    assert "Slots" not in status_block(project, [], "k3s")


def test_the_status_of_a_project_without_conditions() -> None:
    bare = {**PROJECT, "spec": {"storage": {"size": "1Gi"}}, "status": {}}
    text = status_block(bare, [], "k3s")
    assert "Ready     Unknown" in text and "Active    main, 0 sessions" in text
    assert "Pool      - of 1Gi\nBranches  0" in text


def test_the_status_says_why_a_switch_is_not_done() -> None:
    switching = {
        **PROJECT,
        "spec": {**PROJECT["spec"], "activeBranch": "nowhere"},
        "status": {
            **PROJECT["status"],
            "proxies": [],
            "conditions": [
                condition("Ready", "False", "BranchNotFound", "no nowhere"),
                condition("Routed", "False", "BranchNotFound", "no nowhere"),
            ],
        },
    }
    text = status_block(switching, [], "k3s")
    assert "Ready     False, BranchNotFound: no nowhere" in text
    assert "Active    feature-x, 0 sessions; wanted: nowhere (BranchNotFound)" in text


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], "Pending"),
        ([condition("Ready", "True", "Available")], "Ready"),
        ([condition("Ready", "False", "Stopped")], "Stopped"),
        ([condition("Ready", "False", "ImagePullFailed")], "Pending"),
        ([condition("Ready", "Unknown", "Pending")], "Pending"),
        ([condition("Ready", "Unknown", "NodeNotReady")], "Unknown"),
        ([condition("Ready", "False", "DataLost"), condition("Stalled", "True", "DataLost")], "Stalled"),
    ],
)
def test_states(conditions: list[dict[str, str]], state: str) -> None:
    assert state_of(branch("x", "main", "2030-01-01T00:00:00Z", conditions=conditions)) == state


def test_a_deleted_branch_is_deleting_even_if_ready() -> None:
    body = branch("x", "main", "2030-01-01T00:00:00Z")
    body["metadata"]["deletionTimestamp"] = "2030-01-02T00:00:00Z"
    assert state_of(body) == "Deleting"


def test_show_ends_with_conditions_and_events() -> None:
    event = {
        "type": "Warning",
        "reason": "ImagePullFailed",
        "message": PULL,
        "metadata": {"creationTimestamp": "2030-01-13T11:59:00Z"},
    }
    text = branch_block(PR, False, [event], NOW)
    assert text.index("Branch") < text.index("CONDITION") < text.index("EVENT")
    assert text.split("\n")[-1].split()[:3] == ["1m", "Warning", "ImagePullFailed"]
    assert "you are not allowed to list them" in branch_block(PR, False, None, NOW)
    assert "feature-x (active)" in branch_block(FEATURE, True, [], NOW)


def test_the_tree_shows_a_branch_without_its_source() -> None:
    below = branch("deep", "feature-x", "2030-01-13T09:00:00Z")
    orphan = branch("late", "removed", "2030-01-13T09:00:00Z")
    assert branch_tree(PROJECT, [MAIN, FEATURE, PR, below, orphan]).split("\n") == [
        "main",
        "├─ feature-x  *",
        "│  └─ deep",
        "└─ pr-118  Pending",
        "late  (source removed is deleted)",
    ]


def test_the_current_project_has_an_asterisk() -> None:
    lines = project_table([PROJECT], "shop", wide=False, now=NOW).split("\n")
    assert lines[0].split()[:2] == ["CURRENT", "PROJECT"]
    assert lines[1].split() == ["*", "shop", "Ready", "feature-x", "3", "39.1Gi", "60Gi", "12d"]


@pytest.mark.parametrize(
    ("since", "text"),
    [
        ("2030-01-13T11:59:51Z", "9s"),
        ("2030-01-13T11:59:00Z", "1m"),
        ("2030-01-13T08:30:00Z", "3h"),
        ("2030-01-01T11:00:00Z", "12d"),
        ("2028-12-01T00:00:00Z", "408d"),
        ("2027-01-01T00:00:00Z", "3y"),
        ("2031-01-01T00:00:00Z", "0s"),  # a clock ahead of ours
        (None, "-"),
    ],
)
def test_ages(since: str | None, text: str) -> None:
    assert format_age(since, NOW) == text


def test_counts_and_empty_tables() -> None:
    assert (format_count(0, "session"), format_count(1, "branch"), format_count(2, "branch")) == (
        "0 sessions",
        "1 branch",
        "2 branches",
    )
    assert format_table(["A", "B"], []) == "A  B"


def test_what_others_wrote_does_nothing_on_a_terminal() -> None:
    evil = "\x1b]52;c;cm0gLXJm\x07\nROOT"
    project = {**PROJECT, "spec": {**PROJECT["spec"], "postgres": {"image": evil}}}
    event = {"metadata": {}, "type": evil, "reason": evil, "message": evil}
    bad = branch("x", "main", "2030-01-13T11:00:00Z", conditions=[condition("Ready", "False", "Evil", evil)])
    for text in (
        status_block(project, [bad], "k3s"),
        branch_block(bad, False, [event], NOW),
        branch_table(project, [bad], True, NOW),
        branch_tree(project, [branch("y", evil, "2030-01-13T11:00:00Z")]),
    ):
        assert "\\x1b]52" in text and "\nROOT" not in text
        assert all(c == "\n" or c.isprintable() for c in text)


def test_show_says_what_a_branch_wrote_where_its_pool_counts_it() -> None:
    def size_line(**sizes: Any) -> str:
        body = branch("feature-x", "main", "2030-01-13T08:30:00Z", node={"logicalSize": "41Gi", **sizes})
        lines = branch_block(body, False, [], NOW).splitlines()
        return next(line.removeprefix("Size").strip() for line in lines if line.startswith("Size"))

    assert size_line(uniqueSize="37Mi") == "41Gi, 37Mi unique"
    assert (
        size_line(uniqueSize="37Mi", writtenBytes=2**31, writtenSize="2Gi")
        == "41Gi, 37Mi unique, 2Gi written"
    )
