"""Which project and which cluster are meant."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from dbranch_cli.failure import Failure
from dbranch_cli.kubeconfig import find_login
from dbranch_cli.options import Verbs
from dbranch_cli.scope import Scope, project_file, written
from dbranch_cli.settings import current_project, set_current_project, settings_path


def kubeconfig(path: Path, **user: Any) -> Path:
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "k3s",
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}],
                "users": [{"name": "u", "user": user or {"token": "t"}}],
                "contexts": [
                    {"name": "k3s", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}},
                    {"name": "other", "context": {"cluster": "c", "user": "u"}},
                ],
            }
        )
    )
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own, with a kubeconfig and no settings."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.setenv("DBRANCH_CONFIG", str(tmp_path / "settings" / "config.yaml"))
    monkeypatch.delenv("DBRANCH_PROJECT", raising=False)
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    return tmp_path


class Projects:
    """Stands for the API server: the projects that there are."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def projects(self) -> list[dict[str, Any]]:
        return [{"metadata": {"name": name}} for name in self.names]


def scope(*there: str, **given: Any) -> Scope:
    found = Scope(**given)
    found.__dict__["store"] = Projects(*there)
    return found


def test_which_project_in_this_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scope("only").project_name == "only"
    set_current_project("k3s", "team-a", "remembered")
    assert scope("only").project_name == "remembered"
    (place / "work" / ".dbranch").write_text("project: of-the-directory\n")
    assert scope("only").project_name == "of-the-directory"
    monkeypatch.setenv("DBRANCH_PROJECT", "of-the-environment")
    assert scope("only").project_name == "of-the-environment"
    assert scope("only", project_option="said").project_name == "said"


@pytest.mark.usefixtures("place")
def test_none_and_many_projects() -> None:
    with pytest.raises(Failure, match="make one: dbranch init NAME") as none:
        _ = scope().project_name
    assert none.value.code == 3
    with pytest.raises(Failure, match="a, b; name one with -p") as many:
        _ = scope("a", "b").project_name
    assert many.value.code == 2


def test_the_projects_file(tmp_path: Path) -> None:
    assert project_file(tmp_path) is None or str(tmp_path) not in str(project_file(tmp_path))
    file = tmp_path / ".dbranch"
    file.write_text("shop\n")
    assert project_file(tmp_path) == ("shop", str(file))
    file.write_text("[1, 2]")
    with pytest.raises(Failure, match="project: NAME"):
        project_file(tmp_path)


def test_the_current_project_is_kept_for_each_context_and_namespace(place: Path) -> None:
    set_current_project("k3s", "team-a", "shop")
    set_current_project("k3s", "team-b", "bank")
    set_current_project("other", "team-a", "else")
    assert current_project("k3s", "team-a") == "shop"
    set_current_project("k3s", "team-a", None)
    assert [current_project("k3s", n) for n in ("team-a", "team-b")] == [None, "bank"]
    assert current_project("other", "team-a") == "else"
    assert os.listdir(place / "settings") == ["config.yaml"]  # no temporary file stays


def test_where_the_settings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBRANCH_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/xdg")
    assert settings_path() == Path("/xdg/dbranch/config.yaml")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/context/me")
    assert settings_path() == Path("/context/me/.config/dbranch/config.yaml")


def test_settings_that_cannot_be_written(place: Path) -> None:
    (place / "settings").write_text("a file where the directory should be")
    with pytest.raises(Failure, match="cannot") as refused:
        set_current_project("k3s", "team-a", "shop")
    assert refused.value.code == 1


def test_context_and_namespace(place: Path) -> None:
    login = find_login(None, None, None)
    assert (login.context, login.namespace) == ("k3s", "team-a")
    assert find_login(None, "other", None).namespace == "default"
    assert find_login(None, None, "mine").namespace == "mine"
    with pytest.raises(Failure, match='no context "nope"; it has: k3s, other') as refused:
        find_login(None, "nope", None)
    assert refused.value.code == 2


def test_several_kubeconfigs_are_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = place / "second"
    second.write_text(
        yaml.safe_dump(
            {
                "current-context": "far",
                "clusters": [{"name": "f", "cluster": {"server": "https://far"}}],
                "users": [{"name": "u", "user": {"token": "not this one"}}],
                "contexts": [{"name": "far", "context": {"cluster": "f", "user": "u"}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", f"{place / 'kubeconfig'}:{place / 'absent'}:{second}")
    assert find_login(None, None, None).context == "k3s"
    far = find_login(None, "far", None)
    assert far.config.cluster["server"] == "https://far"
    assert far.config.user["token"] == "t"  # of two users of one name, the first


def test_keys_in_the_kubeconfig_are_readable_for_this_user_alone(place: Path) -> None:
    data = base64.b64encode(b"secret").decode()
    path = kubeconfig(place / "with-keys", **{"client-certificate-data": data, "client-key-data": data})
    key = Path(find_login(str(path), None, None).config.user["client-key"].filename())
    assert key.read_bytes() == b"secret"
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_a_login_command_is_run(place: Path) -> None:
    answer = json.dumps({"status": {"token": "drawn"}})
    script = f"import os; assert 'ExecCredential' in os.environ['KUBERNETES_EXEC_INFO']; print({answer!r})"
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": ["-c", script],
    }
    login = find_login(str(kubeconfig(place / "exec", exec=plugin)), None, None)
    assert login.config.user["token"] == "drawn"
    absent = {**plugin, "command": "no-such-login", "installHint": "get it there"}
    with pytest.raises(Failure, match="no-such-login is not installed: get it there") as refused:
        find_login(str(kubeconfig(place / "exec", exec=absent)), None, None)
    assert refused.value.code == 4


@pytest.mark.parametrize(
    "argv",
    [
        ["-n", "team-b", "-o", "json", "say"],
        ["say", "--namespace=team-b", "-ojson"],
        ["-n", "team-a", "-o", "yaml", "say", "-n", "team-b", "-o", "json"],
    ],
)
def test_common_options_before_and_after_the_verb(argv: list[str]) -> None:
    seen: list[Scope] = []

    @click.group(cls=Verbs)
    @click.pass_context
    def group(context: click.Context) -> None:
        context.ensure_object(Scope)

    @group.command()
    @click.pass_obj
    def say(scope: Scope) -> None:
        seen.append(scope)

    group.main(argv, standalone_mode=False)
    assert [(s.namespace_option, s.output) for s in seen] == [("team-b", "json")]


def test_forms_of_output() -> None:
    body = {
        "apiVersion": "dbranch.io/v1alpha1",
        "kind": "DBBranch",
        "metadata": {"name": "shop-main", "managedFields": [{}]},
    }
    assert written(body, "name") == "dbbranch.dbranch.io/shop-main"
    assert written([body, body], "name").count("\n") == 1
    assert json.loads(written(body, "json"))["metadata"] == {"name": "shop-main"}
    assert yaml.safe_load(written([body], "yaml"))["items"][0]["kind"] == "DBBranch"


def test_a_question_that_nobody_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    Scope().confirm("Delete?", yes=True)
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        with pytest.raises(Failure, match="--yes") as refused:
            Scope().confirm("Delete?", yes=False)
    assert refused.value.code == 2
