"""A process killed at every effect of a restore's functions: the next one can say what lies there, and ends it."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.node.agent_life import EffectCounter, is_effect
from tests.node.restore_pool import Pool

from dbranch.agent.layout import PGDATA, SubvolumeKind
from dbranch.agent.linux import btrfs
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.restore_rules import VolumeState
from dbranch.agent.volume.restores import ensure_restore_destroyed


def killed_at(kill_at: int, effects: Path, base: Path, work: Callable[[], None]) -> bool:
    """Do the work in a process that is killed at the effect of this number; return True if it was.

    Its effects are written to the file if it is not.
    """
    child = os.fork()
    if not child:
        try:
            counter = EffectCounter(str(kill_at))
            commands = logging.getLogger("dbranch.command")
            commands.setLevel(logging.INFO)
            commands.addHandler(counter)

            def hook(event: str, args: tuple[Any, ...]) -> None:
                if is_effect(event, args, f"{base}/") and str(args[0]) != str(effects):
                    counter.count(f"{event} {args[0]!r}")

            sys.addaudithook(hook)
            work()
            seen = list(counter.effects)
            effects.write_text("\n".join(seen))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent says it
            effects.write_text(traceback.format_exc())
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, effects.read_text()
    return killed


def test_kills_at_every_effect_of_a_restore(pool: Pool, tmp_path: Path, soak: bool) -> None:
    """Taken, exchanged, kept: whoever comes after the kill finds out how far it was, and goes on or cancels."""
    base, effects = pool.layout.base, tmp_path / "effects"
    said = "x"

    def attempt(kill_at: int, cancels: bool) -> bool:
        nonlocal said
        before, restore_ref = pool.marker(pool.x), pool.restore_ref()

        def work() -> None:
            if pool.marker(pool.x).restore != restore_ref:
                pool.take(restore_ref)
                pool.write(pool.x, f"restore {kill_at} {cancels}", SubvolumeKind.RESTORE)
                pool.exchange(restore_ref)
            pool.keep()

        killed = killed_at(kill_at, effects, base, work)
        # At no moment is there no data, and it can always be said what is beside it.
        after = pool.marker(pool.x)
        assert pool.state() is not VolumeState.UNCLEAR
        done = after.restore == restore_ref
        assert after.generation == before.generation + done
        if cancels and not done:
            ensure_restore_destroyed(pool.layout, pool.project, pool.x)
        else:
            work()
        facts = observe_subvolumes(pool.layout, pool.project)
        assert facts.unfinished == () and set(facts.branches) == {pool.root, pool.x}
        if cancels and not done:
            assert restore_ref.undo_uid not in facts.snapshots and pool.read(pool.x) == said
            return killed
        assert pool.read(restore_ref.undo_uid) == said and btrfs.is_read_only(pool.path(restore_ref.undo_uid))
        assert facts.snapshots[restore_ref.undo_uid].data.generation == before.generation
        said = pool.read(pool.x)
        assert said == f"restore {kill_at} {cancels}"
        subvolume.ensure_trashed(pool.layout, pool.project, restore_ref.undo_uid)
        subvolume.ensure_trash_emptied(pool.layout, pool.project)
        return killed

    assert not attempt(0, cancels=False)
    seen = effects.read_text().splitlines()
    assert any("--exchange" in effect for effect in seen) and len(seen) > 10, seen
    points = range(1, len(seen) + 1)
    decisive = [
        number
        for number, effect in enumerate(seen, 1)
        if any(word in effect for word in ("mv ", "property set", "rename"))
    ]
    tried = points if soak else sorted({*decisive, *random.sample(points, 3)})
    kills = sum(attempt(point, cancels) for point in tried for cancels in (False, True))
    print(f"{len(seen)} effects of a restore, {kills} kills")
    assert kills >= len(tried)


def test_kills_at_every_effect_of_copying_data_with_subvolumes_nested_in_it(
    pool: Pool, tmp_path: Path
) -> None:
    """What was put aside with them is whole at every moment, and so is the copy that is made in the end."""
    outer, inner = Path("outer"), Path("outer/inner")
    for nested in (outer, inner):
        btrfs.create_subvolume(pool.path(pool.x) / PGDATA / nested)
        (pool.path(pool.x) / PGDATA / nested / "said").write_text(str(nested))
    replaced, undo = pool.restore_ref(), pool.restore_ref()
    pool.restore(replaced)

    def read(uid: str, kind: SubvolumeKind | None = None) -> list[str]:
        return [(pool.path(uid, kind) / PGDATA / nested / "said").read_text() for nested in (outer, inner)]

    def work() -> None:
        pool.take(undo, replaced.undo_uid)

    def attempt(kill_at: int) -> bool:
        killed = killed_at(kill_at, tmp_path / "effects", pool.layout.base, work)
        assert read(replaced.undo_uid) == [str(outer), str(inner)] and pool.read(pool.x) == "main"
        work()
        assert read(pool.x, SubvolumeKind.RESTORE) == [str(outer), str(inner)]
        ensure_restore_destroyed(pool.layout, pool.project, pool.x)
        assert observe_subvolumes(pool.layout, pool.project).unfinished == ()
        return killed

    assert not attempt(0)
    effects = (tmp_path / "effects").read_text().splitlines()
    assert sum("subvolume snapshot" in effect for effect in effects) == 3, effects
    assert all(attempt(point) for point in range(1, len(effects) + 1))
