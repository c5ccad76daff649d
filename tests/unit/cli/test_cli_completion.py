"""Completion of commands, branches and projects, by real shells from a real process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem
from tests.entry_points import write_entry_points
from tests.fakes.api import FakeApi
from tests.fakes.http import serve_api
from tests.terminal import Terminal
from tests.unit.cli.example import TEAM, put_example

from dbranch_cli.completion import cobra_lines

ROOT = Path(__file__).parents[3]
# It only ends a test that hangs.
TIMEOUT_SECONDS = 120.0


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Serve the example cluster; return the environment of a shell that has `dbranch` on its PATH."""
    directory = tmp_path_factory.mktemp("completion")
    api = FakeApi()
    put_example(api)
    server = serve_api(api, directory / "kubeconfig")
    programs = directory / "bin"
    write_entry_points(programs)
    yield {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'cli'}",
        "KUBECONFIG": str(directory / "kubeconfig"),
        "DBRANCH_CONFIG": str(directory / "config.yaml"),
        "HOME": str(directory),
        "TERM": "dumb",
    }
    server.shutdown()
    server.server_close()


def run(environment: dict[str, str], *command: str) -> str:
    completed = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        cwd="/",
    )
    assert completed.returncode == 0 and not completed.stderr, completed
    return completed.stdout


LINES = [
    (["delete", "f"], ["feature-x"]),
    (["use", ""], ["main", "feature-x", "pr-118"]),
    (["create", "new", "-s", "pr"], ["pr-118"]),
    (["dump", "m"], ["main"]),
    (["-p", "shop", "show", "fea"], ["feature-x"]),
    (["show", "-p", "s"], ["shop"]),
    (["project", "delete", ""], ["shop"]),
    (["set-default", "sh"], ["shop"]),
    (["projec"], ["project"]),
    (["create", "x", "--if-exists", "re"], ["reuse", "replace"]),
]


def offered_by(output: str) -> list[list[str]]:
    """Return what a shell offered for each of LINES: values, one a line, without descriptions; `=` ends a line's."""
    groups = output.split("=\n")[:-1]
    return [[line.partition("\t")[0] for line in group.splitlines()] for group in groups]


def test_bash(environment: dict[str, str]) -> None:
    script = (
        'eval "$(dbranch completion bash)"; for line; do read -ra words <<< "$line"; COMPREPLY=();'
        ' COMP_WORDS=(dbranch "${words[@]}"); [[ $line != *" " ]] || COMP_WORDS+=("");'
        " COMP_CWORD=$((${#COMP_WORDS[@]} - 1));"
        ' _dbranch_completion dbranch; printf "%s\\n" "${COMPREPLY[@]}" =; done'
    )
    lines = [" ".join(["-n", TEAM, *words]) for words, _ in LINES]
    offered = offered_by(run(environment, "bash", "--norc", "-c", script, "bash", *lines))
    assert offered == [expected for _, expected in LINES]


def test_fish(environment: dict[str, str]) -> None:
    script = "dbranch completion fish | source; for line in $argv; complete -C $line; echo =; end"
    lines = [" ".join(["dbranch", "-n", TEAM, *words]) for words, _ in LINES]
    offered = offered_by(run(environment, "fish", "--no-config", "-c", script, *lines))
    assert [sorted(values) for values in offered] == [sorted(expected) for _, expected in LINES]


def test_kubectl(environment: dict[str, str]) -> None:
    for words, expected in LINES:
        lines = run(environment, "kubectl_complete-dbranch", "-n", TEAM, *words).splitlines()
        assert [line.partition("\t")[0] for line in lines[:-1]] == expected and lines[-1] == ":4"


def test_kubectl_learns_where_files_are_meant(environment: dict[str, str]) -> None:
    assert run(environment, "kubectl_complete-dbranch", "dump", "main", "sh").split() == [":0"]
    assert cobra_lines([CompletionItem("x", type="dir")]) == [":16"]
    assert cobra_lines([CompletionItem("x", help="first\nsecond")]) == ["x\tfirst", ":4"]


def test_a_cluster_that_does_not_answer_offers_nothing_and_says_nothing(environment: dict[str, str]) -> None:
    nowhere = {**environment, "KUBECONFIG": "/does/not/exist"}
    assert run(nowhere, "kubectl_complete-dbranch", "use", "").split() == [":4"]


def test_zsh_completes_what_is_typed(environment: dict[str, str]) -> None:
    """Type into an interactive zsh: what is unique is completed in the line that it then runs."""
    assert shutil.which("zsh"), "zsh is missing: apt-get install zsh"
    with Terminal(["zsh", "-f", "-i"], {**environment, "TERM": "vt100", "PS1": "ready> "}) as zsh:
        zsh.expect("ready> ")
        zsh.type(
            'autoload -Uz compinit && compinit -u -D; eval "$(dbranch completion zsh)"; print set-""up\n'
        )
        zsh.expect("set-up")
        zsh.type(f"dbranch -n {TEAM} show f\t")
        zsh.expect("show feature-x")
        zsh.type("-p s\t")
        zsh.expect("-p shop")
        zsh.type("\n")
        zsh.expect("Branch    feature-x (active)")
