"""The verbs that connect: start, psql, url."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import urlencode

import click

from dbranch.api import names
from dbranch_cli.failure import OTHER, USAGE, Failure
from dbranch_cli.forward import Endpoint, Listener, proxy_endpoint, require_permission
from dbranch_cli.objects import active_of, branch_of
from dbranch_cli.options import BranchName, Verb, after
from dbranch_cli.paint import table
from dbranch_cli.scope import Scope

_NODES_NAMESPACE = "dbranch-nodes"


@click.command(cls=Verb)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=names.POSTGRES_PORT,
    show_default=True,
    help="The local port of the active branch; 0: any.",
)
@click.option("--branches", is_flag=True, help="Also a port for each branch, from the next one on.")
@click.option(
    "--nodes-namespace",
    envvar="DBRANCH_NODES_NAMESPACE",
    default=_NODES_NAMESPACE,
    show_default=True,
    help="Where the Postgres pods are, for --branches.",
)
@click.pass_obj
def start(scope: Scope, port: int, branches: bool, nodes_namespace: str) -> None:
    """Forward a local port to the active branch, following each switch, until interrupted."""
    project = scope.project()
    connection, name = scope.store.connection, scope.project_name
    require_permission(connection, scope.namespace)
    if branches:
        require_permission(connection, nodes_namespace)
    proxy_endpoint(connection, project)
    listener = Listener(connection, lambda: proxy_endpoint(connection, project), port, scope.say)
    rows = [[f"localhost:{listener.port}", f"the active branch, now {active_of(project)}"]]
    if branches:
        for place, body in enumerate(scope.store.branches(name), 1):
            branch = branch_of(body)
            own = Listener(
                connection, _branch_endpoint(scope, branch, nodes_namespace), listener.port + place, scope.say
            )
            rows.append([f"localhost:{own.port}", branch])
    click.echo(table(["PORT", "BRANCH"], rows))
    scope.say("user, password and database: dbranch url --format env; ^C ends it")
    threading.Event().wait()


def _branch_endpoint(scope: Scope, branch: str, nodes_namespace: str) -> Any:
    """Where a branch's Postgres is, looked up for each connection: its pod may be another one by then."""

    def choose() -> Endpoint:
        node = (scope.branch(branch).get("status") or {}).get("node") or {}
        if not node.get("pod") or not node.get("port"):
            raise Failure(
                OTHER, "BranchNotReady", f"branch {branch} has no pod now; see dbranch show {branch}"
            )
        return Endpoint(nodes_namespace, str(node["pod"]), int(node["port"]))

    return choose


@click.command(cls=Verb, passes_on=True, options_metavar="[OPTIONS]", epilog="What follows -- goes to psql.")
@click.argument("branch", type=BranchName(), required=False)
@click.pass_context
def psql(context: click.Context, branch: str | None) -> None:
    """Open psql on a branch (default: the active one); its exit code is psql's."""
    scope: Scope = context.obj
    code = run_client(scope, "psql", list(after(context)), branch)
    context.exit(code)


def run_client(
    scope: Scope,
    program: str,
    arguments: Sequence[str],
    branch: str | None,
    stdin: IO[bytes] | Iterator[bytes] | None = None,
    quiet: bool = False,
) -> int:
    """Run a Postgres client through a port-forward of its own; its exit code (128 + n for signal n).

    `stdin`: this terminal's (None), a file, or chunks of bytes. `quiet` drops its standard output.
    """
    if shutil.which(program) is None:
        raise Failure(
            OTHER,
            "ClientNotInstalled",
            f"{program} is not installed here; install it: apt-get install postgresql-client (Debian, Ubuntu),"
            " dnf install postgresql (Fedora), brew install libpq (macOS)",
        )
    if branch:
        scope.branch(branch)
    project = scope.project()
    connection, name = scope.store.connection, project["metadata"]["name"]
    secret = scope.store.secret(name)
    require_permission(connection, scope.namespace)
    proxy_endpoint(connection, project)
    listener = Listener(connection, lambda: proxy_endpoint(connection, project), 0)
    feed = stdin if isinstance(stdin, Iterator) and not hasattr(stdin, "fileno") else None
    try:
        with _interrupts_left_to_it():
            client = subprocess.Popen(
                [program, *arguments],
                env=client_environment(os.environ, secret, listener.port, branch),
                stdin=subprocess.PIPE if feed is not None else stdin,  # type: ignore[arg-type]
                stdout=subprocess.DEVNULL if quiet else None,
            )
            if feed is not None:
                _feed(client, feed)
            code = client.wait()
    finally:
        listener.close()
    if code and listener.failure:
        raise listener.failure
    return 128 - code if code < 0 else code


def client_environment(
    base: Mapping[str, str], secret: Mapping[str, str], port: int, branch: str | None
) -> dict[str, str]:
    """libpq's variables for a local port; a named branch by the startup option that the proxy obeys."""
    env = {key: value for key, value in base.items() if key not in ("PGHOSTADDR", "PGSERVICE")}
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
def _interrupts_left_to_it() -> Iterator[None]:
    """^C is psql's while it runs (it cancels a query). A handler, unlike SIG_IGN, is not inherited."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _feed(client: subprocess.Popen[bytes], chunks: Iterator[bytes]) -> None:
    """Bytes into the client's standard input; it may end before them."""
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


@click.command(cls=Verb)
@click.argument("branch", type=BranchName(), required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["uri", "env", "jdbc", "json"]),
    help="`env`: for a shell's eval; default: uri, with -o json: json.",
)
@click.pass_obj
def url(scope: Scope, branch: str | None, form: str | None) -> None:
    """Print the connection string, for use within the cluster: the project's, or a branch's own."""
    if scope.output in ("yaml", "name") and form is None:
        raise Failure(USAGE, "InvalidInput", f"url knows no -o {scope.output}; use --format")
    name = scope.branch(branch)["metadata"]["name"] if branch else scope.project()["metadata"]["name"]
    secret = scope.store.secret(name)
    click.echo(connection_text(secret, form or ("json" if scope.output == "json" else "uri")))


def connection_text(secret: Mapping[str, str], form: str) -> str:
    """A `…-conn` Secret as a URI, as shell variables of libpq, as a JDBC URL or as JSON."""
    if form == "uri":
        return secret["uri"]
    if form == "json":
        keys = ("host", "port", "username", "password", "database", "uri")
        return json.dumps({key: secret[key] for key in keys}, indent=2)
    if form == "jdbc":
        login = urlencode({"user": secret["username"], "password": secret["password"]})
        return f"jdbc:postgresql://{secret['host']}:{secret['port']}/{secret['database']}?{login}"
    variables = {
        "PGHOST": secret["host"],
        "PGPORT": secret["port"],
        "PGUSER": secret["username"],
        "PGPASSWORD": secret["password"],
        "PGDATABASE": secret["database"],
    }
    return "\n".join(f"export {key}={shlex.quote(value)}" for key, value in variables.items())
