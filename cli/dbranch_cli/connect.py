"""The commands that connect: start, psql, url."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

import click

from dbranch.api import names
from dbranch_cli.connection_strings import as_external, as_superuser, format_connection
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_table
from dbranch_cli.invocation import Invocation
from dbranch_cli.objects import active_branch_of, branch_name_of
from dbranch_cli.options import (
    BranchName,
    Command,
    nodes_namespace_option,
    passthrough_arguments,
    superuser_option,
)

if TYPE_CHECKING:
    from dbranch_cli.forward import PodPort

# Variables of libpq (https://www.postgresql.org/docs/current/libpq-envars.html) that choose a server, and say how it
# and the client prove who they are: those of production would lead there, or make the connection to localhost fail.
# Those that say how the session is to be (PGOPTIONS, PGAPPNAME, PGCLIENTENCODING, …) stay.
_OTHER_SERVERS_VARIABLES: Final = frozenset(
    {
        "PGCHANNELBINDING",
        "PGGSSDELEGATION",
        "PGGSSENCMODE",
        "PGGSSLIB",
        "PGHOSTADDR",
        "PGKRBSRVNAME",
        "PGLOADBALANCEHOSTS",
        "PGPASSFILE",
        "PGREQUIREAUTH",
        "PGREQUIREPEER",
        "PGREQUIRESSL",
        "PGSERVICE",
        "PGSERVICEFILE",
        "PGSSLCERT",
        "PGSSLCERTMODE",
        "PGSSLCOMPRESSION",
        "PGSSLCRL",
        "PGSSLCRLDIR",
        "PGSSLKEY",
        "PGSSLMAXPROTOCOLVERSION",
        "PGSSLMINPROTOCOLVERSION",
        "PGSSLMODE",
        "PGSSLNEGOTIATION",
        "PGSSLROOTCERT",
        "PGSSLSNI",
        "PGTARGETSESSIONATTRS",
    }
)


@click.command(cls=Command)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=names.POSTGRES_PORT,
    show_default=True,
    help="Local port of the active branch; 0: any free one.",
)
@click.option(
    "--branches", is_flag=True, help="Also forward a port to each branch, on the ports after --port."
)
@nodes_namespace_option()
@click.pass_obj
def start(invocation: Invocation, port: int, branches: bool, nodes_namespace: str) -> None:
    """Forward a local port to the active branch. It follows each switch, until interrupted."""
    from dbranch_cli.forward import PortForward, ready_proxy_pod, require_permission

    project = invocation.project()
    connection, name = invocation.store.connection, invocation.project_name
    require_permission(connection, invocation.namespace)
    if branches:
        require_permission(connection, nodes_namespace)
    ready_proxy_pod(connection, project)
    forward = PortForward(
        connection, lambda: ready_proxy_pod(connection, project), port, invocation.print_note
    )
    rows = [[f"localhost:{forward.port}", f"the active branch, now {active_branch_of(project)}"]]
    if branches:
        for offset, body in enumerate(invocation.store.branches(name), 1):
            branch = branch_name_of(body)
            branch_forward = PortForward(
                connection,
                _branch_pod_resolver(invocation, branch, nodes_namespace),
                forward.port + offset,
                invocation.print_note,
            )
            rows.append([f"localhost:{branch_forward.port}", branch])
    click.echo(format_table(["PORT", "BRANCH"], rows))
    invocation.print_note("for user, password and database run 'dbranch url --format env'; press ^C to stop")
    threading.Event().wait()


def _branch_pod_resolver(invocation: Invocation, branch: str, nodes_namespace: str) -> Callable[[], PodPort]:
    """Return a function that looks up a branch's Postgres pod, which may change between two connections."""

    from dbranch_cli.forward import PodPort

    def find_pod() -> PodPort:
        node = (invocation.branch(branch).get("status") or {}).get("node") or {}
        if not node.get("pod") or not node.get("port"):
            message = f"branch {branch} has no pod; see 'dbranch show {branch}'"
            raise Failure(ExitCode.OTHER, "BranchNotReady", message)
        return PodPort(nodes_namespace, str(node["pod"]), int(node["port"]))

    return find_pod


@click.command(
    cls=Command,
    passthrough=True,
    options_metavar="[OPTIONS]",
    epilog="Arguments after -- are passed to psql.",
)
@click.argument("branch", type=BranchName(), required=False)
@superuser_option()
@click.pass_context
def psql(context: click.Context, branch: str | None, superuser: bool) -> None:
    """Run psql on a branch (default: the active one). Exits with psql's exit code."""
    invocation: Invocation = context.obj
    arguments = list(passthrough_arguments(context))
    context.exit(run_client(invocation, "psql", arguments, branch, superuser=superuser))


def run_client(
    invocation: Invocation,
    program: str,
    arguments: Sequence[str],
    branch: str | None,
    stdin: IO[bytes] | Iterator[bytes] | None = None,
    quiet: bool = False,
    superuser: bool = False,
    stdout: IO[bytes] | int | None = None,
) -> int:
    """Run a Postgres client through its own port-forward; return its exit code (128 + n for signal n).

    `stdin` is this process's (None), a file, or chunks of bytes. `quiet` discards its standard output; `stdout` is
    where it goes instead. A client that writes there and is interrupted raises KeyboardInterrupt.
    """
    from dbranch_cli.forward import PortForward, ready_proxy_pod, require_permission

    require_client(program)
    if branch:
        invocation.branch(branch)
    project = invocation.project()
    connection, name = invocation.store.connection, project["metadata"]["name"]
    secret = invocation.store.superuser_secret(name) if superuser else invocation.store.secret(name)
    require_permission(connection, invocation.namespace)
    ready_proxy_pod(connection, project)
    ignored = sorted(_OTHER_SERVERS_VARIABLES & os.environ.keys())
    if ignored:
        invocation.print_note(f"ignored, since they are for another server: {', '.join(ignored)}")
    forward = PortForward(connection, lambda: ready_proxy_pod(connection, project), 0)
    chunks = stdin if isinstance(stdin, Iterator) and not hasattr(stdin, "fileno") else None
    try:
        with _ignore_interrupts() as interrupts:
            client = subprocess.Popen(
                [program, *arguments],
                env=client_environment(os.environ, secret, forward.port, branch),
                stdin=subprocess.PIPE if chunks is not None else stdin,  # type: ignore[arg-type]
                stdout=subprocess.DEVNULL if quiet else stdout,
            )
            try:
                if chunks is not None:
                    write_stdin(client, chunks)
                code = client.wait()
            except BaseException:
                client.terminate()
                client.wait()
                raise
    finally:
        forward.close()
    if code and forward.failure:
        raise forward.failure
    if code and interrupts and stdout is not None:
        raise KeyboardInterrupt
    return 128 - code if code < 0 else code


def require_client(program: str) -> None:
    """Raise Failure if the program is not installed."""
    if shutil.which(program) is None:
        raise Failure(
            ExitCode.OTHER,
            "ClientNotInstalled",
            f"{program} is not installed here; install it: apt-get install postgresql-client (Debian, Ubuntu),"
            " dnf install postgresql (Fedora), brew install libpq (macOS)",
        )


def client_environment(
    base: Mapping[str, str], secret: Mapping[str, str], port: int, branch: str | None
) -> dict[str, str]:
    """Return libpq's variables for a local port; the proxy routes to `branch` by the startup option.

    Those of `base` that choose another server or say how it is trusted are left out.
    """
    env = {key: value for key, value in base.items() if key not in _OTHER_SERVERS_VARIABLES}
    env |= {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(port),
        "PGUSER": secret["username"],
        "PGPASSWORD": secret["password"],
        "PGDATABASE": secret["database"],
    }
    if branch:
        env["PGOPTIONS"] = f"{base.get('PGOPTIONS', '')} -c dbranch.branch={branch}".strip()
    return env


@contextmanager
def _ignore_interrupts() -> Iterator[list[int]]:
    """Leave ^C to psql, which cancels its query, and yield the list of them.

    A handler, unlike SIG_IGN, is not inherited by psql.
    """
    interrupts: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)


def write_stdin(client: subprocess.Popen[bytes], chunks: Iterator[bytes]) -> None:
    """Write chunks to the client's standard input; the client may exit before it has read them all."""
    assert client.stdin is not None
    try:
        for chunk in chunks:
            client.stdin.write(chunk)
        client.stdin.close()
    except BrokenPipeError:
        pass
    except BaseException:
        client.kill()
        raise


@click.command(cls=Command)
@click.argument("branch", type=BranchName(), required=False)
@click.option(
    "--format",
    "url_format",
    type=click.Choice(["uri", "env", "jdbc", "json"]),
    help="Format; `env` is for a shell's eval. Default: uri, with -o json: json.",
)
@click.option(
    "--external",
    is_flag=True,
    help="For use outside of the cluster, by spec.proxy.externalHost of the project.",
)
@superuser_option()
@click.pass_obj
def url(
    invocation: Invocation, branch: str | None, url_format: str | None, external: bool, superuser: bool
) -> None:
    """Print a connection string. It is the project's, or a branch's own, for use within the cluster."""
    if invocation.output in ("yaml", "name") and url_format is None:
        message = f"url does not support -o {invocation.output}; use --format"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)
    body = invocation.branch(branch) if branch else invocation.project()
    secret = invocation.store.secret(body["metadata"]["name"])
    if superuser:
        secret = as_superuser(secret, invocation.store.superuser_secret(invocation.project_name))
    if external:
        secret = as_external(secret, invocation.project_name)
    default_format = "json" if invocation.output == "json" else "uri"
    click.echo(format_connection(secret, url_format or default_format))
