"""The wheel contains both packages, the scripts that run in pods, and the entry points."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("operator", "cli"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*build, "-w", str(tmp_path)], cwd=source, check=True)
    (wheel,) = tmp_path.glob("dbranch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        entry_points = next(n for n in files if n.endswith("entry_points.txt"))
        entry_points_text = archive.read(entry_points).decode()
    for shell_script in (ROOT / "operator").rglob("*.sh"):
        assert str(shell_script.relative_to(ROOT / "operator")) in files
    for root in ("operator/dbranch", "cli/dbranch_cli"):
        for module in (ROOT / root).rglob("*.py"):
            assert str(module.relative_to((ROOT / root).parent)) in files
    for script in ("dbranch", "kubectl-dbranch", "kubectl_complete-dbranch", "dbranch-server"):
        assert f"{script} = " in entry_points_text
