"""One invocation of the command line: the cluster, namespace and project it acts on, and its output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dbranch.api import names
from dbranch_cli.config import config_path, current_project
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import escape_controls
from dbranch_cli.naming import check_branch_name
from dbranch_cli.objects import Body, Store

if TYPE_CHECKING:
    from dbranch_cli.kubeconfig import KubeContext

# What reads YAML or speaks with a server is imported where it is used: --help and completion need neither, and they
# are to answer at once.
PROJECT_FILE = ".dbranch"


@dataclass
class Invocation:
    """The common options, and what they select. Nothing is read or requested before it is needed."""

    kubeconfig_option: str | None = None
    context_option: str | None = None
    namespace_option: str | None = None
    project_option: str | None = None
    output: str = "table"

    @cached_property
    def kube_context(self) -> KubeContext:
        from dbranch_cli.kubeconfig import load_kube_context

        return load_kube_context(self.kubeconfig_option, self.context_option, self.namespace_option)

    @cached_property
    def store(self) -> Store:
        from dbranch_cli.connection import Connection

        return Store(Connection(self.kube_context), self.kube_context.namespace)

    @property
    def namespace(self) -> str:
        return self.kube_context.namespace

    @property
    def human_output(self) -> bool:
        """True if the output is for people, not for a program."""
        return self.output in ("table", "wide")

    @cached_property
    def _project_selection(self) -> tuple[str, str]:
        """The project's name, and the setting that named it."""
        if self.project_option:
            return self.project_option, "--project"
        if os.environ.get("DBRANCH_PROJECT"):
            return os.environ["DBRANCH_PROJECT"], "DBRANCH_PROJECT"
        from_file = find_project_file(Path.cwd())
        if from_file is not None:
            return from_file
        current = current_project(self.kube_context.name, self.namespace)
        if current:
            return current, str(config_path())
        existing = [body["metadata"]["name"] for body in self.store.projects()]
        if len(existing) == 1:
            return existing[0], "the namespace's only project"
        if not existing:
            raise Failure(
                ExitCode.NOT_FOUND,
                "NoProject",
                f"no project in namespace {self.namespace}; create one with 'dbranch init NAME'",
            )
        raise Failure(
            ExitCode.USAGE,
            "WhichProject",
            f"namespace {self.namespace} has several projects: {', '.join(existing)};"
            " choose one with -p, or set the current one with 'dbranch set-default NAME'",
        )

    @property
    def project_name(self) -> str:
        return self._project_selection[0]

    @property
    def project_named_by(self) -> str:
        """What named the project: an option, a variable, a file, or that it is the only one."""
        return self._project_selection[1]

    def project(self) -> Body:
        """Get the selected project. Raise Failure if it does not exist."""
        name, set_by = self._project_selection
        return self.store.project(name, "" if set_by == "--project" else set_by)

    def branch(self, name: str) -> Body:
        """Get a branch of the selected project. Raise Failure if it does not exist."""
        check_branch_name(self.project_name, name)
        body = self.store.find_branch(self.project_name, name)
        if body is not None:
            return body
        self.project()
        return self.store.branch(self.project_name, name)

    def print_note(self, text: str) -> None:
        """Print a line to standard error if the output is for people."""
        if self.human_output:
            click.echo(escape_controls(text), err=True)

    def print_result(self, text: str, body: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Print the command's result to standard output: `text` for people, else the objects."""
        click.echo(text if self.human_output else format_objects(body, self.output))

    def confirm(self, question: str, yes: bool) -> None:
        """Ask for confirmation unless `yes`. Raise Failure on a no, and if there is no terminal to ask on."""
        if yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Failure(
                ExitCode.USAGE,
                "NotConfirmed",
                f"{question} Cannot ask without a terminal; confirm with --yes",
            )
        if not click.confirm(question, default=False, err=True):
            raise Failure(ExitCode.OTHER, "NotConfirmed", "canceled; nothing was changed")


def find_project_file(directory: Path) -> tuple[str, str] | None:
    """Return the project's name from `.dbranch` in this or the nearest parent directory, and the file's path.

    The file holds the bare name, or `project: NAME`.
    """
    import yaml

    for parent in (directory, *directory.parents):
        path = parent / PROJECT_FILE
        if path.is_file():
            try:
                content = yaml.safe_load(path.read_text())
            except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
                raise Failure(ExitCode.USAGE, "InvalidInput", f"cannot read {path}: {error}") from error
            name = content.get("project") if isinstance(content, dict) else content
            if not isinstance(name, str) or not name.strip():
                message = f"{path} does not name a project; write: project: NAME"
                raise Failure(ExitCode.USAGE, "InvalidInput", message)
            return name.strip(), str(path)
    return None


def format_objects(body: Mapping[str, Any] | Sequence[Mapping[str, Any]], output: str) -> str:
    """Return an object, or a List of objects, as `json`, `yaml`, or `name` (`kind.group/name`)."""
    if output == "name":
        bodies = [body] if isinstance(body, Mapping) else body
        return "\n".join(f"{b['kind'].lower()}.{names.GROUP}/{b['metadata']['name']}" for b in bodies)
    printed = (
        _without_managed_fields(body)
        if isinstance(body, Mapping)
        else {"apiVersion": "v1", "kind": "List", "items": [_without_managed_fields(b) for b in body]}
    )
    if output == "json":
        return json.dumps(printed, indent=2)
    import yaml

    return str(yaml.safe_dump(printed, sort_keys=False)).rstrip()


def _without_managed_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object without managedFields, as kubectl prints it."""
    meta = {key: value for key, value in (body.get("metadata") or {}).items() if key != "managedFields"}
    return {**body, "metadata": meta}
