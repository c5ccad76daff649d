"""Every failure has its exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import requests

from dbranch.api.errors import ApiError, ClusterUnreachable, DbranchError, InvalidInput
from dbranch_cli import main as entry
from dbranch_cli.connection import api_error_from, root_cause
from dbranch_cli.failure import Failure, failure_from

POLICY = (
    "dbbranches.dbranch.io \"shop-main\" is forbidden: ValidatingAdmissionPolicy 'dbranch-deletion' with binding"
    " 'dbranch-deletion' denied request: main is the root branch of project shop; delete the project instead"
)
RBAC = 'dbprojects.dbranch.io is forbidden: User "nobody" cannot list resource "dbprojects"'


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("x"), 2),
        (ApiError(404, "NotFound", "x"), 3),
        (ApiError(401, "Unauthorized", "x"), 4),
        (ApiError(403, "Forbidden", RBAC), 4),
        (ApiError(403, "Forbidden", POLICY), 6),
        (ApiError(422, "Invalid", POLICY), 6),
        (ApiError(422, "Invalid", "spec.source is immutable"), 6),
        (ApiError(403, "Forbidden", 'admission webhook "x" denied the request: no'), 6),
        (ApiError(409, "Conflict", "x"), 6),
        (ApiError(500, "InternalError", "x"), 1),
        (ClusterUnreachable("x"), 1),
        (DbranchError("x"), 1),
        (Failure(7, "DataLost", "x"), 7),
    ],
)
def test_exit_codes(error: DbranchError, code: int) -> None:
    assert failure_from(error).code == code


def test_the_denial_of_an_admission_policy_is_its_own_message() -> None:
    text = str(failure_from(ApiError(422, "Invalid", POLICY)))
    assert text == (
        "main is the root branch of project shop; delete the project instead (policy dbranch-deletion)"
    )


def test_the_root_cause_is_the_innermost_error() -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    middle = OSError("HTTPSConnectionPool(host='x', port=9): Max retries exceeded")
    middle.__cause__ = refused
    assert root_cause(requests.ConnectionError(middle)) == "Connection refused"
    assert root_cause(ValueError("just this")) == "just this"


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/apis/dbranch.io/v1alpha1/namespaces/a/dbprojects", "404 page not found", "NotInstalled"),
        (
            "/apis/dbranch.io/v1alpha1/namespaces/a/dbprojects/x",
            '{"details": {"kind": "dbprojects"}}',
            "NotFound",
        ),
        ("/api/v1/namespaces/a/secrets/x", '{"details": {"kind": "secrets"}}', "NotFound"),
    ],
)
def test_not_installed_differs_from_not_found(path: str, body: str, reason: str) -> None:
    response = requests.Response()
    response.status_code, response.url = 404, f"https://server{path}"
    response._content = body.replace("{", '{"reason": "NotFound", ', 1).encode()
    error = api_error_from(response)
    assert (error.reason, failure_from(error).code) == (reason, 3)


def exit_code_of(*argv: str) -> int:
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as end:
        entry.main(list(argv))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def empty_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kubeconfig, no configuration file, no `.dbranch`."""
    context = tmp_path_factory.mktemp("context")
    monkeypatch.chdir(context)
    monkeypatch.setenv("HOME", str(context))
    monkeypatch.setenv("KUBECONFIG", str(context / "none"))
    for name in ("DBRANCH_PROJECT", "DBRANCH_CONFIG", "DBRANCH_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("empty_environment")
@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["craete", "x"], 2, "did you mean create?"),
        (["create", "--sorce", "main", "x"], 2, "--sourc"),
        (["create"], 2, "BRANCH"),
        (["create", "x", "--timeout", "soon"], 2, "not a duration"),
        (["-p", "shop", "create", "feature/X"], 2, "try feature-x"),
        (["-p", "shop", "list"], 1, "--kubeconfig"),
        (["--kubeconfig", "/no/such", "-p", "shop", "list"], 2, "/no/such"),
        (["-p", "shop", "use", "x", "-o", "xml"], 2, "xml"),
        (["-p", "shop", "stop"], 2, "--all"),
        (["init", "Shop", "--dry-run", "client"], 2, "try shop"),
        (["-p", "shop", "wait", "x", "--for", "Happy"], 2, "Ready"),
    ],
)
def test_a_failing_command_exits_with_its_code_and_a_message(
    argv: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(*argv) == code
    out, err = capsys.readouterr()
    assert out == "" and text in err and err.startswith("dbranch: ") and err.count("\n") == 1


@pytest.mark.usefixtures("empty_environment")
@pytest.mark.parametrize("options", [["-o", "json"], ["-ojson"], ["--output=json"], ["--output", "json"]])
def test_errors_as_json(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(*options, "craete") == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["reason"]) == (2, "Usage") and "create" in error["message"]


@pytest.mark.parametrize("argv", [["--help"], ["create", "-h"], ["--version"], ["completion", "bash"]])
def test_help_and_completion_need_no_cluster(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(*argv) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", list(entry.cli.commands))
def test_each_command_has_a_help_text_that_begins_with_a_summary(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(command, "--help") == 0
    assert (entry.cli.commands[command].help or "").split("\n")[0].split(".")[0] in capsys.readouterr().out
    assert not entry.cli.commands[command].get_short_help_str(60).endswith("...")


def test_what_takes_long_to_import_is_not_imported_for_help_and_completion() -> None:
    def imported(modules: str) -> set[str]:
        program = f"import sys, {modules}; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return {*done.stdout.split()}

    # Beside what the environment's own start imports.
    added = imported("dbranch_cli.main") - imported("click")
    assert not added & {"pykube", "requests", "urllib3", "websocket", "yaml", "ssl", "importlib.metadata"}
