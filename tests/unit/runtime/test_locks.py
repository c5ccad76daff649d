"""Locks by object: they exclude each other, and are forgotten when nobody needs them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dbranch.runtime.locks import KeyedLocks


def test_a_lock_is_held_by_one_and_forgotten_after_the_last() -> None:
    locks, inside, most = KeyedLocks(), 0, 0
    guard = threading.Lock()

    def work(number: int) -> None:
        nonlocal inside, most
        with locks.held("team", "shop"), locks.held("team", "shop"), locks.held("team", f"other-{number}"):
            with guard:
                inside += 1
                most = max(most, inside)
            with guard:
                inside -= 1

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(500)))
    assert most == 1 and len(locks) == 0


def test_a_lock_is_forgotten_after_an_exception() -> None:
    locks = KeyedLocks()
    with pytest.raises(RuntimeError), locks.held("team", "shop"):
        raise RuntimeError
    assert len(locks) == 0
