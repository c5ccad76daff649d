"""Measure pgbench's TPC-B on a branch and on its source, beside the same Postgres image on the node's own disk."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.counts import tps
from tests.bench.figures import Result, Row
from tests.bench.stage import BARE_DIRECTORY, POSTGRES_IMAGE, Stage
from tests.bench.starts import wait_idle

PROJECT = "bank"
BRANCHES = 10
CLIENTS = ("-c", "8", "-j", "2")
# With initdb's default settings, like the image's entrypoint. Authentication is `trust`, while branches ask for a
# password once per session.
_PLAIN = (
    "initdb -D /data/pg -A trust; echo 'host all all all trust' >>/data/pg/pg_hba.conf;"
    " pg_ctl -D /data/pg -o \"-p 5555 -k /tmp -c listen_addresses='*'\" -w -l /tmp/log start;"
    " createdb -h /tmp -p 5555 bank"
)


@dataclass(frozen=True)
class Backend:
    """A Postgres at its pod's own IP address, without proxy and Service."""

    host: str
    port: str
    user: str
    password: str
    database: str

    @property
    def env_command(self) -> tuple[str, ...]:
        """Return an `env` command with the variables by which Postgres' programs connect to it."""
        variables = {
            "PGHOST": self.host,
            "PGPORT": self.port,
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
        }
        return ("env", *(f"{key}={value}" for key, value in variables.items()))


def _branch(stage: Stage, name: str) -> Backend:
    node, secret = stage.get_branch(PROJECT, name)["status"]["node"], stage.connection_secret(PROJECT)
    return Backend(
        node["address"], str(node["port"]), secret["username"], secret["password"], secret["database"]
    )


def _plain(stage: Stage) -> Backend:
    stage.create_helper_pod("plain", POSTGRES_IMAGE, ["sleep", "infinity"], data=f"{BARE_DIRECTORY}/copier")
    stage.exec_in("plain", "bash", "-ec", _PLAIN)
    return Backend(stage.pod_address("plain"), "5555", "postgres", "", "bank")


def _transactions(stage: Stage, backend: Backend, seconds: int) -> float:
    """Run pgbench after a warm-up and a checkpoint; return the transactions per second."""
    run = (*backend.env_command, "pgbench", "-n", *CLIENTS)
    stage.exec_in("pgbench", *run, "-T", str(max(2, seconds // 4)))
    stage.exec_in("pgbench", *backend.env_command, "psql", "-qc", "checkpoint")
    return tps(stage.exec_in("pgbench", *run, "-T", str(seconds)))


def pgbench(stage: Stage, quick: bool) -> Result:
    """Measure new branches, their source and a plain Postgres alternately."""
    scale, seconds, rounds = (10, 6, 2) if quick else (50, 12, 4)
    stage.create_project(PROJECT, size="20Gi")
    stage.create_helper_pod("pgbench", POSTGRES_IMAGE, ["sleep", "infinity"])
    plain, source = _plain(stage), _branch(stage, "main")
    for backend in (plain, source):
        stage.exec_in("pgbench", *backend.env_command, "pgbench", "-i", "-q", "-s", str(scale))
    branches: list[str] = []

    def create_one() -> None:
        wait_idle(stage)
        branches.append(stage.unique_name("teller"))
        stage.create_until_ready(PROJECT, branches[-1])

    for _ in range(BRANCHES):
        create_one()
    rates: dict[str, list[float]] = {"plain": [], "branch": [], "source": []}
    for index in range(rounds):
        # A new branch for each round: only its first writes copy blocks that it shares with the source.
        if index:
            stage.delete_branches(PROJECT, branches.pop(0))
            create_one()
        backends = {"plain": plain, "branch": _branch(stage, branches[-1]), "source": source}
        order = list(backends)
        # A different one goes first in each round.
        for key in order[index % 3 :] + order[: index % 3]:
            rates[key].append(_transactions(stage, backends[key], seconds))
        stage.say(f"pgbench: {', '.join(f'{key} {rate[-1]:.0f} tps' for key, rate in rates.items())}")
    against = "the same Postgres on plain ext4"
    how = (
        f"scale {scale}, 8 clients, {seconds} s per round, connected to the pods' own addresses; "
        "on ext4 with initdb's default settings"
    )
    return Result(
        [
            Row(
                "pgbench TPC-B on a new branch",
                against,
                rates["branch"],
                rates["plain"],
                "tps",
                0.9,
                note=how,
                at_least=True,
            ),
            Row(
                f"the same on its source, with {BRANCHES} branches running",
                against,
                rates["source"],
                rates["plain"],
                "tps",
                0.9,
                at_least=True,
            ),
        ]
    )
