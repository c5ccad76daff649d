"""`dbranch report`: what is in the archive, and above all what is not."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.api import FakeApi
from tests.unit.cli.example import TEAM, condition, log_path, logs, use_example

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch_cli.main import cli
from dbranch_cli.redaction import REDACTED, redact_object, redact_text

# Each secret that is planted ends so.
PLANTED = "hunter2"
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEhunter2hunter2hunter2\n-----END RSA PRIVATE KEY-----"
TEXTS = (
    f"connection to postgresql://app:{PLANTED}@shop.team-a.svc:5432/dbranch failed",
    f"POSTGRES://u:p%40{PLANTED}@h/d",
    f"proxy http://{PLANTED}@10.0.0.1:3128 refused",
    f"conninfo: host=h user=u password={PLANTED} dbname=d",
    f"password = '{PLANTED} with '' a quote and {PLANTED}'",
    f'{{"level": "info", "password": "{PLANTED} \\" {PLANTED}", "n": 1}}',
    f'{{"message": "{{\\"clientSecret\\": \\"{PLANTED}\\"}}"}}',
    f"ALTER ROLE app ENCRYPTED PASSWORD '{PLANTED}'",
    f"create user x password E'\\'{PLANTED}'",
    f"Authorization: Bearer {PLANTED}{PLANTED}",
    f"authorization: Basic {PLANTED}{PLANTED}==",
    f"token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ{PLANTED}.{PLANTED}-x_y",
    f"AWS_SECRET_ACCESS_KEY={PLANTED} aws s3 cp",
    f"--access-key {PLANTED} --region x",
    f"PGPASSWORD={PLANTED} pg_dump",
    f"api_key: {PLANTED}",
    f"SCRAM-SHA-256$4096:{PLANTED}$a:b",
    "SCRAM-SHA-256$4096:aaaa$hunter2:hunter2",
    KEY,
    f"-----BEGIN PRIVATE KEY-----\n{PLANTED} is cut off",
)


def plant(api: FakeApi) -> None:
    """Put secrets wherever somebody may have put one."""
    group = f"/apis/{names.API_VERSION}/namespaces/{TEAM}"
    applied = json.dumps({"spec": {"a": PLANTED}})
    body = {
        "kind": names.PROJECT_KIND,
        "metadata": {
            "name": "planted",
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": applied,
                "example.com/anything": PLANTED,
                names.RESTARTED_AT: "2030-01-13T11:00:00Z",
            },
            "managedFields": [{"manager": PLANTED}],
        },
        "spec": {
            "postgres": {
                "image": "postgres:17",
                "passwordSecret": {"name": "planted-password", "key": "pw"},
                "parameters": {
                    "work_mem": "8MB",
                    "primary_conninfo": f"host=h password={PLANTED}",
                    "app.anything": PLANTED,
                    "archive_command": f"AWS_SECRET_ACCESS_KEY={PLANTED} cp %p s3://b",
                },
            },
            "accessToken": PLANTED,
            "list": [{"apiKey": PLANTED}, f"postgres://u:{PLANTED}@h"],
        },
        "status": {
            "conditions": [
                condition("Ready", "False", "Failed", text, "2030-01-13T11:00:00Z") for text in TEXTS
            ]
        },
    }
    api.put(f"{group}/{names.PROJECTS}", body)
    for index, text in enumerate(TEXTS):
        involved = {"kind": names.PROJECT_KIND, "name": "planted", "namespace": TEAM}
        event = {
            "metadata": {"name": f"e{index}"},
            "involvedObject": involved,
            "reason": "Failed",
            "message": text,
        }
        api.put(f"/api/v1/namespaces/{TEAM}/events", event)
    secret = {"metadata": {"name": "shop-conn"}, "data": {"password": PLANTED}}
    api.put(f"/api/v1/namespaces/{TEAM}/secrets", secret)
    labels = {names.LABEL_NAME: "dbranch", names.LABEL_COMPONENT: names.COMPONENT_POSTGRES}
    pod = {
        "metadata": {"name": "slot-1", "labels": labels, "annotations": {"example.com/x": PLANTED}},
        "spec": {
            "nodeName": "n1",
            "containers": [
                {"name": "postgres", "image": "i", "env": [{"value": PLANTED}], "args": [PLANTED]}
            ],
        },
        "status": {"containerStatuses": [{"name": "postgres", "restartCount": 1}]},
    }
    api.put("/api/v1/namespaces/dbranch-nodes/pods", pod)


def unpack(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        members = {m.name.partition("/")[2]: archive.extractfile(m) for m in archive.getmembers()}
        return {name: file.read().decode() for name, file in members.items() if file}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["report", *arguments], catch_exceptions=False)


def test_planted_secrets_are_not_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = "".join(f"2030-01-13T11:59:00Z {text}\n" for text in TEXTS[:-1])
    api = use_example(monkeypatch, tmp_path, logs(f"{log}2030-01-13T11:59:59Z reconciled shop-feature-x\n"))
    plant(api)
    assert PLANTED in json.dumps(api.find("/api/v1/pods")) and PLANTED in log
    api.take_requests()
    result = run(str(tmp_path / "r.tar.gz"))
    assert result.exit_code == 0, result.output
    files = unpack(tmp_path / "r.tar.gz")
    for name, text in files.items():
        assert PLANTED not in text, (name, text)
    # What is needed to help is there all the same.
    assert "work_mem: 8MB" in files["dbprojects.yaml"] and "planted-password" in files["dbprojects.yaml"]
    assert (
        names.RESTARTED_AT in files["dbprojects.yaml"] and "example.com/anything" in files["dbprojects.yaml"]
    )
    assert "shop-feature-x" in files["dbbranches.yaml"] and "ImagePullFailed" in files["doctor.txt"]
    assert "reconciled shop-feature-x" in files["logs/team-a/shop-proxy-1.proxy.log"]
    assert "slot-1" in files["pods.yaml"] and not any("slot-1" in name for name in files)
    assert all(yaml.safe_load(text) is not None for name, text in files.items() if name.endswith(".yaml"))
    assert not [request for request in api.take_requests() if "secrets" in request.path or request.writes]
    assert (tmp_path / "r.tar.gz").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", TEXTS)
def test_each_form_of_a_secret_is_removed(text: str) -> None:
    assert PLANTED not in redact_text(text) and REDACTED in redact_text(text)
    assert PLANTED not in json.dumps(redact_object({"spec": {"field": text}}))
    assert PLANTED not in redact_text(json.dumps({"message": text}))


@pytest.mark.parametrize(
    "text",
    [
        "cannot pull postgres:17 (403); Postgres is not started; check postgres.imagePullSecrets",
        "Secret shop-conn is missing; create it",
        "imagePullSecrets:\n- name: registry\n",
        "2030-01-13T11:59:00Z branch team-a/shop-x on n1: Ready=True",
        "the password of role app was changed at 12:00",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_text(text) == text


@given(st.text())
def test_any_text_can_be_redacted_and_a_second_time_changes_no_more(text: str) -> None:
    once = redact_text(text)
    assert redact_text(once).count(REDACTED) >= once.count(REDACTED)


@pytest.mark.parametrize("piece", ["a", "a-", "a://", "'\\", "-----BEGIN X-----", "secret", "eyJ"])
def test_a_line_of_a_megabyte_takes_no_minutes(piece: str) -> None:
    started = time.process_time()
    redact_text(piece * (2**20 // len(piece)))
    assert time.process_time() - started < 30


def test_what_may_not_be_read_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    api = use_example(monkeypatch, tmp_path, {})
    for pattern in (r"/api/v1/(pods|nodes|events)", "dbranch-nodes", "dbranch-system", "deployments"):
        api.refuse("find", pattern, ApiError(403, "Forbidden", f"{pattern} is forbidden"))
    result = run("--lines", "0", "-o", "json", str(tmp_path / "r.tar.gz"))
    assert result.exit_code == 0, result.output
    printed = json.loads(result.output)
    files = unpack(tmp_path / "r.tar.gz")
    assert list(files) == printed["contents"] and printed["file"] == str(tmp_path / "r.tar.gz")
    assert "nodes.yaml" not in files and "shop-main" in files["dbbranches.yaml"]
    assert any(sentence.startswith("nodes.yaml: ") for sentence in printed["leftOut"])
    assert all(sentence in files["about.txt"] for sentence in printed["leftOut"])
    # Its own namespace's pods are there, of which it may list them.
    assert "shop-proxy-1" in files["pods.yaml"]


def test_the_log_before_a_restart_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = logs("now\n") | {log_path(TEAM, "shop-proxy-1", "proxy") + "&previous": "before the restart\n"}
    api = use_example(monkeypatch, tmp_path, texts)
    pods = f"/api/v1/namespaces/{TEAM}/pods"
    status = {"containerStatuses": [{"name": "proxy", "restartCount": 1}]}
    api.merge(f"{pods}/shop-proxy-1/status", {"status": status})
    assert run(str(tmp_path / "r.tar.gz")).exit_code == 0
    assert (
        unpack(tmp_path / "r.tar.gz")["logs/team-a/shop-proxy-1.proxy.previous.log"] == "before the restart\n"
    )


def test_a_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_example(monkeypatch, tmp_path, logs(""))
    result = CliRunner().invoke(cli, ["report", str(tmp_path / "none" / "r.tar.gz")])
    assert result.exit_code == 1 and "cannot write" in str(result.exception)
