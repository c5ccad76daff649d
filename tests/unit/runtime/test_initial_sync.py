"""The log line that every object which existed at the start has been reconciled."""

from __future__ import annotations

import logging

import pytest

from dbranch.runtime.initial_sync import InitialSync


def test_it_is_logged_once_and_only_of_what_existed_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sync = InitialSync("branches")
    sync.mark_reconciled("team", "shop-one")
    sync.begin([("team", "shop-one"), ("team", "shop-two"), ("team", "shop-three")])
    sync.mark_reconciled("team", "shop-two")
    sync.mark_reconciled("team", "shop-new")
    assert not caplog.records
    sync.mark_reconciled("team", "shop-three")
    sync.begin([("team", "shop-new")])
    sync.mark_reconciled("team", "shop-three")
    [record] = caplog.records
    assert record.getMessage().startswith("all 3 branches reconciled ")


def test_nothing_is_logged_if_nothing_existed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sync = InitialSync("branches")
    sync.begin([])
    sync.mark_reconciled("team", "shop-new")
    assert not caplog.records


def test_reconciles_before_it_began_count(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sync = InitialSync("branches")
    sync.mark_reconciled("team", "shop-main")
    sync.begin([("team", "shop-main")])
    assert len(caplog.records) == 1
