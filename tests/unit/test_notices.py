"""Word of changes in a directory, with and without the kernel's."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from dbranch.agent.linux import inotify as notices
from dbranch.agent.linux.inotify import InotifyWatch


def waited(there: InotifyWatch, seconds: float) -> float:
    began = time.monotonic()
    there.wait(seconds)
    return time.monotonic() - began


def test_a_write_is_told_and_nothing_else_is(tmp_path: Path) -> None:
    file = tmp_path / "postmaster.pid"
    file.write_text("starting")
    handle = os.open(tmp_path, os.O_RDONLY)
    with InotifyWatch(handle) as there:
        assert waited(there, 0.05) >= 0.04
        # What came between two waits is not lost.
        file.write_text("ready")
        assert waited(there, 20) < 10
        assert waited(there, 0.05) >= 0.04
        threading.Timer(0.05, file.write_text, args=["again"]).start()
        assert waited(there, 20) < 10
    os.close(handle)


def test_without_the_kernels_word_it_is_looked_at_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A kernel whose limit of instances is reached."""

        @staticmethod
        def inotify_init1(flags: int) -> int:
            return -1

    monkeypatch.setattr(notices, "_libc", Full())
    handle = os.open(tmp_path, os.O_RDONLY)
    with InotifyWatch(handle) as there:
        assert 0.01 < waited(there, 20) < 10
    os.close(handle)
