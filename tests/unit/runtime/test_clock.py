"""Timestamps as Kubernetes writes them."""

from __future__ import annotations

import re

from dbranch.runtime.clock import now_rfc3339, seconds_since


def test_the_present_is_zero_to_two_seconds_old() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now_rfc3339())
    assert 0 <= seconds_since(now_rfc3339()) < 2
    assert seconds_since("2026-01-01T00:00:00Z") - seconds_since("2026-01-01T00:01:00+00:00") > 59
    assert seconds_since(None) == seconds_since("") == 0
