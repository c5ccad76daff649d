"""What a branch costs in bytes, and what its making costs over the size of its database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dbranch.api import names
from tests.bench.figures import Result, Row
from tests.bench.release import House
from tests.bench.stage import BARE, POSTGRES_IMAGE, Client, Stage
from tests.bench.starts import MS, dsn_of, settle

# Rows of the table that fills a database: about 290 bytes each.
ROWS_OF_MB = 3600


def filling(megabytes: int) -> list[str]:
    """What makes a table of that size, its hint bits set and everything on disk."""
    rows = megabytes * ROWS_OF_MB
    return [
        "create table filler as select g as id, repeat(md5(g::text), 8) as pad"
        f" from generate_series(1, {rows}) g",
        "create index on filler (id)",
        "vacuum (freeze, analyze) filler",
        "checkpoint",
    ]


def fill(client: Client, dsn: str, megabytes: int) -> float:
    """The table made in a branch; the database's size in MB."""
    size = "select pg_database_size(current_database()) / 1000000.0"
    return float(client.ask("sql", dsn=dsn, queries=[*filling(megabytes), size])["rows"][0][0])


def unique(stage: Stage, quick: bool) -> Result:
    """Bytes of a branch that no other shares: fresh, read, and with one row in a hundred changed."""
    megabytes = 100 if quick else 1000
    stage.project("bytes", size="6Gi")
    client = stage.client()
    main = dsn_of(stage, "bytes", option="main")
    fill(client, main, megabytes)
    # A second table as a program leaves it: its hint bits are set by who reads it first.
    unread = f"create table unread as select * from filler limit {50 * ROWS_OF_MB}"
    # What autovacuum rewrites on the source while this runs would be the branch's alone.
    calm = [f"alter table {table} set (autovacuum_enabled = off)" for table in ("filler", "unread")]
    client.ask("sql", dsn=main, queries=[unread, *calm])
    settle(stage)
    stage.ready("bytes", "fresh", stage.branch("bytes", "fresh"))
    dsn = dsn_of(stage, "bytes", option="fresh")
    sizes = {"fresh": stage.unique("bytes", "fresh")}
    client.ask("sql", dsn=dsn, queries=["select pad from filler where id = 7"])
    sizes["one row read"] = stage.unique("bytes", "fresh")
    client.ask(
        "sql",
        dsn=dsn,
        queries=["select count(pad) from filler", "select count(pad) from unread", "checkpoint"],
    )
    sizes["every table read"] = stage.unique("bytes", "fresh")
    mib = {key: value / 2**20 for key, value in sizes.items()}
    rows = [
        Row("unique bytes of a fresh branch", "-", [mib["fresh"]], unit="MiB", goal=1.0),
        Row("after one row is read", "-", [mib["one row read"]], unit="MiB", goal=1.0),
        Row(
            "after every table is read (50 MB of it read by nobody before)",
            "-",
            [mib["every table read"]],
            unit="MiB",
            note="hint bits of the rows that nobody had read yet",
        ),
    ]
    count = megabytes * ROWS_OF_MB
    for words, where in (
        ("together", f"id <= {count // 100}"),
        ("scattered", "id % 100 = 0"),
    ):
        name = words
        stage.ready("bytes", name, stage.branch("bytes", name))
        own = dsn_of(stage, "bytes", option=name)
        # Of the pages that hold the old rows, and of those that come to hold the new ones and their index entries.
        pages = f"select count(distinct (ctid::text::point)[0]) * 8192.0 from filler where {where}"
        held = "select pg_total_relation_size('filler')"
        changed, first = (float(client.ask("sql", dsn=own, queries=[q])["rows"][0][0]) for q in (pages, held))
        client.ask("sql", dsn=own, queries=["checkpoint"])
        before = stage.unique("bytes", name)
        update = f"update filler set pad = reverse(pad) where {where}"
        grown = float(client.ask("sql", dsn=own, queries=[update, "checkpoint", held])["rows"][0][0]) - first
        cost = (stage.unique("bytes", name) - before) / 2**20
        changed = (changed + grown) / 2**20
        title = f"bytes that an UPDATE of 1 % of the rows costs, {words}"
        rows.append(Row(title, "bytes of the pages changed", [cost], [changed], "MiB", 3.0))
    return Result(rows)


# Rows of 27 a page: what makes a table of a megabyte (10^6 bytes) of whole pages.
ROWS_OF_PAGES_MB = 3296
# Without WAL of what is written into a table that the same transaction made.
NO_WAL = {"wal_level": "minimal", "max_wal_senders": "0"}
# Seconds that filling one database may take, so that a run of all measures stays under an hour.
PATIENCE = 300
# Bytes that the node's disk is to have free besides: below some of them the agent makes nothing new.
RESERVE = 6e9


def bulk(megabytes: int) -> str:
    """One transaction that makes a table of that size as a settled database has it: frozen, and written once."""
    rows, pad = megabytes * ROWS_OF_PAGES_MB, "x" * 256
    return (
        "create table filler (id int, pad text);"
        f" copy filler from program $$seq 1 {rows} | sed 's/$/,{pad}/'$$ with (format csv, freeze)"
    )


def _bulky(stage: Stage, client: Client, project: str, megabytes: int) -> float:
    """A project whose database has that size; seconds that filling it took."""
    stage.project(project, size=f"{6 + megabytes * 16 // 10000}Gi", parameters=NO_WAL)
    dsn = dsn_of(stage, project, option="main")
    took = float(client.ask("sql", dsn=dsn, queries=[bulk(megabytes)])["seconds"])
    # Autovacuum would go on to read it all.
    client.ask("sql", dsn=dsn, queries=["alter table filler set (autovacuum_enabled = off)", "checkpoint"])
    stage.say(f"filled {megabytes / 1000:g} GB in {took:.0f} s")
    return took


def size(stage: Stage, quick: bool) -> Result:
    """A branch of a large database beside one of a small one."""
    client, house, rows = stage.client(), House(stage.cluster), []
    _bulky(stage, client, "small", 100)
    node = str(stage.told("small", names.ROOT_BRANCH)["status"]["nodeName"])
    speed = 0.0
    for megabytes in (1000,) if quick else (10_000, 50_000):
        title, free = f"apply → Ready at {megabytes / 1000:g} GB", house.free_bytes(node)
        lacks = lack(megabytes, free, speed)
        if lacks:
            assert rows, lacks
            rows.append(replace(rows.pop(), note=f"not made at {megabytes / 1000:g} GB: {lacks}"))
            break
        speed = megabytes / _bulky(stage, client, "large", megabytes)
        times: dict[str, list[float]] = {"small": [], "large": []}
        for _ in range(6 if quick else 8):
            for project, samples in times.items():
                settle(stage)
                name = stage.fresh("sized")
                samples.append(stage.ready(project, name, stage.branch(project, name)) * MS)
                stage.drop_branch(project, name)
        rows.append(Row(title, "at 100 MB", times["large"], times["small"], goal=1.05))
        stage.drop_project("large")
    return Result(rows)


def lack(megabytes: int, free: int, speed: float) -> str:
    """Why a database of that size is not made; empty where it is. `free`: bytes; `speed`: MB/s, 0 where not known.

    >>> lack(50_000, 80_000_000_000, 50.0), lack(50_000, 40_000_000_000, 0.0), lack(10_000, 40_000_000_000, 0.0)
    ('filling it would take 17 minutes', 'the node has 40 GB free, 58 GB are needed', '')
    """
    needed = megabytes * 1e6 * 1.05 + RESERVE
    if free < needed:
        return f"the node has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB are needed"
    if speed and megabytes / speed > PATIENCE:
        return f"filling it would take {megabytes / speed / 60:.0f} minutes"
    return ""


PG = "-h /tmp -p 5555"
# Way -> what makes the copy, to where it can be used; what takes it away again.
COPIES = {
    "CREATE DATABASE … TEMPLATE": (f"createdb {PG} -T filled copy", f"dropdb {PG} copy"),
    "pg_dump | pg_restore": (
        f"createdb {PG} copy; pg_dump {PG} -Fc -Z0 filled | pg_restore {PG} -d copy",
        f"dropdb {PG} copy",
    ),
    "pg_basebackup": (
        f"pg_basebackup {PG} -c fast -D /data/backup;"
        " pg_ctl -D /data/backup -o '-p 5556 -k /tmp' -w -l /tmp/log start",
        "pg_ctl -D /data/backup -m immediate stop; rm -rf /data/backup",
    ),
}
_SERVER = (
    "rm -rf /data/pg; initdb -D /data/pg -A trust; echo 'max_wal_size = 4GB' >>/data/pg/postgresql.conf;"
    " pg_ctl -D /data/pg -o '-p 5555 -k /tmp' -w -l /tmp/log start"
)


def _bash(stage: Stage, script: str) -> str:
    return stage.run_in("copier", "bash", "-ec", script)


def _copied(stage: Stage, way: str) -> float:
    """Milliseconds that one copy takes, by the clock of its own pod."""
    make, undo = COPIES[way]
    began = "a=$(date +%s%N)"
    took = _bash(stage, f"{began}; {{ {make}; }} >/dev/null; echo $(( ($(date +%s%N) - a) / 1000 ))")
    _bash(stage, undo)
    return int(took.splitlines()[-1]) / 1000


def copies(stage: Stage, quick: bool) -> Result:
    """Branches made by copying, beside dbranch's, over the size of the database."""
    stage.helper("copier", POSTGRES_IMAGE, ["sleep", "infinity"], data=f"{BARE}/copier")
    _bash(stage, _SERVER)
    client = stage.client()
    series: dict[str, list[tuple[float, float]]] = {key: [] for key in ("dbranch", *COPIES)}
    for megabytes in (30, 100, 300) if quick else (30, 300, 1000, 3000):
        project = f"copy-{megabytes}"
        stage.project(project, size="2Gi" if megabytes <= 300 else "12Gi")
        held = fill(client, dsn_of(stage, project, option="main"), megabytes)
        words = " ".join(f"-c '{query}'" for query in filling(megabytes))
        _bash(stage, f"createdb {PG} filled; psql {PG} -qX filled {words}")
        for _ in range(2 if quick else 3):
            settle(stage)
            name = stage.fresh("copied")
            series["dbranch"].append((held, stage.ready(project, name, stage.branch(project, name)) * MS))
            stage.drop_branch(project, name)
            for way in COPIES:
                series[way].append((held, _copied(stage, way)))
        _bash(stage, f"dropdb {PG} filled")
        stage.drop_project(project)
        last = ", ".join(f"{key} {points[-1][1]:.0f} ms" for key, points in series.items())
        stage.say(f"copies at {held:.0f} MB: {last}")
    largest = max(held for held, _ in series["dbranch"])
    at = {key: [ms for held, ms in points if held > largest * 0.9] for key, points in series.items()}
    title = f"a branch of a database of {largest / 1000:.1f} GB"
    rows = [Row(title, way, at["dbranch"], at[way]) for way in COPIES]
    return Result(rows, {"copies": series})


BYTES: dict[str, Callable[[Stage, bool], Result]] = {f.__name__: f for f in (unique, size, copies)}
