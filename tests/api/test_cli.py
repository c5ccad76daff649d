"""`dbranch` against a real API server. No other part of dbranch runs: the tests write the status."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbranch.api import names

ROOT = Path(__file__).parents[2]
RUN_CLI = "import sys; sys.argv[0] = 'dbranch'; from dbranch_cli.main import main; main()"

# It only ends a test that hangs.
TIMEOUT_SECONDS = 180.0
TIMEOUT = f"{TIMEOUT_SECONDS:g}s"
# The window in which a command that waits must not end.
STILL_WAITING_SECONDS = 2.0
CONTROLLER_FIELD_MANAGER = f"--field-manager={names.CONTROLLER_MANAGER}"


def run(argv: list[str], stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, **options
    )


def kubectl(*arguments: str, stdin: str = "") -> str:
    """Run kubectl, which must succeed, and return its standard output."""
    completed = run(["kubectl", *arguments], stdin)
    assert completed.returncode == 0, f"kubectl {' '.join(arguments)}: {completed.stderr}"
    return completed.stdout


class Team:
    """A namespace, the command line in it, and the status that the controller would write."""

    def __init__(self, name: str, context: Path) -> None:
        self.name, self.context = name, context
        self._executor, self._writes = ThreadPoolExecutor(), list[Future[None]]()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", RUN_CLI, "--namespace", self.name, *arguments]

    def env(self, **overrides: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'cli'}",
            "DBRANCH_CONFIG": str(self.context / "config.yaml"),
            **overrides,
        }

    def dbranch(self, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return run(self.command(*arguments), stdin, env=self.env(**env), cwd="/")

    def fails(self, code: int, *arguments: str, **env: str) -> str:
        """Run a command that must exit with `code`, and return its standard error."""
        completed = self.dbranch(*arguments, **env)
        assert completed.returncode == code, (completed.returncode, completed.stdout, completed.stderr)
        assert "Traceback" not in completed.stderr
        return completed.stderr

    def succeeds(self, *arguments: str, **env: str) -> str:
        """Run a command that must exit with 0, and return its standard output."""
        completed = self.dbranch(*arguments, **env)
        assert completed.returncode == 0, (completed.returncode, completed.stdout, completed.stderr)
        return completed.stdout

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

    def set_status(self, kind: str, name: str, *conditions: tuple[str, str, str], **status: Any) -> None:
        """Write the status: conditions as (type, status, reason) of the present generation, and other fields."""
        generation = self.get(kind, name)["metadata"]["generation"]
        listed = [
            {
                "type": condition_type,
                "status": state,
                "reason": reason,
                "message": f"the message of {reason}",
                "lastTransitionTime": "2030-01-01T00:00:00Z",
                "observedGeneration": generation,
            }
            for condition_type, state, reason in conditions
        ]
        patch = json.dumps({"status": {"conditions": listed, **status}})
        subresource = ("--subresource=status", "--type=merge", CONTROLLER_FIELD_MANAGER)
        kubectl("-n", self.name, "patch", kind, name, *subresource, "-p", patch)

    def set_status_once(
        self, spec_fragment: str, kind: str, name: str, *conditions: tuple[str, str, str], **status: Any
    ) -> None:
        """Write the status from a thread, once the object's spec contains a fragment of JSON."""

        def write_when_seen() -> None:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not (self.exists(kind, name) and spec_fragment in json.dumps(self.get(kind, name)["spec"])):
                assert time.monotonic() < deadline, f"{kind} {name} never had {spec_fragment}"
                time.sleep(0.1)
            self.set_status(kind, name, *conditions, **status)

        self._writes.append(self._executor.submit(write_when_seen))

    def finish(self) -> None:
        """Raise the error of a thread that could not write the status."""
        for write in self._writes:
            write.result()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if not kubectl("get", "crd", "dbprojects.dbranch.io", "--ignore-not-found", "-o", "name"):
        kubectl("apply", "-f", str(ROOT / "crds"))
        crds = [f"crd/{plural}.dbranch.io" for plural in ("dbprojects", "dbbranches", "dbrestores")]
        kubectl("wait", "--for=condition=Established", *crds, f"--timeout={TIMEOUT}")
    created = Team(f"cli-{secrets.token_hex(3)}", tmp_path_factory.mktemp("context"))
    kubectl("create", "namespace", created.name)
    try:
        yield created
        created.finish()
    finally:
        kubectl("delete", "namespace", created.name, "--wait=false")


@pytest.fixture(scope="module")
def shop(team: Team) -> Team:
    """The project `shop`, Ready, with the active branch main and the branch feature-x."""
    team.project("shop", storage={"size": "60Gi"})
    team.apply("DBBranch", "shop-feature-x", {"project": "shop", "source": "main"})
    for branch in ("main", "feature-x"):
        team.set_status("dbbranch", f"shop-{branch}", ("Ready", "True", "Available"))
    team.set_status(
        "dbproject",
        "shop",
        ("Ready", "True", "Available"),
        ("Routed", "True", "Routed"),
        route={"generation": 1, "branch": "main"},
        proxies=[{"pod": "shop-proxy-1", "generation": 1, "sessions": 14}],
        host=f"shop.{team.name}.svc",
    )
    return team


def test_list_status_show_and_their_output_formats(shop: Team) -> None:
    lines = shop.succeeds("-p", "shop", "list").split("\n")
    assert lines[0].split() == ["ACTIVE", "BRANCH", "SOURCE", "STATE", "SIZE", "UNIQUE", "EXPIRES", "AGE"]
    assert lines[1].split()[:4] == ["*", "main", "-", "Ready"]
    assert lines[2].split()[:3] == ["feature-x", "main", "Ready"]
    status = shop.succeeds("-p", "shop", "status")
    assert f"Project   shop (namespace {shop.name}, context " in status
    assert "Active    main, 14 sessions\n" in status and "Branches  2: 2 Ready\n" in status
    shown = shop.succeeds("-p", "shop", "show", "feature-x")
    assert "Available" in shown and "No Events." in shown
    items = json.loads(shop.succeeds("-p", "shop", "ls", "-o", "json"))["items"]
    assert [item["kind"] for item in items] == ["DBBranch", "DBBranch"]
    assert yaml.safe_load(shop.succeeds("status", "-p", "shop", "-oyaml"))["metadata"]["name"] == "shop"
    assert shop.succeeds("-p", "shop", "-o", "name", "show", "main") == "dbbranch.dbranch.io/shop-main\n"
    assert "└─ feature-x" in shop.succeeds("-p", "shop", "tree")


def test_objects_that_do_not_exist(shop: Team) -> None:
    assert "did you mean feature-x?" in shop.fails(3, "-p", "shop", "show", "feature-y")
    assert "did you mean shop?" in shop.fails(3, "-p", "shp", "list")
    assert "did you mean shop?" in shop.fails(3, "-p", "shp", "use", "feature-x")
    assert 'source "mian" does not exist' in shop.fails(3, "-p", "shop", "create", "x", "--source", "mian")
    assert not shop.exists("dbbranch", "shop-x")
    error = json.loads(shop.fails(3, "-p", "shop", "show", "nowhere", "-o", "json"))["error"]
    assert (error["code"], error["reason"]) == (3, "NotFound")
    shop.succeeds("-p", "shop", "delete", "nowhere", "--ignore-not-found")


def test_use_waits_until_the_proxies_obey(shop: Team) -> None:
    shop.set_status_once(
        '"activeBranch": "feature-x"',
        "dbproject",
        "shop",
        ("Ready", "True", "Available"),
        ("Routed", "True", "Routed"),
        route={"generation": 2, "branch": "feature-x"},
    )
    completed = shop.dbranch("-p", "shop", "use", "feature-x", "--timeout", TIMEOUT)
    assert completed.returncode == 0 and "feature-x is active" in completed.stdout, completed
    assert "main → feature-x: 14 sessions on main" in completed.stderr
    assert "already" in shop.succeeds("-p", "shop", "use", "feature-x")
    # Routed for the old generation is not enough; the time-out quotes the last reason.
    stderr = shop.fails(5, "-p", "shop", "use", "main", "--timeout", "1s")
    assert "main is active" in stderr
    shop.set_status(
        "dbproject",
        "shop",
        ("Ready", "False", "BranchNotReady"),
        ("Routed", "False", "BranchNotReady"),
    )
    stderr = shop.fails(5, "-p", "shop", "use", "main", "--timeout", "1s")
    assert "the message of BranchNotReady" in stderr
    # The fields that kubectl applied are unchanged; the command line owns this one.
    live = shop.get("dbproject", "shop")
    assert live["spec"]["storage"]["size"] == "60Gi" and live["spec"]["activeBranch"] == "main"
    owners = [
        m["manager"]
        for m in live["metadata"]["managedFields"]
        if "f:activeBranch" in m["fieldsV1"].get("f:spec", {})
    ]
    assert owners == [names.CLI_MANAGER]


def test_create_waits_and_prints_the_conditions(shop: Team) -> None:
    shop.set_status_once(
        '"source"',
        "dbbranch",
        "shop-copy",
        ("Scheduled", "True", "Bound"),
        ("StorageReady", "True", "Stored"),
        ("PostgresReady", "True", "Accepting"),
        ("Ready", "True", "Available"),
    )
    completed = shop.dbranch("-p", "shop", "create", "copy", "--source", "main")
    assert completed.returncode == 0 and completed.stdout == "branch copy created from main; Ready\n", (
        completed
    )
    conditions = [line.split()[:3] for line in completed.stderr.split("\n") if line.startswith("+")]
    assert conditions == [
        ["+", "Scheduled", "Bound"],
        ["+", "StorageReady", "Stored"],
        ["+", "PostgresReady", "Accepting"],
    ]
    assert "already exists" in shop.fails(6, "-p", "shop", "create", "copy")
    assert "already" in shop.succeeds("-p", "shop", "create", "copy", "--if-exists", "reuse")
    assert "source main, not feature-x" in shop.fails(
        6, *("-p", "shop", "create", "copy", "--if-exists", "reuse", "--source", "feature-x")
    )
    uid = shop.get("dbbranch", "shop-copy")["metadata"]["uid"]
    shop.succeeds("-p", "shop", "create", "copy", "--source", "main", "--if-exists", "replace", "--no-wait")
    assert shop.get("dbbranch", "shop-copy")["metadata"]["uid"] != uid


def test_create_ends_with_time_out_and_with_stalled(shop: Team) -> None:
    reason, stderr, slow = "ImagePullFailed: the message of ImagePullFailed", "", ""
    # A busy machine may need longer to write the reason.
    for seconds in (3, 12, 48):
        if reason not in stderr:
            slow = f"slow-{seconds}"
            shop.set_status_once(
                '"source"', "dbbranch", f"shop-{slow}", ("Ready", "False", "ImagePullFailed")
            )
            stderr = shop.fails(5, "-p", "shop", "create", slow, "-s", "main", "--timeout", f"{seconds}s")
            assert shop.exists("dbbranch", f"shop-{slow}")
    assert reason in stderr
    shop.set_status_once(
        '"source"', "dbbranch", "shop-lost", ("Ready", "False", "DataLost"), ("Stalled", "True", "DataLost")
    )
    stderr = shop.fails(7, "-p", "shop", "create", "lost", "-s", "main", "--timeout", TIMEOUT)
    assert "the message of DataLost" in stderr
    assert shop.fails(5, "-p", "shop", "wait", slow, "--timeout", "500ms")
    shop.succeeds("-p", "shop", "wait", slow, "--for", "Ready=False", "--timeout", TIMEOUT)


def test_reset_makes_a_restore_and_waits_for_it(shop: Team) -> None:
    """The schema accepts what is made; the name is never that of one before."""
    shop.set_status_once(
        '"ttlAfterFinished"',
        "dbrestore",
        "shop-feature-x-1",
        ("Complete", "True", "Restored"),
        phase="Complete",
        source="main",
        dataTime="2030-01-01T00:00:00Z",
    )
    done = shop.succeeds("-p", "shop", "reset", "feature-x", "--to-branch", "main", "--yes")
    assert done.startswith("branch feature-x has the data of main as of 20")
    assert "what it had before is deleted" in done
    spec = {"project": "shop", "branch": "feature-x", "source": "main"}
    default = {"startingDeadline": "10m", "ttlAfterFinished": "24h"}
    body = shop.get("dbrestore", "shop-feature-x-1")
    assert body["spec"] == {**spec, **default}
    assert names.CLI_MANAGER in {entry["manager"] for entry in body["metadata"]["managedFields"]}
    for name, code, conditions in (
        ("shop-feature-x-2", 7, (("Failed", "True", "Protected"), ("Stalled", "True", "Protected"))),
        ("shop-feature-x-3", 5, (("Reconciling", "True", "ProjectStopped"),)),
    ):
        shop.set_status_once('"undo"', "dbrestore", name, *conditions)
        timeout = TIMEOUT if code == 7 else "8s"
        error = shop.fails(
            code, "-p", "shop", "reset", "feature-x", "--discard", "--yes", "--timeout", timeout
        )
        assert code == 5 or "Protected: the message of Protected" in error
    listed = json.loads(shop.succeeds("-p", "shop", "history", "feature-x", "-o", "json"))["items"]
    assert {item["metadata"]["name"] for item in listed} == {f"shop-feature-x-{n}" for n in (1, 2, 3)}
    assert "deleted for good" in shop.fails(2, "-p", "shop", "reset", "feature-x", "--discard")
    active = shop.get("dbproject", "shop")["spec"]["activeBranch"]
    other = "main" if active == "feature-x" else "feature-x"
    assert "active branch" in shop.fails(2, "-p", "shop", "reset", active, "--to-branch", other)
    assert "has no data to go back to" in shop.fails(3, "-p", "shop", "undo", "feature-x")


def test_dry_run_writes_nothing(shop: Team) -> None:
    body = yaml.safe_load(
        shop.succeeds("-p", "shop", "create", "dry", "-s", "main", "--dry-run=client", "-o", "yaml")
    )
    assert body["metadata"]["name"] == "shop-dry" and body["spec"] == {"project": "shop", "source": "main"}
    assert not shop.exists("dbbranch", "shop-dry")
    body = json.loads(shop.succeeds("init", "dry", "--size", "2Gi", "--dry-run", "client", "-o", "json"))
    assert body["spec"] == {"storage": {"size": "2Gi"}} and not shop.exists("dbproject", "dry")


def test_stop_and_resume_keep_the_other_fields(shop: Team) -> None:
    shop.set_status_once('"state": "Stopped"', "dbbranch", "shop-feature-x", ("Ready", "False", "Stopped"))
    assert shop.succeeds("-p", "shop", "stop", "feature-x") == "branch feature-x stopped\n"
    assert "dbranch resume feature-x" in shop.fails(6, "-p", "shop", "use", "feature-x")
    shop.set_status_once('"state": "Running"', "dbbranch", "shop-feature-x", ("Ready", "True", "Available"))
    assert shop.succeeds("-p", "shop", "resume", "feature-x") == "branch feature-x is Ready\n"
    assert "--yes" in shop.fails(2, "-p", "shop", "stop", "--all")
    before = shop.get("dbproject", "shop")["spec"]
    shop.succeeds("-p", "shop", "stop", "--all", "--yes", "--no-wait")
    shop.succeeds("-p", "shop", "resume", "--all", "--no-wait")
    assert shop.get("dbproject", "shop")["spec"] == before
    assert "a BRANCH, or --all" in shop.fails(2, "-p", "shop", "stop")


def test_fields_that_git_manages_need_force(team: Team) -> None:
    team.apply("DBProject", "managed", {"activeBranch": "main"}, manager="argocd-controller")
    team.apply("DBBranch", "managed-main", {"project": "managed"})
    team.apply(
        "DBBranch", "managed-b", {"project": "managed", "source": "main"}, manager="kustomize-controller"
    )
    stderr = team.fails(6, "-p", "managed", "use", "b", "--no-wait")
    assert "argocd-controller" in stderr and "--force" in stderr
    assert team.get("dbproject", "managed")["spec"]["activeBranch"] == "main"
    team.succeeds("-p", "managed", "stop", "b", "--no-wait")  # Flux does not own spec.state
    team.succeeds("-p", "managed", "resume", "b", "--no-wait")
    team.succeeds("-p", "managed", "use", "b", "--no-wait", "--force")
    assert team.get("dbproject", "managed")["spec"]["activeBranch"] == "b"


def test_init_becomes_the_current_project_and_keeps_its_spec(team: Team) -> None:
    team.set_status_once('"size": "2Gi"', "dbproject", "mine", ("Ready", "True", "Available"))
    options = ("--image", "postgres:16", "--size", "2Gi", "--port", "6432", "--parameter", "work_mem=8MB")
    assert "project mine is Ready" in team.succeeds("init", "mine", *options)
    assert "already" in team.fails(6, "init", "mine")
    team.apply("DBBranch", "mine-main", {"project": "mine"})
    assert (
        team.succeeds("list", "-o", "name") == "dbbranch.dbranch.io/mine-main\n"
    )  # without -p: the current project
    rows = [line.split() for line in team.succeeds("projects").split("\n")]
    assert ["*", "mine"] in [row[:2] for row in rows]
    team.apply("DBBranch", "mine-other", {"project": "mine", "source": "main"})
    before = team.get("dbproject", "mine")["spec"]
    team.succeeds("use", "other", "--no-wait")
    after = team.get("dbproject", "mine")["spec"]
    assert after == {**before, "activeBranch": "other"} and after["postgres"]["image"] == "postgres:16"


def test_delete_asks_and_waits_for_the_deletion(shop: Team) -> None:
    shop.apply("DBBranch", "shop-old", {"project": "shop", "source": "main"})
    kubectl(
        *("-n", shop.name, "patch", "dbbranch", "shop-old", "--type=merge"),
        *("-p", json.dumps({"metadata": {"finalizers": ["dbranch.io/agent"]}})),
    )
    assert "--yes" in shop.fails(2, "-p", "shop", "delete", "old")
    stderr = shop.fails(5, "-p", "shop", "rm", "old", "--yes", "--timeout", "1s")
    assert "until branch old is deleted" in stderr and shop.exists("dbbranch", "shop-old")
    waiting = subprocess.Popen(
        shop.command("-p", "shop", "delete", "old", "--yes"),
        env=shop.env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    with suppress(subprocess.TimeoutExpired):
        waiting.wait(STILL_WAITING_SECONDS)
    assert waiting.poll() is None
    kubectl(
        *("-n", shop.name, "patch", "dbbranch", "shop-old", "--type=merge"),
        *("-p", '{"metadata":{"finalizers":null}}'),
    )
    out, _ = waiting.communicate(timeout=TIMEOUT_SECONDS)
    assert waiting.returncode == 0 and out == "branch old deleted, and its data\n"


def test_delete_project_asks_and_unsets_the_current_project(team: Team) -> None:
    team.project("brief")
    team.succeeds("set-default", "brief")
    assert "--yes" in team.fails(2, "delete-project", "brief")
    assert team.exists("dbproject", "brief")
    team.succeeds("delete-project", "brief", "--yes")
    assert not team.exists("dbproject", "brief")
    assert "brief" not in (team.context / "config.yaml").read_text()


def test_the_crds_rules_exit_with_refused(team: Team) -> None:
    stderr = team.fails(6, "init", "odd", "--parameter", "fsync=off", "--no-wait")
    assert "fsync is set by dbranch itself" in stderr


def await_deletion_refused(team: Team, branch: str) -> None:
    """Wait until the API server's cache, from which the policy reads the project, has the project."""
    dry_run = ["kubectl", "-n", team.name, "delete", "dbbranch", branch, "--dry-run=server"]
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while run(dry_run).returncode == 0:
        assert time.monotonic() < deadline, "the deletion is not refused"


def test_an_admission_policys_denial_exits_with_refused(team: Team) -> None:
    team.project("guarded")
    await_deletion_refused(team, "guarded-main")
    denial = (
        "branch main is the root branch of project guarded; it cannot be deleted; "
        "delete the project to delete everything (policy dbranch-branch-deletion)"
    )
    assert team.fails(6, "-p", "guarded", "delete", "main", "--yes") == f"dbranch: {denial}\n"


def test_without_permission_and_without_login(shop: Team, tmp_path: Path) -> None:
    kubectl("-n", shop.name, "create", "serviceaccount", "nobody")
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    path = tmp_path / "kubeconfig"
    for token, text in (
        (kubectl("-n", shop.name, "create", "token", "nobody").strip(), "nobody"),
        ("x", "log"),
    ):
        config["users"][0]["user"] = {"token": token}
        path.write_text(yaml.safe_dump(config))
        assert text in shop.fails(4, "--kubeconfig", str(path), "-p", "shop", "list")


def test_no_cluster(shop: Team, tmp_path: Path) -> None:
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    stderr = shop.fails(1, "--kubeconfig", str(path), "-p", "shop", "list")
    assert "https://127.0.0.1:9" in stderr and str(path) in stderr and "Connection refused" in stderr


def test_connecting_commands_name_what_is_missing(shop: Team) -> None:
    assert "Secret shop-conn does not exist" in shop.fails(3, "-p", "shop", "url")
    kubectl(
        *("-n", shop.name, "create", "secret", "generic", "shop-conn"),
        *("--from-literal=host=h", "--from-literal=port=5432", "--from-literal=username=u"),
        *(
            "--from-literal=password=p",
            "--from-literal=database=d",
            "--from-literal=uri=postgresql://u:p@h/d",
        ),
    )
    assert shop.succeeds("-p", "shop", "url") == "postgresql://u:p@h/d\n"
    assert "no proxy pod of project shop is Ready" in shop.fails(1, "-p", "shop", "start", "--port", "0")
    assert "did you mean feature-x?" in shop.fails(3, "-p", "shop", "psql", "feature-y")


def test_of_several_who_create_a_branch_at_once_exactly_one_made_it(shop: Team) -> None:
    def create(*options: str) -> subprocess.CompletedProcess[str]:
        return shop.dbranch("-p", "shop", "create", "raced", "--source", "main", "--no-wait", *options)

    with ThreadPoolExecutor(4) as executor:
        raced = list(executor.map(lambda _: create(), range(4)))
    assert sorted(done.returncode for done in raced) == [0, 6, 6, 6]
    kubectl("-n", shop.name, "delete", "dbbranch", "shop-raced")
    with ThreadPoolExecutor(4) as executor:
        reused = list(executor.map(lambda _: create("--if-exists", "reuse"), range(4)))
    assert [done.returncode for done in reused] == [0, 0, 0, 0]
    assert sum("created from main" in done.stdout for done in reused) == 1


def test_a_name_that_is_another_projects_branch_is_reported(team: Team) -> None:
    team.project("eu")
    team.project("eu-west")
    team.apply("DBBranch", "eu-west-north", {"project": "eu", "source": "main"})
    said = team.fails(6, "-p", "eu-west", "create", "north", "--source", "main", "--no-wait")
    assert "the name eu-west-north is taken by a branch of project eu" in said


def test_times_and_protections_are_written_and_taken_away(shop: Team) -> None:
    shop.apply("DBBranch", "shop-aging", {"project": "shop", "source": "main", "ttl": "1h"})
    shop.apply("DBBranch", "shop-aging", {"protectedUntil": "2999-01-01T00:00:00Z"}, manager="somebody")
    shop.set_status("dbbranch", "shop-aging", ("Ready", "True", "Available"))
    assert "stays until" in shop.succeeds("-p", "shop", "extend", "aging", "2d")
    shop.succeeds("-p", "shop", "protect", "aging", "--for", "7d")
    shop.succeeds("-p", "shop", "protect", "aging")
    spec = shop.get("dbbranch", "shop-aging")["spec"]
    assert spec["protection"] == "Enabled" and spec["ttl"] == "1h" and "expirationTime" in spec
    assert spec["protectedUntil"] == "2999-01-01T00:00:00Z"
    assert "is protected" in shop.fails(6, "-p", "shop", "delete", "aging", "--yes")
    # Also what others have set: else it would stay, and with it the protection.
    shop.succeeds("-p", "shop", "unprotect", "aging")
    spec = shop.get("dbbranch", "shop-aging")["spec"]
    assert spec["protection"] == "Disabled" and "protectedUntil" not in spec and "expirationTime" in spec
    # And it does not come back with the next write.
    shop.succeeds("-p", "shop", "extend", "aging", "3d")
    assert "protectedUntil" not in shop.get("dbbranch", "shop-aging")["spec"]
    shop.succeeds("-p", "shop", "delete", "aging", "--yes", "--no-wait")
