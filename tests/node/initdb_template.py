"""initdb for the tests: run once per process of the tests for each set of arguments, then copied.

The pods' script stays the real one; only the program that it calls is replaced by one that remembers.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

_PROGRAM = """#!/bin/sh
# initdb -D DIRECTORY [OPTION...]: copy the result of an earlier call with these options, or call the real one.
set -eu
data=$2
shift 2
options=$(printf '%s\\n' "$@" | sed 's/^--pwfile=.*//' | cksum | tr ' ' -)
template={templates}/$options
if [ ! -d "$template" ]; then
  work=$(mktemp -d {templates}/work.XXXXXX)
  {initdb} -D "$work/pgdata" "$@"
  # Another call may have been faster.
  mv -T "$work/pgdata" "$template" 2>/dev/null || :
fi
cp -a "$template/." "$data/"
"""


@cache
def initdb_directory(programs: Path, owner: int) -> Path:
    """Return a directory with only such an `initdb`, for the Postgres in `programs`, run as the user ID `owner`."""
    base = Path(tempfile.mkdtemp(prefix="dbranch-initdb-", dir="/var/tmp"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    base.chmod(0o755)
    templates = base / "templates"
    templates.mkdir()
    os.chown(templates, owner, owner)
    (base / "bin").mkdir()
    program = base / "bin" / "initdb"
    program.write_text(_PROGRAM.format(templates=templates, initdb=programs / "initdb"))
    program.chmod(0o755)
    return program.parent
