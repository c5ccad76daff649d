"""Files, functions and links that the documents name exist."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
)
# Where a path in a document may begin.
BASES = (ROOT, ROOT / "operator" / "dbranch", ROOT / "cli" / "dbranch_cli")
# A file on a node, and the pattern that the decision records' names follow. NAME stands for what a reader chooses.
NOT_IN_THE_TREE = {"marker.json", "NNN-title.md"}

_FILE = re.compile(r"([\w./*-]+\.(?:py|sh|yaml|toml|md|json|txt|lock))(?::([A-Za-z_]\w*))?")
_DIRECTORY = re.compile(r"(?:hack|tests|operator|cli|helm|docs|crds)/[\w./-]*")
_SCRIPT = re.compile(r"(?<![\w/])hack/[a-z]+(?![\w/.])")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def broken_references(page: str) -> Iterator[str]:
    """Yield each reference of a page to something that does not exist."""
    text, directory = (ROOT / page).read_text(encoding="utf-8"), (ROOT / page).parent
    for quoted in re.findall(r"`([^`\s]+)`", text):
        if "NAME" in quoted:
            continue
        file = _FILE.fullmatch(quoted)
        if file and file[1] not in NOT_IN_THE_TREE:
            paths = [path for base in (*BASES, directory) for path in base.glob(file[1]) if path.is_file()]
            if not paths and "/" not in file[1]:
                paths = [path for path in ROOT.rglob(file[1]) if ".git" not in path.parts]
            if not paths or (file[2] and not any(_defines(path, file[2]) for path in paths)):
                yield quoted
        elif _DIRECTORY.fullmatch(quoted) and not (ROOT / quoted).exists():
            yield quoted
    yield from (
        link
        for link in _LINK.findall(text)
        if link not in NOT_IN_THE_TREE and not (directory / link).exists()
    )
    yield from (script for script in _SCRIPT.findall(text) if not (ROOT / script).exists())


def _defines(path: Path, name: str) -> bool:
    pattern = rf"(?m)^\s*(async def|def|class) {name}\b|^{name}\b"
    return re.search(pattern, path.read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    assert list(broken_references(page)) == []
