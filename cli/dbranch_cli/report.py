"""`dbranch report`: an archive for a bug report, without passwords, tokens and connection strings."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from dbranch.api.quantity import format_bytes
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.files import replace_file
from dbranch_cli.formatting import format_count, format_table
from dbranch_cli.invocation import Invocation
from dbranch_cli.options import Command, nodes_namespace_option
from dbranch_cli.report_facts import as_yaml

_INTRODUCTION: Final = """A report of dbranch, made with `dbranch report` at {time}.

In it are names (of namespaces, projects, branches, nodes, images, hosts), versions, sizes, states, messages, and logs
of dbranch's own parts. Not in it: Secrets, logs of Postgres, data of any branch, environments of containers.
Passwords, tokens, keys, users in URIs, values of parameters with a "." in their name and annotations of other tools
were replaced by <redacted>. Look into it before you send it on.
"""


@click.command(cls=Command)
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("-A", "--all-namespaces", is_flag=True, help="Objects and Events of all namespaces.")
@click.option(
    "--lines",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    metavar="NUMBER",
    help="Last lines of each log.",
)
@nodes_namespace_option()
@click.pass_obj
def report(
    invocation: Invocation, file: str | None, all_namespaces: bool, lines: int, nodes_namespace: str
) -> None:
    """Write an archive for a bug report, without secrets.

    In it are versions, what doctor finds, the projects and branches, their Events, the nodes, the pods of dbranch and
    the last lines of their logs. What you may not read is left out, and said. The default FILE is
    dbranch-report-<time>.tar.gz in this directory.
    """
    now = datetime.now(UTC)
    path = Path(file or f"dbranch-report-{now:%Y%m%d-%H%M%S}.tar.gz")
    from dbranch_cli.report_collection import Collector

    collection = Collector(invocation, all_namespaces, lines, nodes_namespace).collect()
    about = _INTRODUCTION.format(time=f"{now:%Y-%m-%dT%H:%M:%SZ}")
    about += "".join(f"\nLeft out: {sentence}" for sentence in collection.left_out)
    files = {"about.txt": about.rstrip() + "\n", **collection.files}
    archive = _pack(files, path.name.partition(".")[0], now)
    try:
        replace_file(path, archive)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise Failure(ExitCode.OTHER, "CannotWrite", message) from error
    if not invocation.human_output:
        result = {"file": str(path), "contents": list(files), "leftOut": collection.left_out}
        printed = {"json": json.dumps(result, indent=2), "name": str(path)}
        click.echo(printed.get(invocation.output) or as_yaml(result).rstrip())
        return
    click.echo(format_table(["FILE", "SIZE"], [[n, format_bytes(len(t.encode()))] for n, t in files.items()]))
    for sentence in collection.left_out:
        invocation.print_note(f"left out: {sentence}")
    click.echo(f"{path} written: {format_count(len(files), 'file')}")
    invocation.print_note("look into it before you send it on: names and messages are in it")


def _pack(files: Mapping[str, str], directory: str, now: datetime) -> bytes:
    """Return a tar.gz of texts below a directory."""
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            data = text.encode()
            member = tarfile.TarInfo(f"{directory}/{name}")
            member.size, member.mtime, member.mode = len(data), int(now.timestamp()), 0o644
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()
