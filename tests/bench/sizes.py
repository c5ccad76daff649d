"""Measures of the bytes that a branch takes, and of its creation time by the size of its database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dbranch.api import names
from tests.bench.figures import Result, Row
from tests.bench.release import ClusterProbe
from tests.bench.stage import BARE_DIRECTORY, POSTGRES_IMAGE, Client, Stage
from tests.bench.starts import MS, dsn_of, wait_idle

# Rows of about 290 bytes, with their index entries.
ROWS_PER_MB = 3600


def fill_statements(megabytes: int) -> list[str]:
    """Return statements that create a table of that size, set its hint bits and write it to disk."""
    rows = megabytes * ROWS_PER_MB
    return [
        "create table filler as select g as id, repeat(md5(g::text), 8) as pad"
        f" from generate_series(1, {rows}) g",
        "create index on filler (id)",
        "vacuum (freeze, analyze) filler",
        "checkpoint",
    ]


def fill(client: Client, dsn: str, megabytes: int) -> float:
    """Create the table in a database; return the database's size in MB."""
    size_query = "select pg_database_size(current_database()) / 1000000.0"
    return float(client.ask("sql", dsn=dsn, queries=[*fill_statements(megabytes), size_query])["rows"][0][0])


def unique(stage: Stage, quick: bool) -> Result:
    """Measure the unique bytes of a branch: new, after reads, and after an UPDATE of 1 % of the rows."""
    megabytes = 100 if quick else 1000
    stage.create_project("bytes", size="6Gi")
    client = stage.start_client()
    main = dsn_of(stage, "bytes", option="main")
    fill(client, main, megabytes)
    # A second table that nobody has read since it was written: its hint bits are set by the first reader.
    unread = f"create table unread as select * from filler limit {50 * ROWS_PER_MB}"
    # Pages that autovacuum rewrites on the source in the meantime would count as unique to the branch.
    no_autovacuum = [f"alter table {table} set (autovacuum_enabled = off)" for table in ("filler", "unread")]
    client.ask("sql", dsn=main, queries=[unread, *no_autovacuum])
    wait_idle(stage)
    stage.create_until_ready("bytes", "new")
    dsn = dsn_of(stage, "bytes", option="new")
    sizes = {"new": stage.unique_bytes("bytes", "new")}
    client.ask("sql", dsn=dsn, queries=["select pad from filler where id = 7"])
    sizes["one row read"] = stage.unique_bytes("bytes", "new")
    client.ask(
        "sql",
        dsn=dsn,
        queries=["select count(pad) from filler", "select count(pad) from unread", "checkpoint"],
    )
    sizes["every table read"] = stage.unique_bytes("bytes", "new")
    mib = {key: value / 2**20 for key, value in sizes.items()}
    rows = [
        Row("unique bytes of a new branch", "-", [mib["new"]], unit="MiB", goal=1.0),
        Row("the same after one row is read", "-", [mib["one row read"]], unit="MiB", goal=1.0),
        Row(
            "the same after every table is read (50 MB for the first time)",
            "-",
            [mib["every table read"]],
            unit="MiB",
            note="the hint bits of rows that are read for the first time",
        ),
    ]
    count = megabytes * ROWS_PER_MB
    for name, where in (
        ("adjacent", f"id <= {count // 100}"),
        ("scattered", "id % 100 = 0"),
    ):
        stage.create_until_ready("bytes", name)
        own = dsn_of(stage, "bytes", option=name)
        # The pages of the old rows, plus (by how much the table grows) those of the new rows and index entries.
        pages = f"select count(distinct (ctid::text::point)[0]) * 8192.0 from filler where {where}"
        table_size = "select pg_total_relation_size('filler')"
        changed, first = (
            float(client.ask("sql", dsn=own, queries=[query])["rows"][0][0]) for query in (pages, table_size)
        )
        client.ask("sql", dsn=own, queries=["checkpoint"])
        before = stage.unique_bytes("bytes", name)
        update = f"update filler set pad = reverse(pad) where {where}"
        grown = (
            float(client.ask("sql", dsn=own, queries=[update, "checkpoint", table_size])["rows"][0][0])
            - first
        )
        cost = (stage.unique_bytes("bytes", name) - before) / 2**20
        changed = (changed + grown) / 2**20
        title = f"unique bytes added by an UPDATE of 1 % of the rows, {name}"
        rows.append(Row(title, "bytes of the pages changed", [cost], [changed], "MiB", 3.0))
    return Result(rows)


# Rows of `bulk`, 27 to a page, that fill a megabyte (10^6 bytes) of pages.
BULK_ROWS_PER_MB = 3296
# No WAL for rows that are written into a table created by the same transaction.
NO_WAL = {"wal_level": "minimal", "max_wal_senders": "0"}
# Filling one database may take that long; a run of all measures then stays under an hour.
FILL_LIMIT_SECONDS = 300
# Space to leave free on the node's disk: when it runs low, the agent creates no new branches.
RESERVE_BYTES = 6e9


def bulk(megabytes: int) -> str:
    """Return a transaction that creates a table of that size, its rows frozen, as in a database at rest."""
    rows, pad = megabytes * BULK_ROWS_PER_MB, "x" * 256
    return (
        "create table filler (id int, pad text);"
        f" copy filler from program $$seq 1 {rows} | sed 's/$/,{pad}/'$$ with (format csv, freeze)"
    )


def create_bulky_project(stage: Stage, client: Client, project: str, megabytes: int) -> float:
    """Create a project whose database has that size; return the seconds that filling it took."""
    stage.create_project(project, size=f"{6 + megabytes * 16 // 10000}Gi", parameters=NO_WAL)
    dsn = dsn_of(stage, project, option="main")
    took = float(client.ask("sql", dsn=dsn, queries=[bulk(megabytes)])["seconds"])
    # Otherwise autovacuum would read the whole table next.
    client.ask("sql", dsn=dsn, queries=["alter table filler set (autovacuum_enabled = off)", "checkpoint"])
    stage.say(f"filled {megabytes / 1000:g} GB in {took:.0f} s")
    return took


def size(stage: Stage, quick: bool) -> Result:
    """Measure the creation of a branch of a large database beside one of a small database."""
    client, probe, rows = stage.start_client(), ClusterProbe(stage.cluster), []
    create_bulky_project(stage, client, "small", 100)
    node = str(stage.get_branch("small", names.ROOT_BRANCH)["status"]["nodeName"])
    speed = 0.0
    for megabytes in (1000,) if quick else (10_000, 50_000):
        title, free = f"apply → Ready at {megabytes / 1000:g} GB", probe.free_bytes(node)
        obstacle = why_skipped(megabytes, free, speed)
        if obstacle:
            assert rows, obstacle
            rows.append(replace(rows.pop(), note=f"not measured at {megabytes / 1000:g} GB: {obstacle}"))
            break
        speed = megabytes / create_bulky_project(stage, client, "large", megabytes)
        times: dict[str, list[float]] = {"small": [], "large": []}
        for _ in range(6 if quick else 8):
            for project, samples in times.items():
                wait_idle(stage)
                name = stage.unique_name("sized")
                samples.append(stage.create_until_ready(project, name) * MS)
                stage.delete_branches(project, name)
        rows.append(Row(title, "at 100 MB", times["large"], times["small"], goal=1.05))
        stage.delete_project("large")
    return Result(rows)


def why_skipped(megabytes: int, free: int, speed: float) -> str:
    """Return why a database of that size is not measured, or "". `free`: bytes; `speed`: MB/s, 0 if unknown.

    >>> why_skipped(50_000, 80_000_000_000, 50.0), why_skipped(50_000, 40_000_000_000, 0.0)
    ('filling it would take 17 minutes', 'the node has 40 GB free, 58 GB are needed')
    >>> why_skipped(10_000, 40_000_000_000, 0.0)
    ''
    """
    needed = megabytes * 1e6 * 1.05 + RESERVE_BYTES
    if free < needed:
        return f"the node has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB are needed"
    if speed and megabytes / speed > FILL_LIMIT_SECONDS:
        return f"filling it would take {megabytes / speed / 60:.0f} minutes"
    return ""


PG = "-h /tmp -p 5555"
# Method -> a script that makes a usable copy, and one that removes it.
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
    return stage.exec_in("copier", "bash", "-ec", script)


def _time_copy(stage: Stage, method: str) -> float:
    """Make a copy and remove it; return the milliseconds that the copy took, by its pod's own clock."""
    make, undo = COPIES[method]
    began = "a=$(date +%s%N)"
    took = _bash(stage, f"{began}; {{ {make}; }} >/dev/null; echo $(( ($(date +%s%N) - a) / 1000 ))")
    _bash(stage, undo)
    return int(took.splitlines()[-1]) / 1000


def copies(stage: Stage, quick: bool) -> Result:
    """Measure copies made by Postgres' own tools beside dbranch's branches, by the size of the database."""
    stage.create_helper_pod("copier", POSTGRES_IMAGE, ["sleep", "infinity"], data=f"{BARE_DIRECTORY}/copier")
    _bash(stage, _SERVER)
    client = stage.start_client()
    series: dict[str, list[tuple[float, float]]] = {key: [] for key in ("dbranch", *COPIES)}
    for megabytes in (30, 100, 300) if quick else (30, 300, 1000, 3000):
        project = f"copy-{megabytes}"
        stage.create_project(project, size="2Gi" if megabytes <= 300 else "12Gi")
        held = fill(client, dsn_of(stage, project, option="main"), megabytes)
        options = " ".join(f"-c '{query}'" for query in fill_statements(megabytes))
        _bash(stage, f"createdb {PG} filled; psql {PG} -qX filled {options}")
        for _ in range(2 if quick else 3):
            wait_idle(stage)
            name = stage.unique_name("copied")
            series["dbranch"].append((held, stage.create_until_ready(project, name) * MS))
            stage.delete_branches(project, name)
            for method in COPIES:
                series[method].append((held, _time_copy(stage, method)))
        _bash(stage, f"dropdb {PG} filled")
        stage.delete_project(project)
        last = ", ".join(f"{key} {points[-1][1]:.0f} ms" for key, points in series.items())
        stage.say(f"copies at {held:.0f} MB: {last}")
    largest = max(held for held, _ in series["dbranch"])
    of_largest = {key: [ms for held, ms in points if held > largest * 0.9] for key, points in series.items()}
    title = f"branch of a database of {largest / 1000:.1f} GB"
    rows = [Row(title, method, of_largest["dbranch"], of_largest[method]) for method in COPIES]
    return Result(rows, {"copies": series})


SIZES: dict[str, Callable[[Stage, bool], Result]] = {f.__name__: f for f in (unique, size, copies)}
