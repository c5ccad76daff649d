"""The word that every object which was there at the start has been visited."""

from __future__ import annotations

import logging

import pytest

from dbranch.runtime.initial_sync import InitialSync


def test_it_is_said_once_and_only_of_what_was_there_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = InitialSync("branches")
    first.visited("team", "shop-one")
    first.begin([("team", "shop-one"), ("team", "shop-two"), ("team", "shop-three")])
    first.visited("team", "shop-two")
    first.visited("team", "shop-later")
    assert not caplog.records
    first.visited("team", "shop-three")
    first.begin([("team", "shop-later")])
    first.visited("team", "shop-three")
    [record] = caplog.records
    assert record.getMessage().startswith("all 3 branches visited ")


def test_nothing_is_said_where_nothing_was_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = InitialSync("branches")
    first.begin([])
    first.visited("team", "shop-later")
    assert not caplog.records


def test_visits_that_came_before_it_began_are_enough(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = InitialSync("branches")
    first.visited("team", "shop-main")
    first.begin([("team", "shop-main")])
    assert len(caplog.records) == 1
