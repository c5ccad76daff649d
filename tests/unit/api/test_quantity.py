from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.api.errors import InvalidInput
from dbranch.api.quantity import format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1", 1),
        ("10Gi", 10 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("10G", 10**10),
        ("100m", 1),
        ("1e3", 1000),
        ("2E", 2 * 10**18),
        ("1Ei", 2**60),
        (512, 512),
    ],
)
def test_parse_bytes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "Gi", "10 Gi", "10gb", "1.2.3", "ten", "10Gib", "--1"])
def test_parse_bytes_rejects(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a quantity"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1Ki"),
        (38_797_312, "37Mi"),
        (39 * 2**30 + 2**27, "39.1Gi"),
        (2**70, "1024Ei"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 2**62))
def test_a_formatted_count_parses_as_a_quantity_near_it(count: int) -> None:
    assert abs(parse_bytes(format_bytes(count)) - count) <= max(1, count * 0.06)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("2m", 120), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600), ("45", 45), (7, 7), ("0s", 0)],
)
def test_parse_seconds(text: str | int, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["s", "1x", "1m30", "-5s", "5 s", "1..5s"])
def test_parse_seconds_rejects(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a duration"):
        parse_seconds(text)
