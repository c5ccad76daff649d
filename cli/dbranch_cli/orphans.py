"""The commands on data that no object names, for administrators: orphan list, orphan delete, orphan allow.

The agents publish it on their own pods, and are asked there: who may patch pods in the nodes' namespace may do this.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.api.orphans import Orphan, OrphanKind, parse_published
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_table
from dbranch_cli.invocation import Invocation, format_objects
from dbranch_cli.options import (
    Command,
    CommandGroup,
    no_wait_option,
    nodes_namespace_option,
    timeout_option,
    yes_option,
)
from dbranch_cli.waiting import interrupted

if TYPE_CHECKING:
    from dbranch_cli.connection import Connection

_AGENTS: Final = f"{names.LABEL_NAME}=dbranch,{names.LABEL_COMPONENT}={names.COMPONENT_AGENT}"
_MERGE: Final = "application/merge-patch+json"
_POLL_SECONDS: Final = 0.5
_KIND: Final = "Orphan"


@dataclass(frozen=True)
class LocatedOrphan:
    """An orphan, the node that holds it, and the agent's pod there."""

    orphan: Orphan
    node: str
    pod: str

    def as_body(self) -> dict[str, Any]:
        """Return it as `-o json` prints it: no object of the API server, but in the form of one."""
        orphan = self.orphan
        return {
            "apiVersion": names.API_VERSION,
            "kind": _KIND,
            "metadata": {"name": orphan.uid},
            "kindOfData": orphan.kind.value,
            "pool": orphan.pool,
            "namespace": orphan.namespace,
            "project": orphan.project,
            "branch": orphan.branch,
            "size": orphan.size,
            "node": self.node,
            "why": orphan.why,
        }


class Agents:
    """The agents' pods in the nodes' namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._path = f"/api/v1/namespaces/{namespace}/pods"

    def find(self) -> list[LocatedOrphan]:
        """Return the orphans of all nodes, in the order of kind, namespace, project, branch."""
        pods = self._connection.get(self._path, labelSelector=_AGENTS)["items"]
        located = [
            LocatedOrphan(orphan, str((pod.get("spec") or {}).get("nodeName", "")), pod["metadata"]["name"])
            for pod in pods
            if not pod["metadata"].get("deletionTimestamp")
            for orphan in parse_published(_annotations(pod).get(names.AGENT_ORPHANS)).orphans
        ]
        return sorted(
            located,
            key=lambda f: (
                f.orphan.kind is OrphanKind.BRANCH,
                f.orphan.namespace,
                f.orphan.project,
                f.orphan.uid,
            ),
        )

    def get(self, uid: str) -> LocatedOrphan:
        """Return the orphan with this UID. Raise Failure if there is none."""
        located = next((located for located in self.find() if located.orphan.uid == uid), None)
        if located is None:
            raise Failure(
                ExitCode.NOT_FOUND, "NotFound", f"no agent reports an orphan {uid}; see 'dbranch orphan list'"
            )
        return located

    def ask(self, located: LocatedOrphan, prefix: str, value: str) -> None:
        """Write a request on the pod of the agent that holds the orphan."""
        body = {"metadata": {"annotations": {f"{prefix}{located.orphan.uid}": value}}}
        params = {"fieldManager": names.CLI_MANAGER}
        self._connection.request("PATCH", f"{self._path}/{located.pod}", params, body, _MERGE)

    def wait_served(self, located: LocatedOrphan, prefix: str, timeout: float) -> None:
        """Wait until the agent has removed the request. Raise Failure if it refused it, or after the timeout."""
        uid, deadline = located.orphan.uid, time.monotonic() + timeout
        while True:
            try:
                annotations = _annotations(self._connection.get(f"{self._path}/{located.pod}"))
            except ApiError as error:
                if error.status != 404:
                    raise
                text = (
                    f"the agent's pod {located.pod} is gone; see 'dbranch orphan list' for what it has served"
                )
                raise Failure(ExitCode.OTHER, "AgentGone", text) from error
            if f"{prefix}{uid}" not in annotations:
                refused = parse_published(annotations.get(names.AGENT_ORPHANS)).refused.get(uid)
                if refused:
                    raise Failure(ExitCode.REFUSED, "Refused", refused)
                return
            if time.monotonic() >= deadline:
                text = (
                    f"the agent of node {located.node} has not served the request about {uid} yet; "
                    "it will when it can; see 'dbranch orphan list'"
                )
                raise Failure(ExitCode.TIMED_OUT, "TimedOut", text)
            try:
                time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:
                text = f"waiting until the agent of node {located.node} has served it; the request stays"
                raise interrupted(text) from None


def _annotations(pod: Mapping[str, Any]) -> Mapping[str, str]:
    return pod["metadata"].get("annotations") or {}


def orphan_table(located: Sequence[LocatedOrphan], wide: bool) -> str:
    """Return a line for each orphan; `wide` adds the pool."""
    header = [
        "KIND",
        "UID",
        "NAMESPACE",
        "PROJECT",
        "BRANCH",
        "SIZE",
        "NODE",
        *(["POOL"] if wide else []),
        "WHY",
    ]
    rows = [
        [
            f.orphan.kind.value,
            f.orphan.uid,
            f.orphan.namespace or "-",
            f.orphan.project or "-",
            f.orphan.branch or "-",
            f.orphan.size or "-",
            f.node,
            *([f.orphan.pool] if wide else []),
            f.orphan.why,
        ]
        for f in located
    ]
    return format_table(header, rows)


@click.group(cls=CommandGroup)
def orphan() -> None:
    """List, delete or give away data that no object names. For administrators."""


@orphan.command("list", cls=Command)
@nodes_namespace_option()
@click.pass_obj
def list_orphans(invocation: Invocation, nodes_namespace: str) -> None:
    """List the data on the nodes that no object names. It is kept until it is deleted."""
    located = Agents(invocation.store.connection, nodes_namespace).find()
    if not located and invocation.human_output:
        invocation.print_note("no orphans: every pool and branch on the nodes has its object")
        return
    if invocation.output == "name":
        click.echo("\n".join(f.orphan.uid for f in located))
        return
    bodies = [f.as_body() for f in located]
    table = orphan_table(located, invocation.output == "wide")
    click.echo(table if invocation.human_output else format_objects(bodies, invocation.output))


@orphan.command("delete", cls=Command)
@click.argument("uid")
@nodes_namespace_option()
@yes_option()
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def delete_orphan(
    invocation: Invocation, uid: str, nodes_namespace: str, yes: bool, no_wait: bool, timeout: float
) -> None:
    """Delete an orphan and its data, by its UID."""
    agents = Agents(invocation.store.connection, nodes_namespace)
    located = agents.get(uid)
    text = f"{_description(located)} ({located.orphan.size or 'size unknown'}, {located.orphan.why})"
    whole = " with all its branches" if located.orphan.kind.is_pool else ""
    invocation.confirm(f"Delete {text}{whole} and all data?", yes)
    agents.ask(located, names.ORPHAN_DELETE_PREFIX, "")
    if not no_wait:
        agents.wait_served(located, names.ORPHAN_DELETE_PREFIX, timeout)
    invocation.print_result(
        f"{_description(located)} {'is being deleted' if no_wait else 'deleted'}", located.as_body()
    )


@orphan.command("allow", cls=Command)
@click.argument("uid")
@click.argument("to_namespace", metavar="NAMESPACE")
@nodes_namespace_option()
@timeout_option("2m")
@click.pass_obj
def allow(invocation: Invocation, uid: str, to_namespace: str, nodes_namespace: str, timeout: float) -> None:
    """Let a namespace adopt a pool. The projects of NAMESPACE, and no others, can then adopt it by its UID."""
    agents = Agents(invocation.store.connection, nodes_namespace)
    located = agents.get(uid)
    agents.ask(located, names.ORPHAN_ALLOW_PREFIX, to_namespace)
    agents.wait_served(located, names.ORPHAN_ALLOW_PREFIX, timeout)
    hint = f"dbranch init NAME -n {to_namespace} --adopt {uid}"
    invocation.print_result(
        f"{_description(located)} can be adopted by namespace {to_namespace}: {hint}", located.as_body()
    )


def _description(located: LocatedOrphan) -> str:
    orphan = located.orphan
    name = "/".join(filter(None, (orphan.namespace, orphan.project, orphan.branch)))
    return f"{orphan.kind} {orphan.uid}{f' of {name}' if name else ''} on node {located.node}"
