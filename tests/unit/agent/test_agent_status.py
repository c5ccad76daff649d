"""What an agent writes to `status.node`: sizes when they read differently, messages without control characters."""

from __future__ import annotations

from dbranch.agent.status import drop_insignificant, size_fields
from dbranch.api.conditions import Finding, Reason, printable


def test_file_names_of_a_tenant_cannot_control_a_terminal() -> None:
    finding = Finding(Reason.SOURCE_UNSAFE, "a\x1b[2J\nb\udcff")
    assert finding.as_dict()["message"] == "a\\x1b[2J b\\udcff"
    assert printable("plain, ünïcode") == "plain, ünïcode"


def test_sizes_are_written_when_they_read_differently() -> None:
    current = size_fields("unique", 10_000_000)
    assert drop_insignificant(current, size_fields("unique", 10_000_100)) == {
        "uniqueSize": current["uniqueSize"]
    }
    assert drop_insignificant(current, size_fields("unique", 20_000_000))["uniqueBytes"] == 20_000_000


def test_free_bytes_of_the_node_are_written_when_they_changed_by_more_than_the_tolerance() -> None:
    current = size_fields("hostFree", 100 * 2**30)
    assert drop_insignificant(current, size_fields("hostFree", 97 * 2**30)) == {}
    changed = size_fields("hostFree", 90 * 2**30)
    assert drop_insignificant(current, changed) == changed
    assert drop_insignificant({}, current) == current
