"""The programs that an installation of the command line has, for a PATH of a test's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_IMPORTS: Final = {
    "dbranch": "main import main",
    "kubectl-dbranch": "main import main",
    "kubectl_complete-dbranch": "completion import complete_for_kubectl as main",
}


def write_entry_points(directory: Path) -> None:
    """Write them into a directory; they import this checkout's code if PYTHONPATH leads there."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, imported in _IMPORTS.items():
        program = directory / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nsys.argv[0] = {name!r}\nfrom dbranch_cli.{imported}\nmain()\n"
        )
        program.chmod(0o755)
