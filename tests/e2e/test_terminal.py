"""The command line as a person has it: on a terminal of 80 columns, with colors, prompts and ^C; what it writes."""

from __future__ import annotations

import base64
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbranch_cli.dump_format import major_of
from tests.e2e.cluster import KUBECTL_TIMEOUT, NODES, POSTGRES_IMAGE, SYSTEM, Namespace, Project, run
from tests.entry_points import write_entry_points
from tests.terminal import INTERRUPT, Terminal

GREEN, RESET = "\x1b[32m", "\x1b[0m"
LAST = "select max(id) from item"


@pytest.fixture
def project(team: Namespace) -> Iterator[Project]:
    """A project that does not exist yet; it is deleted behind the test."""
    project = Project(team, "typed")
    yield project
    project.discard()


def environment_of(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a person's shell, with a configuration file of its own."""
    return {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {
        "TERM": "xterm-256color",
        "DBRANCH_CONFIG": str(tmp_path / "config.yaml"),
    }


def test_a_first_session_on_a_terminal(project: Project, tmp_path: Path) -> None:
    environment = environment_of(tmp_path)

    def dbranch(*words: str) -> Terminal:
        return Terminal(["dbranch", "-n", project.team.name, *words], environment)

    with dbranch("init", "typed", "--image", POSTGRES_IMAGE, "--size", "1Gi", KUBECTL_TIMEOUT) as init:
        init.expect("creating project typed in namespace")
        assert init.end() == 0
    # Each condition once with a sign, and meanwhile on a line that is drawn again, within the terminal's width.
    for condition in ("Scheduled", "StorageReady", "PostgresReady"):
        assert f"{GREEN}✓{RESET} {condition}" in init.output
    assert "\r\x1b[K… " in init.output
    assert [line for line in init.screen if line.startswith(("…", "✓")) and len(line) > 80] == []
    assert init.screen[-2].startswith("project typed is Ready; connect with")

    dump = tmp_path / "item.sql"
    rows = "".join(f"{number}\tx\n" for number in range(1, 20001))
    dump.write_text(f"create table item (id int, name text);\ncopy item from stdin;\n{rows}\\.\n")
    with dbranch("load", str(dump)) as load:
        assert load.end() == 0 and "loaded into branch main" in load.output
    with dbranch("create", "feature", KUBECTL_TIMEOUT) as create:
        create.expect("creating branch feature from main")
        assert create.end() == 0 and create.screen[-2] == "branch feature created from main; Ready"
    assert f"{GREEN}✓{RESET} PostgresReady" in create.output
    with dbranch("use", "feature", KUBECTL_TIMEOUT) as use:
        assert use.end() == 0 and use.screen[-2] == "branch feature is active"
    assert "main → feature: no open sessions" in use.output
    assert project.sql(LAST, "feature") == "20000"

    # Prompts: a no changes nothing; a name that does not exist is corrected.
    with dbranch("delete-project") as delete:
        delete.expect("[y/N]: ")
        delete.type("n\n")
        assert delete.end() == 1 and "canceled; nothing was changed" in delete.output
    assert not project.team.get("dbproject", "typed")["metadata"].get("deletionTimestamp")
    with dbranch("show", "featrue") as show:
        assert show.end() == 3 and "did you mean feature?" in show.output
    with dbranch("use", "main", KUBECTL_TIMEOUT) as use:
        assert use.end() == 0
    with dbranch("delete", "feature", KUBECTL_TIMEOUT) as delete:
        delete.expect(
            "Delete branch feature of project typed? The data is kept for 24h: 'dbranch undelete'. [y/N]: "
        )
        delete.type("y\n")
        assert delete.end() == 0
        assert (
            delete.screen[-2] == "branch feature deleted; its data is kept for 24h: dbranch undelete feature"
        )

    # ^C ends the waiting: the line is cleared, the code is 130, and what goes on is said.
    with dbranch("wait", "main", "--for", "stopped") as wait:
        wait.expect("… ")
        wait.type(INTERRUPT)
        assert wait.end() == 130 and "Traceback" not in wait.output
    assert wait.output.endswith(
        "\r\x1b[Kdbranch: interrupted while waiting until branch main is stopped;"
        " the object stays and is still reconciled\r\n"
    )
    with dbranch("doctor") as doctor:
        assert doctor.end() in (0, 1, 7)
    assert f"{GREEN}ok       {RESET}API server: v1." in doctor.output
    assert any(line.startswith("ok       controller: ") for line in doctor.screen)


def test_a_dump_is_loaded_into_another_branch_or_refused_by_an_older_pg_dump(
    shop: Project, tmp_path: Path
) -> None:
    shop.branches("dumped", "filled")
    shop.sql("create table wide as select n, repeat('x', 100) x from generate_series(1, 5000) n", "dumped")
    file = tmp_path / "shop.sql.zst"
    dumped = shop.team.dbranch("-p", "shop", "dump", "dumped", str(file), check=False)
    here = major_of(run(["pg_dump", "--version"]).text)
    server = major_of(shop.status("dumped")["node"]["postgresVersion"])
    assert here and server
    if here < server:
        assert dumped.code == 1 and f"older than the branch's {server}" in dumped.err and not file.exists()
    else:
        assert "branch dumped dumped into" in dumped.err and "plain, zstd" in dumped.err
        shop.sql("drop table item", "filled")
        shop.team.dbranch("-p", "shop", "load", str(file), "filled")
        assert shop.sql("select count(*), max(n) from wide", "filled") == "5000|5000"
        assert shop.sql("select name from item", "filled") == "first"
    shop.discard("dumped", "filled")


def test_a_report_holds_the_logs_and_no_password(shop: Project, tmp_path: Path) -> None:
    file = tmp_path / "report.tar.gz"
    shop.team.dbranch("report", str(file), "--lines", "200")
    with tarfile.open(file) as archive:
        members = {m.name.partition("/")[2]: archive.extractfile(m) for m in archive.getmembers()}
        texts = {name: member.read().decode() for name, member in members.items() if member}
    for place, component in ((SYSTEM, "controller"), (NODES, "agent"), (shop.team.name, "shop-proxy")):
        logs = [name for name in texts if name.startswith(f"logs/{place}/") and component in name]
        assert logs and any(texts[name].strip() for name in logs), list(texts)
    assert "name: shop" in texts["dbprojects.yaml"] and "kernelVersion" in texts["nodes.yaml"]
    for secret in ("shop-conn", "shop-superuser-conn"):
        data = shop.team.get("secret", secret)["data"]
        for key in ("password", "uri"):
            value = base64.b64decode(data[key]).decode()
            assert value and not [n for n, text in texts.items() if value in text or data[key] in text]


def test_kubectl_completes_the_branches(shop: Project, tmp_path: Path) -> None:
    write_entry_points(tmp_path)
    environment = environment_of(tmp_path) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ["dbranch", "-n", shop.team.name, "-p", "shop", "show", "ma"]
    offered = run(["kubectl", "__complete", *words], env=environment).out.splitlines()
    assert offered == ["main", ":4"]
