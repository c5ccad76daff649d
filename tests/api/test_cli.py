"""`dbranch` against a real API server. Nothing else of dbranch runs: the tests write the status by hand."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbranch.api import names

ROOT = Path(__file__).parents[2]
ENTRY = "import sys; sys.argv[0] = 'dbranch'; from dbranch_cli.main import main; main()"
CONTROLLER = f"--field-manager={names.CONTROLLER_MANAGER}"


def run(argv: list[str], stdin: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=120, check=False, **more)


def kubectl(*words: str, stdin: str = "") -> str:
    done = run(["kubectl", *words], stdin)
    assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done.stdout


class Team:
    """A namespace, the command line in it, and the controller's word by hand."""

    def __init__(self, name: str, context: Path) -> None:
        self.name, self.context = name, context

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", ENTRY, "--namespace", self.name, *words]

    def env(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'cli'}",
            "DBRANCH_CONFIG": str(self.context / "config.yaml"),
            **more,
        }

    def dbranch(self, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return run(self.command(*words), stdin, env=self.env(**env), cwd="/")

    def fails(self, code: int, *words: str, **env: str) -> str:
        """Standard error of a command that must end with this code."""
        done = self.dbranch(*words, **env)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr

    def does(self, *words: str, **env: str) -> str:
        done = self.dbranch(*words, **env)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def get(self, kind: str, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(
            kubectl("-n", self.name, "get", kind, name, "-o", "json", "--show-managed-fields")
        )
        return loaded

    def exists(self, kind: str, name: str) -> bool:
        return bool(kubectl("-n", self.name, "get", kind, name, "--ignore-not-found", "-o", "name").strip())

    def project(self, name: str, **spec: Any) -> None:
        self.apply("DBProject", name, spec)
        self.apply("DBBranch", f"{name}-main", {"project": name})

    def apply(self, kind: str, name: str, spec: dict[str, Any], manager: str = "kubectl") -> None:
        body = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        kubectl(
            *("-n", self.name, "apply", "--server-side", f"--field-manager={manager}", "-f", "-"),
            stdin=yaml.safe_dump(body),
        )

    def says(self, kind: str, name: str, *conditions: tuple[str, str, str], **status: Any) -> None:
        """The controller's status: conditions as (type, status, reason) of the present generation."""
        generation = self.get(kind, name)["metadata"]["generation"]
        listed = [
            {
                "type": of,
                "status": state,
                "reason": reason,
                "message": f"the message of {reason}",
                "lastTransitionTime": "2030-01-01T00:00:00Z",
                "observedGeneration": generation,
            }
            for of, state, reason in conditions
        ]
        patch = json.dumps({"status": {"conditions": listed, **status}})
        kubectl(
            *("-n", self.name, "patch", kind, name, "--subresource=status", "--type=merge", CONTROLLER),
            *("-p", patch),
        )

    def later(
        self, check: str, kind: str, name: str, *conditions: tuple[str, str, str], **status: Any
    ) -> None:
        """As `says`, from a thread, once the object's spec holds `check` (a JSON fragment)."""

        def follow() -> None:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                if self.exists(kind, name) and check in json.dumps(self.get(kind, name)["spec"]):
                    self.says(kind, name, *conditions, **status)
                    return
                time.sleep(0.1)

        threading.Thread(target=follow, daemon=True).start()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if not kubectl("get", "crd", "dbprojects.dbranch.io", "--ignore-not-found", "-o", "name"):
        kubectl("apply", "-f", str(ROOT / "crds"))
    made = Team(f"cli-{secrets.token_hex(3)}", tmp_path_factory.mktemp("context"))
    kubectl("create", "namespace", made.name)
    try:
        yield made
    finally:
        kubectl("delete", "namespace", made.name, "--wait=false")


@pytest.fixture(scope="module")
def shop(team: Team) -> Team:
    """The project `shop`, Ready, with main active and the branch feature-x."""
    team.project("shop", storage={"size": "60Gi"})
    team.apply("DBBranch", "shop-feature-x", {"project": "shop", "source": "main"})
    for branch in ("main", "feature-x"):
        team.says("dbbranch", f"shop-{branch}", ("Ready", "True", "Available"))
    team.says(
        "dbproject",
        "shop",
        ("Ready", "True", "Available"),
        ("Routed", "True", "Routed"),
        route={"generation": 1, "branch": "main"},
        proxies=[{"pod": "shop-proxy-1", "generation": 1, "sessions": 14}],
        host=f"shop.{team.name}.svc",
    )
    return team


def test_list_status_show_and_their_forms(shop: Team) -> None:
    lines = shop.does("-p", "shop", "list").split("\n")
    assert lines[0].split() == ["ACTIVE", "BRANCH", "SOURCE", "STATE", "SIZE", "UNIQUE", "AGE"]
    assert lines[1].split()[:4] == ["*", "main", "-", "Ready"]
    assert lines[2].split()[:3] == ["feature-x", "main", "Ready"]
    status = shop.does("-p", "shop", "status")
    assert f"Project   shop (namespace {shop.name}, context " in status
    assert "Active    main, 14 sessions\n" in status and "Branches  2: 2 Ready\n" in status
    shown = shop.does("-p", "shop", "show", "feature-x")
    assert "Available" in shown and "No Events." in shown
    items = json.loads(shop.does("-p", "shop", "ls", "-o", "json"))["items"]
    assert [item["kind"] for item in items] == ["DBBranch", "DBBranch"]
    assert yaml.safe_load(shop.does("status", "-p", "shop", "-oyaml"))["metadata"]["name"] == "shop"
    assert shop.does("-p", "shop", "-o", "name", "show", "main") == "dbbranch.dbranch.io/shop-main\n"
    assert "└─ feature-x" in shop.does("-p", "shop", "tree")


def test_what_is_not_there(shop: Team) -> None:
    assert "did you mean feature-x?" in shop.fails(3, "-p", "shop", "show", "feature-y")
    assert "did you mean shop?" in shop.fails(3, "-p", "shp", "list")
    assert "did you mean shop?" in shop.fails(3, "-p", "shp", "use", "feature-x")
    assert 'source "mian" does not exist' in shop.fails(3, "-p", "shop", "create", "x", "--source", "mian")
    assert not shop.exists("dbbranch", "shop-x")
    error = json.loads(shop.fails(3, "-p", "shop", "show", "nowhere", "-o", "json"))["error"]
    assert (error["code"], error["reason"]) == (3, "NotFound")
    shop.does("-p", "shop", "delete", "nowhere", "--ignore-not-found")


def test_use_waits_until_the_proxies_obey(shop: Team) -> None:
    shop.later(
        '"activeBranch": "feature-x"',
        "dbproject",
        "shop",
        ("Ready", "True", "Available"),
        ("Routed", "True", "Routed"),
        route={"generation": 2, "branch": "feature-x"},
    )
    done = shop.dbranch("-p", "shop", "use", "feature-x", "--timeout", "30s")
    assert done.returncode == 0 and "feature-x is active" in done.stdout, done
    assert "main → feature-x: 14 sessions on main" in done.stderr
    assert "already" in shop.does("-p", "shop", "use", "feature-x")
    # Routed of the old generation is not enough; the time-out gives the last reason.
    said = shop.fails(5, "-p", "shop", "use", "main", "--timeout", "1s")
    assert "main is active" in said
    shop.says(
        "dbproject",
        "shop",
        ("Ready", "False", "BranchNotReady"),
        ("Routed", "False", "BranchNotReady"),
    )
    said = shop.fails(5, "-p", "shop", "use", "main", "--timeout", "1s")
    assert "the message of BranchNotReady" in said
    # What kubectl applied is as it was, and the field is the command line's.
    live = shop.get("dbproject", "shop")
    assert live["spec"]["storage"]["size"] == "60Gi" and live["spec"]["activeBranch"] == "main"
    owners = [
        m["manager"]
        for m in live["metadata"]["managedFields"]
        if "f:activeBranch" in m["fieldsV1"].get("f:spec", {})
    ]
    assert owners == [names.CLI_MANAGER]


def test_create_waits_and_says_how_far_it_is(shop: Team) -> None:
    shop.later(
        '"source"',
        "dbbranch",
        "shop-made",
        ("Scheduled", "True", "Bound"),
        ("StorageReady", "True", "Stored"),
        ("PostgresReady", "True", "Accepting"),
        ("Ready", "True", "Available"),
    )
    done = shop.dbranch("-p", "shop", "create", "made", "--source", "main")
    assert done.returncode == 0 and done.stdout == "branch made made from main; Ready\n", done
    steps = [line.split()[:3] for line in done.stderr.split("\n") if line.startswith("+")]
    assert steps == [
        ["+", "Scheduled", "Bound"],
        ["+", "StorageReady", "Stored"],
        ["+", "PostgresReady", "Accepting"],
    ]
    assert "there already" in shop.fails(6, "-p", "shop", "create", "made")
    assert "already" in shop.does("-p", "shop", "create", "made", "--if-exists", "reuse")
    assert "source main, not feature-x" in shop.fails(
        6, *("-p", "shop", "create", "made", "--if-exists", "reuse", "--source", "feature-x")
    )
    uid = shop.get("dbbranch", "shop-made")["metadata"]["uid"]
    shop.does("-p", "shop", "create", "made", "--source", "main", "--if-exists", "replace", "--no-wait")
    assert shop.get("dbbranch", "shop-made")["metadata"]["uid"] != uid


def test_create_ends_with_time_out_and_with_stalled(shop: Team) -> None:
    shop.later('"source"', "dbbranch", "shop-slow", ("Ready", "False", "ImagePullFailed"))
    said = shop.fails(5, "-p", "shop", "create", "slow", "-s", "main", "--timeout", "3s")
    assert "ImagePullFailed: the message of ImagePullFailed" in said
    assert shop.exists("dbbranch", "shop-slow")
    shop.later(
        '"source"', "dbbranch", "shop-lost", ("Ready", "False", "DataLost"), ("Stalled", "True", "DataLost")
    )
    said = shop.fails(7, "-p", "shop", "create", "lost", "-s", "main", "--timeout", "30s")
    assert "the message of DataLost" in said
    assert shop.fails(5, "-p", "shop", "wait", "slow", "--timeout", "500ms")
    shop.does("-p", "shop", "wait", "slow", "--for", "Ready=False", "--timeout", "2s")


def test_dry_run_writes_nothing(shop: Team) -> None:
    body = yaml.safe_load(
        shop.does("-p", "shop", "create", "dry", "-s", "main", "--dry-run=client", "-o", "yaml")
    )
    assert body["metadata"]["name"] == "shop-dry" and body["spec"] == {"project": "shop", "source": "main"}
    assert not shop.exists("dbbranch", "shop-dry")
    body = json.loads(shop.does("init", "dry", "--size", "2Gi", "--dry-run", "client", "-o", "json"))
    assert body["spec"] == {"storage": {"size": "2Gi"}} and not shop.exists("dbproject", "dry")


def test_stop_and_resume_keep_what_else_was_applied(shop: Team) -> None:
    shop.later('"state": "Stopped"', "dbbranch", "shop-feature-x", ("Ready", "False", "Stopped"))
    assert shop.does("-p", "shop", "stop", "feature-x") == "branch feature-x stopped\n"
    assert "dbranch resume feature-x" in shop.fails(6, "-p", "shop", "use", "feature-x")
    shop.later('"state": "Running"', "dbbranch", "shop-feature-x", ("Ready", "True", "Available"))
    assert shop.does("-p", "shop", "resume", "feature-x") == "branch feature-x is Ready\n"
    assert "--yes" in shop.fails(2, "-p", "shop", "stop", "--all")
    before = shop.get("dbproject", "shop")["spec"]
    shop.does("-p", "shop", "stop", "--all", "--yes", "--no-wait")
    shop.does("-p", "shop", "resume", "--all", "--no-wait")
    assert shop.get("dbproject", "shop")["spec"] == before
    assert "BRANCH, or --all" in shop.fails(2, "-p", "shop", "stop")


def test_what_git_keeps_is_refused_unless_forced(team: Team) -> None:
    team.apply("DBProject", "kept", {"activeBranch": "main"}, manager="argocd-controller")
    team.apply("DBBranch", "kept-main", {"project": "kept"})
    team.apply("DBBranch", "kept-b", {"project": "kept", "source": "main"}, manager="kustomize-controller")
    said = team.fails(6, "-p", "kept", "use", "b", "--no-wait")
    assert "argocd-controller" in said and "--force" in said
    assert team.get("dbproject", "kept")["spec"]["activeBranch"] == "main"
    team.does("-p", "kept", "stop", "b", "--no-wait")  # Flux says nothing of spec.state
    team.does("-p", "kept", "resume", "b", "--no-wait")
    team.does("-p", "kept", "use", "b", "--no-wait", "--force")
    assert team.get("dbproject", "kept")["spec"]["activeBranch"] == "b"


def test_init_becomes_the_current_project_and_keeps_its_spec(team: Team) -> None:
    team.later('"size": "2Gi"', "dbproject", "mine", ("Ready", "True", "Available"))
    words = ("--image", "postgres:16", "--size", "2Gi", "--port", "6432", "--parameter", "work_mem=8MB")
    assert "project mine is Ready" in team.does("init", "mine", *words)
    assert "already" in team.fails(6, "init", "mine")
    team.apply("DBBranch", "mine-main", {"project": "mine"})
    assert team.does("list", "-o", "name") == "dbbranch.dbranch.io/mine-main\n"  # no -p: the current one
    rows = [line.split() for line in team.does("projects").split("\n")]
    assert ["*", "mine"] in [row[:2] for row in rows]
    team.apply("DBBranch", "mine-other", {"project": "mine", "source": "main"})
    before = team.get("dbproject", "mine")["spec"]
    team.does("use", "other", "--no-wait")
    after = team.get("dbproject", "mine")["spec"]
    assert after == {**before, "activeBranch": "other"} and after["postgres"]["image"] == "postgres:16"


def test_delete_asks_and_waits_until_it_is_gone(shop: Team) -> None:
    shop.apply("DBBranch", "shop-gone", {"project": "shop", "source": "main"})
    kubectl(
        *("-n", shop.name, "patch", "dbbranch", "shop-gone", "--type=merge"),
        *("-p", json.dumps({"metadata": {"finalizers": ["dbranch.io/agent"]}})),
    )
    assert "--yes" in shop.fails(2, "-p", "shop", "delete", "gone")
    said = shop.fails(5, "-p", "shop", "rm", "gone", "--yes", "--timeout", "1s")
    assert "branch gone is gone" in said and shop.exists("dbbranch", "shop-gone")
    waiting = subprocess.Popen(
        shop.command("-p", "shop", "delete", "gone", "--yes"),
        env=shop.env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    time.sleep(2)
    assert waiting.poll() is None
    kubectl(
        *("-n", shop.name, "patch", "dbbranch", "shop-gone", "--type=merge"),
        *("-p", '{"metadata":{"finalizers":null}}'),
    )
    out, _ = waiting.communicate(timeout=20)
    assert waiting.returncode == 0 and out == "branch gone deleted\n"


def test_delete_project_needs_a_yes_and_forgets_it(team: Team) -> None:
    team.project("brief")
    team.does("set-default", "brief")
    assert "--yes" in team.fails(2, "delete-project", "brief")
    assert team.exists("dbproject", "brief")
    team.does("delete-project", "brief", "--yes")
    assert not team.exists("dbproject", "brief")
    assert "brief" not in (team.context / "config.yaml").read_text()


def test_the_api_servers_own_rules_are_refusals(team: Team) -> None:
    said = team.fails(6, "init", "odd", "--parameter", "fsync=off", "--no-wait")
    assert "fsync is set by dbranch itself" in said


def test_a_policys_refusal(team: Team) -> None:
    team.project("guarded")
    refused = (
        "branch main is the root branch of project guarded; it cannot be deleted; "
        "delete the project to delete everything (policy dbranch-branch-deletion)"
    )
    assert team.fails(6, "-p", "guarded", "delete", "main", "--yes") == f"dbranch: {refused}\n"


def test_without_permission_and_without_login(shop: Team, tmp_path: Path) -> None:
    kubectl("-n", shop.name, "create", "serviceaccount", "nobody")
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    path = tmp_path / "kubeconfig"
    for token, word in (
        (kubectl("-n", shop.name, "create", "token", "nobody").strip(), "nobody"),
        ("x", "log"),
    ):
        config["users"][0]["user"] = {"token": token}
        path.write_text(yaml.safe_dump(config))
        assert word in shop.fails(4, "--kubeconfig", str(path), "-p", "shop", "list")


def test_no_cluster(shop: Team, tmp_path: Path) -> None:
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    said = shop.fails(1, "--kubeconfig", str(path), "-p", "shop", "list")
    assert "https://127.0.0.1:9" in said and str(path) in said and "Connection refused" in said


def test_connect_verbs_say_what_is_missing(shop: Team) -> None:
    assert "Secret shop-conn is not there" in shop.fails(3, "-p", "shop", "url")
    kubectl(
        *("-n", shop.name, "create", "secret", "generic", "shop-conn"),
        *("--from-literal=host=h", "--from-literal=port=5432", "--from-literal=username=u"),
        *(
            "--from-literal=password=p",
            "--from-literal=database=d",
            "--from-literal=uri=postgresql://u:p@h/d",
        ),
    )
    assert shop.does("-p", "shop", "url") == "postgresql://u:p@h/d\n"
    assert "no proxy pod of project shop is Ready" in shop.fails(1, "-p", "shop", "start", "--port", "0")
    assert "did you mean feature-x?" in shop.fails(3, "-p", "shop", "psql", "feature-y")
