"""Locks by object: taken by one thread at a time, and forgotten when nobody needs them."""

from __future__ import annotations

import threading

from dbranch.runtime.locks import KeyedLocks


def test_a_lock_that_nobody_needs_is_forgotten() -> None:
    locks = KeyedLocks()
    for number in range(3):
        with locks.held("team", f"shop-{number}"), locks.held("team", f"shop-{number}"):
            assert len(locks._locks) == 1
    assert not locks._locks and not locks._users and not locks._depth


def test_one_thread_holds_an_object_at_a_time() -> None:
    locks, inside, most = KeyedLocks(), 0, 0

    def enter() -> None:
        nonlocal inside, most
        for _ in range(200):
            with locks.held("team", "shop"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and not locks._locks
