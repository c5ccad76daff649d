"""A branch has its source's rows as of its creation; writes to either one do not show in the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.cluster import NODES, Project, eventually


def test_apply_of_manifests_becomes_ready(shop: Project) -> None:
    shop.branch("plain")
    status = shop.team.get("dbbranch", "shop-plain")["status"]
    assert status["node"]["address"] and status["node"]["port"] != 5432
    assert status["node"]["sourceUID"] == shop.team.get("dbbranch", "shop-main")["metadata"]["uid"]
    columns = shop.team.kubectl("get", "dbbranch", "shop-plain").out.split("\n")[0].split()
    assert columns == ["NAME", "PROJECT", "SOURCE", "READY", "REASON", "ACTIVE", "UNIQUE", "EXPIRES", "AGE"]
    shop.discard("plain")


def test_a_branch_has_the_rows_as_of_its_creation_and_is_isolated_both_ways(shop: Project) -> None:
    shop.sql("create table pair as select n, 'before' as name from generate_series(1, 2) n", "main")
    shop.branch("copy")
    assert shop.sql("select n from pair order by n", "copy").split() == ["1", "2"]
    shop.sql("insert into pair values (3, 'on the branch')", "copy")
    shop.sql("update pair set name = 'changed' where n = 1", "main")
    assert shop.sql("select count(*) from pair where n = 3", "main") == "0"
    assert shop.sql("select name from pair where n = 1", "copy") == "before"
    assert shop.sql("select name from pair where n = 3", "copy") == "on the branch"
    assert shop.sql("select name from item where id = 1", "copy") == "first"
    shop.discard("copy")


def test_branch_of_a_branch_of_a_branch(shop: Project) -> None:
    source = "main"
    for depth in (1, 2, 3):
        shop.branch(f"deep-{depth}", source)
        source = f"deep-{depth}"
        shop.sql(f"create table level_{depth} (n int); insert into level_{depth} values ({depth})", source)
    assert shop.sql("select l.n, m.n, r.n from level_1 l, level_2 m, level_3 r", "deep-3") == "1|2|3"
    assert shop.sql("select to_regclass('level_2') is null", "deep-1") == "t"
    assert shop.sql("select to_regclass('level_1') is null", "main") == "t"
    shop.discard("deep-3", "deep-2", "deep-1")


def test_branch_under_write_load_is_consistent(shop: Project) -> None:
    """Each transaction moves an amount between two tables, so the sum is 0 in every consistent copy."""
    shop.sql(
        "create table debit (n int); create table credit (n int);"
        "insert into debit select 0 from generate_series(1, 200)",
        "main",
    )
    load = (
        "do $$ begin for i in 1..1500 loop"
        "  insert into debit values (-i); insert into credit values (i); commit;"
        " end loop; end $$"
    )
    copies = ["under-load-1", "under-load-2"]
    with ThreadPoolExecutor() as executor:
        writer = executor.submit(shop.sql, load, "main")
        for copy in copies:
            shop.branch(copy)
        writer.result()
    for copy in copies:
        sums = shop.sql(
            "select (select coalesce(sum(n), 0) from debit) + (select coalesce(sum(n), 0) from credit)", copy
        )
        assert sums == "0", copy
        assert shop.sql("select count(*) from item where id = 1", copy) == "1"
    assert shop.sql("select count(*) from credit", "main") == "1500"
    shop.discard(*copies)


def test_a_branchs_own_service_ignores_the_active_branch(shop: Project) -> None:
    shop.branch("aside")
    shop.sql("create table only_aside (n int)", "aside")
    for active in ("aside", "main"):
        shop.use(active)
        assert shop.sql("select to_regclass('only_aside') is not null", "aside") == "t"
        assert shop.sql("select to_regclass('only_aside') is not null", "main") == "f"
    shop.discard("aside")


def test_sizes_are_reported(shop: Project) -> None:
    shop.branch("sized")

    def reported(branch: str | None, *fields: str) -> dict[str, int]:
        """Wait until `status.node` of the branch (None: of the project) has the fields; return it."""

        def node() -> dict[str, int] | None:
            reported_node: dict[str, int] = shop.status(branch).get("node", {})
            return reported_node if all(field in reported_node for field in fields) else None

        return dict(eventually(f"{fields} are reported", node))

    branch = reported("sized", "uniqueBytes", "logicalBytes")
    assert branch["logicalBytes"] > 2**20
    assert branch["uniqueBytes"] < branch["logicalBytes"]
    if shop.team.cluster.on_node("ls /sys/fs/btrfs/features/simple_quota", check=False):
        # The root's initdb wrote nearly all that the two share.
        root = reported("main", "writtenBytes")
        branch = reported("sized", "writtenBytes")
        assert branch["writtenBytes"] < branch["logicalBytes"] / 2 < root["writtenBytes"]
    pool = reported(None, "usedBytes", "totalBytes")
    assert 0 < pool["usedBytes"] < pool["totalBytes"] == 2**30
    shop.discard("sized")


@pytest.mark.calm
def test_the_agent_logs_its_privileged_commands(shop: Project) -> None:
    shop.branch("logged")
    uid = shop.team.get("dbbranch", "shop-logged")["metadata"]["uid"]
    agents, kubectl = shop.team.cluster.agent_pods(), shop.team.cluster.kubectl
    agent = next(pod for pod, node in agents.items() if node == shop.status()["nodeName"])

    def logged(command: str) -> bool:
        lines = kubectl("logs", "-n", NODES, agent, "--tail=-1").out.splitlines()
        return any(command in line and uid in line for line in lines)

    for command in ("btrfs subvolume snapshot", "mount --bind"):
        eventually(f"the log of {agent} has {command}", lambda c=command: logged(c))
    shop.discard("logged")
