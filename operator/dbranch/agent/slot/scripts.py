"""The shell scripts that pods run, as text."""

from __future__ import annotations

from importlib.resources import files


def read_slot_start() -> str:
    """What a slot's pod runs: waits for its branch, then becomes Postgres."""
    return _read("slot-start.sh")


def read_initdb() -> str:
    """What the one-shot pod runs: makes the root branch's database."""
    return _read("initdb.sh")


def _read(name: str) -> str:
    return files("dbranch.agent.slot").joinpath(name).read_text(encoding="utf-8")
