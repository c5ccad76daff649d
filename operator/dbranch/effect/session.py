"""The agent's SQL: sessions over a slot's socket, opened so that no link can lead elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from dbranch.plan.layout import Layout


@dataclass(frozen=True)
class Endpoint:
    """A branch's Postgres: its slot, its port (in the socket's name), the superuser, the major version."""

    slot: str
    port: int
    user: str
    major: int


@contextmanager
def connect(
    layout: Layout, endpoint: Endpoint, database: str = "postgres", seconds: float = 5.0
) -> Iterator[psycopg.Connection[Any]]:
    """A session in autocommit; all of it within `seconds`. NotAccepting where there is no server (yet)."""
    raise NotImplementedError
    yield


def await_accepting(layout: Layout, endpoint: Endpoint, seconds: float) -> str | None:
    """Blocks until Postgres accepts; its `server_version` ("17.6"), or None after `seconds`. For a thread."""
    raise NotImplementedError


def accepting(layout: Layout, endpoint: Endpoint) -> str | None:
    """One try: the `server_version`, or None where it does not accept."""
    raise NotImplementedError


def checkpoint(layout: Layout, endpoint: Endpoint, seconds: float) -> bool:
    """A CHECKPOINT, best effort: False where it could not be had within `seconds`."""
    raise NotImplementedError


def reload(layout: Layout, endpoint: Endpoint) -> None:
    """Settings files read again."""
    raise NotImplementedError


def restart_pending(layout: Layout, endpoint: Endpoint) -> tuple[str, ...]:
    """The names of settings that wait for a restart."""
    raise NotImplementedError
