"""pgbench's TPC-B on a branch and on its source, beside a Postgres of the same image on the node's own disk."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.counts import tps
from tests.bench.figures import Result, Row
from tests.bench.stage import BARE, POSTGRES_IMAGE, Stage
from tests.bench.starts import settle

PROJECT = "bank"
LIVING = 10
CLIENTS = ("-c", "8", "-j", "2")
# With initdb's own settings, as the image's entrypoint would have them; trusted, where branches ask for a password
# once a session.
_PLAIN = (
    "initdb -D /data/pg -A trust; echo 'host all all all trust' >>/data/pg/pg_hba.conf;"
    " pg_ctl -D /data/pg -o \"-p 5555 -k /tmp -c listen_addresses='*'\" -w -l /tmp/log start;"
    " createdb -h /tmp -p 5555 bank"
)


@dataclass(frozen=True)
class Backend:
    """A Postgres by its pod's own address: no proxy and no Service is in the way."""

    host: str
    port: str
    user: str
    password: str
    database: str

    @property
    def words(self) -> tuple[str, ...]:
        """The environment by which Postgres' programs find it."""
        told = {
            "PGHOST": self.host,
            "PGPORT": self.port,
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
        }
        return ("env", *(f"{key}={value}" for key, value in told.items()))


def _branch(stage: Stage, name: str) -> Backend:
    node, secret = stage.told(PROJECT, name)["status"]["node"], stage.uri(PROJECT)
    return Backend(
        node["address"], str(node["port"]), secret["username"], secret["password"], secret["database"]
    )


def _plain(stage: Stage) -> Backend:
    stage.helper("plain", POSTGRES_IMAGE, ["sleep", "infinity"], data=f"{BARE}/copier")
    stage.run_in("plain", "bash", "-ec", _PLAIN)
    return Backend(stage.address("plain"), "5555", "postgres", "", "bank")


def _transactions(stage: Stage, place: Backend, seconds: int) -> float:
    """Transactions a second, its caches warm and its last checkpoint just behind it."""
    run = (*place.words, "pgbench", "-n", *CLIENTS)
    stage.run_in("pgbench", *run, "-T", str(max(2, seconds // 4)))
    stage.run_in("pgbench", *place.words, "psql", "-qc", "checkpoint")
    return tps(stage.run_in("pgbench", *run, "-T", str(seconds)))


def pgbench(stage: Stage, quick: bool) -> Result:
    scale, seconds, rounds = (10, 6, 2) if quick else (50, 12, 4)
    stage.project(PROJECT, size="20Gi")
    stage.helper("pgbench", POSTGRES_IMAGE, ["sleep", "infinity"])
    plain, source = _plain(stage), _branch(stage, "main")
    for place in (plain, source):
        stage.run_in("pgbench", *place.words, "pgbench", "-i", "-q", "-s", str(scale))
    living: list[str] = []

    def one_more() -> None:
        settle(stage)
        living.append(stage.fresh("teller"))
        stage.ready(PROJECT, living[-1], stage.branch(PROJECT, living[-1]))

    for _ in range(LIVING):
        one_more()
    rates: dict[str, list[float]] = {"plain": [], "branch": [], "source": []}
    for index in range(rounds):
        # A new one for each round: its first writes are those that part from the source's blocks.
        if index:
            stage.drop_branch(PROJECT, living.pop(0))
            one_more()
        places = {"plain": plain, "branch": _branch(stage, living[-1]), "source": source}
        order = list(places)
        # Another one goes first in each round.
        for key in order[index % 3 :] + order[: index % 3]:
            rates[key].append(_transactions(stage, places[key], seconds))
        stage.say(f"pgbench: {', '.join(f'{key} {rate[-1]:.0f} tps' for key, rate in rates.items())}")
    against = "the same Postgres on plain ext4"
    how = f"scale {scale}, 8 clients, {seconds} s a round, by the pods' own addresses; ext4 has initdb's settings"
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
                f"on its source while {LIVING} branches live",
                against,
                rates["source"],
                rates["plain"],
                "tps",
                0.9,
                at_least=True,
            ),
        ]
    )
