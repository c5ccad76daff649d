"""The catalog of reasons holds every reason that the code produces, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import dbranch
from dbranch.api.catalog import CATALOG
from dbranch.api.conditions import Reason

PACKAGE = Path(next(iter(dbranch.__path__)))


def test_every_reason_is_in_the_catalog_with_a_condition_that_carries_it() -> None:
    assert set(CATALOG) == set(Reason)
    assert all(entry.project or entry.branch or entry.snapshot or entry.restore for entry in CATALOG.values())


def test_every_reason_is_produced_by_a_role() -> None:
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "api"
    )
    produced = {Reason[name] for name in re.findall(r"\bReason\.([A-Z_]+)", source)}
    assert produced == set(Reason)


def test_entries_are_sentences() -> None:
    for entry in CATALOG.values():
        for text in (entry.meaning, entry.remedy):
            assert not text or text.endswith("."), text
