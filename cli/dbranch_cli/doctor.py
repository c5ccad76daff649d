"""`dbranch doctor`: look at everything that dbranch consists of, and say what is wrong and what to do."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.api.orphans import parse_published
from dbranch_cli import diagnosis
from dbranch_cli.colors import colorize
from dbranch_cli.diagnosis import Finding, Severity
from dbranch_cli.failure import ExitCode
from dbranch_cli.formatting import escape_controls, format_count
from dbranch_cli.invocation import Invocation
from dbranch_cli.objects import Body
from dbranch_cli.options import Command

if TYPE_CHECKING:
    from dbranch_cli.connection import Connection

_COLORS: Final = {
    Severity.OK: "green",
    Severity.UNKNOWN: "yellow",
    Severity.WARNING: "yellow",
    Severity.ERROR: "red",
}
_INDENT: Final = " " * 9
_EVERYWHERE: Final = f"{names.LABEL_NAME}=dbranch,{names.LABEL_COMPONENT}="
_OPENAPI: Final = f"/openapi/v3/apis/{names.API_VERSION}"
_KINDS: Final = {
    names.PROJECTS: names.PROJECT_KIND,
    names.BRANCHES: names.BRANCH_KIND,
    names.SNAPSHOTS: names.SNAPSHOT_KIND,
    names.RESTORES: names.RESTORE_KIND,
}
# A cluster of an earlier release has no CRD of them.
_LATER_KINDS: Final = (names.SNAPSHOT_KIND, names.RESTORE_KIND)
_POLICIES: Final = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"


@click.command(cls=Command)
@click.option("-A", "--all-namespaces", is_flag=True, help="Look at the objects of all namespaces.")
@click.pass_context
def doctor(context: click.Context, all_namespaces: bool) -> None:
    """Look for what is wrong, and say what to do about it.

    Looks at versions, CRDs, controller, agents, policies, orphans, and at the projects, branches, snapshots
    and restores of the namespace. What you may not read is said, and is no error.

    The exit code is 0 if nothing is wrong, 7 if something needs somebody, 1 if something may heal by itself.
    """
    invocation: Invocation = context.obj
    findings = examine(invocation, all_namespaces)
    _print(invocation, findings)
    worst = max(finding.severity for finding in findings)
    context.exit({Severity.ERROR: ExitCode.STALLED, Severity.WARNING: ExitCode.OTHER}.get(worst, 0))


def examine(invocation: Invocation, all_namespaces: bool) -> list[Finding]:
    """Return what doctor finds. Raises ApiError if dbranch is not installed, ClusterUnreachable."""
    return list(_Examination(invocation, all_namespaces).findings())


class _Examination:
    """The requests of one run, and the findings from their answers."""

    def __init__(self, invocation: Invocation, all_namespaces: bool) -> None:
        self._connection: Connection = invocation.store.connection
        self._scope = "" if all_namespaces else f"/namespaces/{invocation.namespace}"

    def findings(self) -> Iterable[Finding]:
        """Yield what is bodies. Raises ApiError if dbranch is not installed, ClusterUnreachable."""
        connection = self._connection
        yield diagnosis.diagnose_server(connection.get("/version"), connection.server)
        bodies = self._objects()
        yield from self._judged(
            "CRDs", "", lambda: [diagnosis.diagnose_schema(connection.get(_OPENAPI), client_version())]
        )
        deployments: list[Body] = []

        def controller() -> Iterable[Finding]:
            deployments.extend(self._labelled("/apis/apps/v1/deployments", "controller"))
            return [diagnosis.diagnose_controller(deployments)]

        def agents() -> Iterable[Finding]:
            sets = self._labelled("/apis/apps/v1/daemonsets", names.COMPONENT_AGENT)
            pods = self._labelled("/api/v1/pods", names.COMPONENT_AGENT)
            published = [(pod["metadata"].get("annotations") or {}).get(names.AGENT_ORPHANS) for pod in pods]
            orphans = [orphan for text in published for orphan in parse_published(text).orphans]
            return [
                *diagnosis.diagnose_agents(sets, pods, deployments),
                *diagnosis.diagnose_orphans(orphans),
            ]

        def policies() -> Iterable[Finding]:
            label = {"labelSelector": f"{names.LABEL_NAME}=dbranch"}
            existing = connection.get(_POLICIES, **label)["items"]
            bindings = connection.get(_POLICIES.removesuffix("ies") + "ybindings")["items"]
            return [diagnosis.diagnose_policies(existing, bindings)]

        yield from self._judged("controller", "list deployments in all namespaces", controller)
        yield from self._judged("agents", "list daemonsets and pods in all namespaces", agents)
        yield from self._judged("policies", "list validatingadmissionpolicies and their bindings", policies)
        wrong = list(diagnosis.diagnose_objects(bodies, datetime.now(UTC)))
        yield from wrong
        if not wrong:
            kinds = Counter(body["kind"] for body in bodies)
            counts = [
                format_count(kinds[names.PROJECT_KIND], "project"),
                format_count(kinds[names.BRANCH_KIND], "branch"),
            ]
            for kind, noun in ((names.SNAPSHOT_KIND, "snapshot"), (names.RESTORE_KIND, "restore")):
                if kinds[kind]:
                    counts.append(format_count(kinds[kind], noun))
            yield Finding(Severity.OK, "objects", f"{', '.join(counts)}: nothing to report")

    def _objects(self) -> list[Body]:
        """Return the DBProjects, DBBranches, DBSnapshots and DBRestores (of the latter none without their CRD)."""
        bodies: list[Body] = []
        for plural, kind in _KINDS.items():
            try:
                listed = self._connection.get(f"/apis/{names.API_VERSION}{self._scope}/{plural}")
            except ApiError as error:
                if error.status != 404 or kind not in _LATER_KINDS:
                    raise
                continue
            bodies += [{"kind": kind, **item} for item in listed["items"]]
        return bodies

    def _labelled(self, path: str, component: str) -> list[Body]:
        items: list[Body] = self._connection.get(path, labelSelector=_EVERYWHERE + component)["items"]
        return items

    def _judged(self, check: str, right: str, judge: Callable[[], Iterable[Finding]]) -> Iterable[Finding]:
        """Return the findings of a check, or that this user may not look."""
        try:
            return list(judge())
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            why = f"not looked at: you may not {right}" if error.status == 403 else f"not looked at: {error}"
            return [Finding(Severity.UNKNOWN, check, why)]


def client_version() -> str:
    """Return the version of this command line."""
    from importlib import metadata

    try:
        return metadata.version("dbranch")
    except metadata.PackageNotFoundError:
        return "from source"


def _print(invocation: Invocation, findings: list[Finding]) -> None:
    if invocation.output in ("json", "yaml"):
        import yaml

        body: dict[str, Any] = {"findings": [finding.as_dict() for finding in findings]}
        click.echo(
            json.dumps(body, indent=2)
            if invocation.output == "json"
            else yaml.safe_dump(body, sort_keys=False).rstrip()
        )
        return
    if invocation.output == "name":
        click.echo("\n".join(dict.fromkeys(f.check for f in findings if f.severity > Severity.UNKNOWN)))
        return
    for line in finding_lines(findings, lambda word, severity: colorize(word, _COLORS[severity], sys.stdout)):
        click.echo(line)


def finding_lines(
    findings: Iterable[Finding], paint: Callable[[str, Severity], str] = lambda word, _: word
) -> Iterator[str]:
    """Yield the lines of findings as people read them; `paint` colors the severity."""
    for finding in findings:
        word = paint(f"{finding.severity.name.lower():<9}", finding.severity)
        yield f"{word}{finding.check}: {escape_controls(finding.message)}"
        if finding.remedy:
            yield f"{_INDENT}{finding.remedy}"
