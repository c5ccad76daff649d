"""Every way to fail has its exit code."""

from __future__ import annotations

import json

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


def test_a_policys_refusal_is_its_own_sentence() -> None:
    said = str(failure_from(ApiError(422, "Invalid", POLICY)))
    assert said == (
        "main is the root branch of project shop; delete the project instead (policy dbranch-deletion)"
    )


def test_the_innermost_cause_is_told() -> None:
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
def test_a_cluster_without_dbranch_is_told_from_an_object_that_is_not_there(
    path: str, body: str, reason: str
) -> None:
    response = requests.Response()
    response.status_code, response.url = 404, f"https://server{path}"
    response._content = body.replace("{", '{"reason": "NotFound", ', 1).encode()
    error = api_error_from(response)
    assert (error.reason, failure_from(error).code) == (reason, 3)


def ended(*argv: str) -> int:
    with pytest.raises(SystemExit) as end:
        entry.main(list(argv))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def nowhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kubeconfig, no settings, no `.dbranch`."""
    context = tmp_path_factory.mktemp("context")
    monkeypatch.chdir(context)
    monkeypatch.setenv("HOME", str(context))
    monkeypatch.setenv("KUBECONFIG", str(context / "none"))
    for name in ("DBRANCH_PROJECT", "DBRANCH_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("argv", "code", "said"),
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
def test_the_command_ends_with_its_code_and_says_why(
    argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(*argv) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("dbranch: ") and err.count("\n") == 1


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("form", [["-o", "json"], ["-ojson"], ["--output=json"], ["--output", "json"]])
def test_errors_as_json(form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(*form, "craete") == 2
    said = json.loads(capsys.readouterr().err)["error"]
    assert (said["code"], said["reason"]) == (2, "Usage") and "create" in said["message"]


@pytest.mark.parametrize("argv", [["--help"], ["create", "-h"], ["--version"], ["completion", "bash"]])
def test_help_and_completion_need_no_cluster(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(*argv) == 0
    assert capsys.readouterr().out
