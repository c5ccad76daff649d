"""The shell scripts that pods run, as text."""

from __future__ import annotations

from importlib.resources import files


def read_slot_start() -> str:
    """Return the script of a slot's pod: it waits for a branch, then becomes Postgres."""
    return _read("slot-start.sh")


def read_initdb() -> str:
    """Return the script of the initdb pod: it creates the root branch's database."""
    return _read("initdb.sh")


def _read(name: str) -> str:
    return files("dbranch.agent.slot").joinpath(name).read_text(encoding="utf-8")
