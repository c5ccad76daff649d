"""Waiting for changes in a directory, with and without the kernel's notifications."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from dbranch.agent.linux import inotify
from dbranch.agent.linux.inotify import InotifyWatch


def seconds_waited(watch: InotifyWatch, timeout: float) -> float:
    started = time.monotonic()
    watch.wait(timeout)
    return time.monotonic() - started


def test_a_write_ends_the_wait_and_nothing_else_does(tmp_path: Path) -> None:
    file = tmp_path / "postmaster.pid"
    file.write_text("starting")
    handle = os.open(tmp_path, os.O_RDONLY)
    with InotifyWatch(handle) as watch:
        assert seconds_waited(watch, 0.05) >= 0.04
        # A change between two waits is not lost.
        file.write_text("ready")
        assert seconds_waited(watch, 20) < 10
        assert seconds_waited(watch, 0.05) >= 0.04
        threading.Timer(0.05, file.write_text, args=["again"]).start()
        assert seconds_waited(watch, 20) < 10
    os.close(handle)


def test_without_notifications_a_wait_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LibcWithoutInotify:
        """The libc of a system on which the user's limit of inotify instances is reached."""

        @staticmethod
        def inotify_init1(flags: int) -> int:
            return -1

    monkeypatch.setattr(inotify, "_libc", LibcWithoutInotify())
    handle = os.open(tmp_path, os.O_RDONLY)
    with InotifyWatch(handle) as watch:
        assert 0.01 < seconds_waited(watch, 20) < 10
    os.close(handle)
