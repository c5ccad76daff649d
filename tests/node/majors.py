"""The supported major versions of Postgres: the machine's own, and those that hack/test installed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from dbranch.api.parameters import NEWEST_MAJOR, OLDEST_MAJOR

# Of the short form of a test; the long one runs all.
BOUNDARIES = (OLDEST_MAJOR, NEWEST_MAJOR)


def programs_of(major: int) -> Path:
    """Return the directory of the programs of a major version, where every user can read them."""
    installed = os.environ.get("DBRANCH_POSTGRES")
    assert installed, "DBRANCH_POSTGRES is not set: hack/test node installs the servers and sets it"
    native = Path(installed) / "node_modules" / f"postgres{major}" / "native"
    assert (native / "bin" / "postgres").exists(), f"no Postgres {major} in {installed}"
    # The servers run as another user, who has no access to this user's cache.
    base = Path(tempfile.mkdtemp(prefix=f"dbranch-postgres{major}-", dir="/var/tmp"))
    base.chmod(0o755)
    shutil.copytree(native, base / "native", symlinks=True)
    return base / "native" / "bin"
