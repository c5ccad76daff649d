"""The project and the cluster that an invocation selects, and its output."""

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
from click.testing import CliRunner

from dbranch.api.enums import OnSwitch
from dbranch_cli.config import config_path, current_project, set_current_project
from dbranch_cli.failure import Failure
from dbranch_cli.invocation import Invocation, find_project_file, format_objects
from dbranch_cli.kubeconfig import load_kube_context
from dbranch_cli.main import cli
from dbranch_cli.options import CommandGroup


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
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a kubeconfig and no configuration file."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.setenv("DBRANCH_CONFIG", str(tmp_path / "config" / "config.yaml"))
    monkeypatch.delenv("DBRANCH_PROJECT", raising=False)
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deep")
    return tmp_path


class FakeStore:
    """Lists the given projects."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def projects(self) -> list[dict[str, Any]]:
        return [{"metadata": {"name": name}} for name in self.names]


def invocation(*projects: str, **options: Any) -> Invocation:
    created = Invocation(**options)
    created.__dict__["store"] = FakeStore(*projects)
    return created


def test_the_order_in_which_the_project_is_selected(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invocation("only").project_name == "only"
    set_current_project("k3s", "team-a", "current")
    assert invocation("only").project_name == "current"
    (directory / "work" / ".dbranch").write_text("project: of-the-directory\n")
    assert invocation("only").project_name == "of-the-directory"
    monkeypatch.setenv("DBRANCH_PROJECT", "of-the-environment")
    assert invocation("only").project_name == "of-the-environment"
    assert invocation("only", project_option="option").project_name == "option"


@pytest.mark.usefixtures("directory")
def test_none_and_many_projects() -> None:
    with pytest.raises(Failure, match="create one with 'dbranch init NAME'") as none:
        _ = invocation().project_name
    assert none.value.code == 3
    with pytest.raises(Failure, match="a, b; choose one with -p") as many:
        _ = invocation("a", "b").project_name
    assert many.value.code == 2


def test_the_project_file(tmp_path: Path) -> None:
    assert find_project_file(tmp_path) is None or str(tmp_path) not in str(find_project_file(tmp_path))
    file = tmp_path / ".dbranch"
    file.write_text("shop\n")
    assert find_project_file(tmp_path) == ("shop", str(file))
    file.write_text("[1, 2]")
    with pytest.raises(Failure, match="project: NAME"):
        find_project_file(tmp_path)


def test_the_current_project_is_kept_for_each_context_and_namespace(directory: Path) -> None:
    set_current_project("k3s", "team-a", "shop")
    set_current_project("k3s", "team-b", "bank")
    set_current_project("other", "team-a", "else")
    assert current_project("k3s", "team-a") == "shop"
    set_current_project("k3s", "team-a", None)
    assert [current_project("k3s", n) for n in ("team-a", "team-b")] == [None, "bank"]
    assert current_project("other", "team-a") == "else"
    assert os.listdir(directory / "config") == ["config.yaml"]  # no temporary file stays


def test_the_path_of_the_configuration_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBRANCH_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/xdg")
    assert config_path() == Path("/xdg/dbranch/config.yaml")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/context/me")
    assert config_path() == Path("/context/me/.config/dbranch/config.yaml")
    # The original's directory.
    monkeypatch.setenv("DBRANCH_HOME", "/home-of-dbranch")
    assert config_path() == Path("/home-of-dbranch/config.yaml")


def test_the_original_tools_configuration_is_not_written_over(directory: Path) -> None:
    (directory / "config").mkdir()
    file = directory / "config" / "config.yaml"
    original = json.dumps({"name": "shop", "mount_point": "/mnt/dbranch", "branches": []})
    file.write_text(original)
    with pytest.raises(Failure, match="the configuration of the original dbranch"):
        set_current_project("k3s", "team-a", "shop")
    assert file.read_text() == original


def test_a_configuration_file_that_cannot_be_read(directory: Path) -> None:
    (directory / "config").write_text("a file where the directory should be")
    with pytest.raises(Failure, match=r"cannot read .*config\.yaml") as failure:
        set_current_project("k3s", "team-a", "shop")
    assert failure.value.code == 1


def test_context_and_namespace(directory: Path) -> None:
    selected = load_kube_context(None, None, None)
    assert (selected.name, selected.namespace) == ("k3s", "team-a")
    assert load_kube_context(None, "other", None).namespace == "default"
    assert load_kube_context(None, None, "mine").namespace == "mine"
    with pytest.raises(Failure, match='no context "nope"; available: k3s, other') as failure:
        load_kube_context(None, "nope", None)
    assert failure.value.code == 2


def test_several_kubeconfigs_are_merged(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = directory / "second"
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
    monkeypatch.setenv("KUBECONFIG", f"{directory / 'kubeconfig'}:{directory / 'absent'}:{second}")
    assert load_kube_context(None, None, None).name == "k3s"
    far = load_kube_context(None, "far", None)
    assert far.config.cluster["server"] == "https://far"
    assert far.config.user["token"] == "t"  # of two users of one name, the first


def test_keys_in_the_kubeconfig_are_written_to_private_files(directory: Path) -> None:
    data = base64.b64encode(b"secret").decode()
    path = kubeconfig(directory / "with-keys", **{"client-certificate-data": data, "client-key-data": data})
    key = Path(load_kube_context(str(path), None, None).config.user["client-key"].filename())
    assert key.read_bytes() == b"secret"
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_an_exec_plugin_is_run(directory: Path) -> None:
    credential = json.dumps({"status": {"token": "from-plugin"}})
    script = (
        f"import os; assert 'ExecCredential' in os.environ['KUBERNETES_EXEC_INFO']; print({credential!r})"
    )
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": ["-c", script],
    }
    selected = load_kube_context(str(kubeconfig(directory / "exec", exec=plugin)), None, None)
    assert selected.config.user["token"] == "from-plugin"
    absent = {**plugin, "command": "no-such-plugin", "installHint": "install it"}
    with pytest.raises(Failure, match="no-such-plugin is not installed: install it") as failure:
        load_kube_context(str(kubeconfig(directory / "exec", exec=absent)), None, None)
    assert failure.value.code == 4


@pytest.mark.parametrize(
    "argv",
    [
        ["-n", "team-b", "-o", "json", "run"],
        ["run", "--namespace=team-b", "-ojson"],
        ["-n", "team-a", "-o", "yaml", "run", "-n", "team-b", "-o", "json"],
    ],
)
def test_common_options_before_and_after_the_command(argv: list[str]) -> None:
    seen: list[Invocation] = []

    @click.group(cls=CommandGroup)
    @click.pass_context
    def group(context: click.Context) -> None:
        context.ensure_object(Invocation)

    @group.command()
    @click.pass_obj
    def run(invocation: Invocation) -> None:
        seen.append(invocation)

    group.main(argv, standalone_mode=False)
    assert [(s.namespace_option, s.output) for s in seen] == [("team-b", "json")]


def test_output_formats() -> None:
    body = {
        "apiVersion": "dbranch.io/v1alpha1",
        "kind": "DBBranch",
        "metadata": {"name": "shop-main", "managedFields": [{}]},
    }
    assert format_objects(body, "name") == "dbbranch.dbranch.io/shop-main"
    assert format_objects([body, body], "name").count("\n") == 1
    assert json.loads(format_objects(body, "json"))["metadata"] == {"name": "shop-main"}
    assert yaml.safe_load(format_objects([body], "yaml"))["items"][0]["kind"] == "DBBranch"


def test_a_confirmation_needs_a_terminal_or_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    Invocation().confirm("Delete?", yes=True)
    with Path(os.devnull).open() as null:
        monkeypatch.setattr(sys, "stdin", null)
        with pytest.raises(Failure, match="--yes") as failure:
            Invocation().confirm("Delete?", yes=False)
    assert failure.value.code == 2


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize("mode", list(OnSwitch))
def test_init_prints_the_manifest_with_the_values_of_the_api(mode: OnSwitch) -> None:
    arguments = ["init", "shop", "--on-switch", mode.value, "--dry-run", "client"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    body = yaml.safe_load(result.stdout)
    assert (body["metadata"], body["spec"]) == (
        {"name": "shop", "namespace": "team-a"},
        {"proxy": {"onSwitch": mode.value}},
    )
