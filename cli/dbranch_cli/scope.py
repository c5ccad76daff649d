"""What a verb works on: the cluster, the namespace, the project, and the form of its output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import yaml

from dbranch.api import names
from dbranch_cli.connection import Connection
from dbranch_cli.failure import NOT_FOUND, OTHER, USAGE, Failure
from dbranch_cli.kubeconfig import Login, find_login
from dbranch_cli.objects import Body, Store
from dbranch_cli.settings import current_project, settings_path
from dbranch_cli.words import check_branch

PROJECT_FILE = ".dbranch"


@dataclass
class Scope:
    """The options that every verb takes, and what follows from them. Nothing is asked before it is needed."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace_option: str | None = None
    project_option: str | None = None
    output: str = "table"
    _projects: list[Body] | None = field(default=None, repr=False)

    @cached_property
    def login(self) -> Login:
        return find_login(self.kubeconfig, self.context, self.namespace_option)

    @cached_property
    def store(self) -> Store:
        return Store(Connection(self.login), self.login.namespace)

    @property
    def namespace(self) -> str:
        return self.login.namespace

    @property
    def for_people(self) -> bool:
        return self.output in ("table", "wide")

    @cached_property
    def _named(self) -> tuple[str, str]:
        """The project's name, and what named it."""
        if self.project_option:
            return self.project_option, "--project"
        if os.environ.get("DBRANCH_PROJECT"):
            return os.environ["DBRANCH_PROJECT"], "DBRANCH_PROJECT"
        found = project_file(Path.cwd())
        if found is not None:
            return found
        remembered = current_project(self.login.context, self.namespace)
        if remembered:
            return remembered, str(settings_path())
        here = [body["metadata"]["name"] for body in self.store.projects()]
        if len(here) == 1:
            return here[0], "the only one there"
        if not here:
            raise Failure(
                NOT_FOUND,
                "NoProject",
                f"there is no project in namespace {self.namespace}; make one: dbranch init NAME",
            )
        raise Failure(
            USAGE,
            "WhichProject",
            f"namespace {self.namespace} has the projects {', '.join(here)};"
            " name one with -p, or make it the current one: dbranch set-default NAME",
        )

    @property
    def project_name(self) -> str:
        return self._named[0]

    def project(self) -> Body:
        """The project as it stands in the API server."""
        name, said_by = self._named
        return self.store.project(name, "" if said_by == "--project" else said_by)

    def branch(self, name: str) -> Body:
        """A branch of the project, as it stands in the API server."""
        check_branch(self.project_name, name)
        body = self.store.find_branch(self.project_name, name)
        if body is not None:
            return body
        self.project()
        return self.store.branch(self.project_name, name)

    def say(self, text: str) -> None:
        """A remark for people, on standard error; none where a program reads."""
        if self.for_people:
            click.echo(text, err=True)

    def result(self, text: str, body: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """What the verb was asked for, on standard output: `text` for people, else the objects."""
        click.echo(text if self.for_people else written(body, self.output))

    def confirm(self, question: str, yes: bool) -> None:
        """Goes on only with a yes. Raises Failure where nobody can be asked, also on a no."""
        if yes:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Failure(
                USAGE, "NotConfirmed", f"{question} There is no terminal to ask on; say so with --yes"
            )
        if not click.confirm(question, default=False, err=True):
            raise Failure(OTHER, "NotConfirmed", "nothing was done")


def project_file(directory: Path) -> tuple[str, str] | None:
    """The project that `.dbranch` in this or a parent directory names, and that file.

    The file holds the name alone, or `project: NAME`.
    """
    for place in (directory, *directory.parents):
        path = place / PROJECT_FILE
        if path.is_file():
            try:
                said = yaml.safe_load(path.read_text())
            except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
                raise Failure(USAGE, "InvalidInput", f"cannot read {path}: {error}") from error
            name = said.get("project") if isinstance(said, dict) else said
            if not isinstance(name, str) or not name.strip():
                raise Failure(USAGE, "InvalidInput", f"{path} names no project; write: project: NAME")
            return name.strip(), str(path)
    return None


def written(body: Mapping[str, Any] | Sequence[Mapping[str, Any]], output: str) -> str:
    """An object, or a List of them, as JSON, as YAML or by `kind/name`."""
    if output == "name":
        bodies = [body] if isinstance(body, Mapping) else body
        return "\n".join(f"{b['kind'].lower()}.{names.GROUP}/{b['metadata']['name']}" for b in bodies)
    whole = (
        _without_managed(body)
        if isinstance(body, Mapping)
        else {"apiVersion": "v1", "kind": "List", "items": [_without_managed(b) for b in body]}
    )
    if output == "json":
        return json.dumps(whole, indent=2)
    return str(yaml.safe_dump(whole, sort_keys=False)).rstrip()


def _without_managed(body: Mapping[str, Any]) -> dict[str, Any]:
    """As kubectl prints objects: without managedFields."""
    meta = {key: value for key, value in (body.get("metadata") or {}).items() if key != "managedFields"}
    return {**body, "metadata": meta}
