"""Both Postgres of a restore at once: each keeps its data across the exchange."""

from __future__ import annotations

import pytest
from tests.node.restore_pool import Pool, Writer, check_whole, start_beside, writing
from tests.node.test_cleaning import eventually, sql

from dbranch.agent.layout import SubvolumeKind
from dbranch.agent.linux.mounts import mounts_at
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot import effect as slot
from dbranch.agent.volume.marker import RestoreRef
from dbranch.agent.volume.restores import ensure_restore_destroyed
from dbranch.api.errors import Busy


def test_both_postgres_run_across_the_exchange(pool: Pool) -> None:
    node, layout, restore_ref = pool.node, pool.layout, pool.restore_ref()
    with writing(pool) as (old, writer):
        pool.take(restore_ref)
        new = start_beside(node, pool.x, "beside")
        _exchange_under_writes(pool, restore_ref, old, new, writer)
    count = "select count(*) from item"
    acknowledged = writer.acknowledged
    assert sql(node, old, count) == [(acknowledged,)] and sql(node, new, count) == [(2000,)]
    check_whole(node, old, pool.path(pool.x, SubvolumeKind.RESTORE))
    slot.ensure_slot_removed(layout, old.slot)
    assert pool.keep()
    check_whole(node, new, pool.path(pool.x))
    # What it was comes back whole, with every row that was acknowledged before and behind the exchange.
    slot.ensure_slot_removed(layout, new.slot)
    pool.restore(pool.restore_ref(), restore_ref.undo_uid)
    restarted = node.start_postgres(pool.x)
    assert sql(node, restarted, count) == [(acknowledged,)]
    check_whole(node, restarted, pool.path(pool.x))


def _exchange_under_writes(
    pool: Pool, restore_ref: RestoreRef, old: Endpoint, new: Endpoint, writer: Writer
) -> None:
    node, layout = pool.node, pool.layout

    def roots() -> tuple[str, str]:
        old_root, new_root = (mounts_at(layout.data(each.slot))[-1].root for each in (old, new))
        return old_root, new_root

    assert roots() == (f"/{pool.x}", f"/.restore-{pool.x}")
    # Neither can be destroyed or kept while a Postgres has it.
    with pytest.raises(Busy):
        ensure_restore_destroyed(layout, pool.project, pool.x)
    pool.exchange(restore_ref)
    assert roots() == (f"/.restore-{pool.x}", f"/{pool.x}")
    with pytest.raises(Busy):
        pool.keep()
    # Each goes on with the data that it had.
    before = writer.acknowledged
    sql(node, new, "insert into item select generate_series(1001, 2000)")
    eventually(lambda: writer.acknowledged >= before + 200)
