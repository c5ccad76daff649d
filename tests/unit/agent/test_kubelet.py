"""Which of kubelet's thresholds count for the disk under the base directory."""

from __future__ import annotations

import pytest

from dbranch.agent.context import Threshold
from dbranch.agent.kubelet import shared_signals, threshold_of
from dbranch.agent.linux.mounts import Mount
from dbranch.api.errors import InvalidInput

NODEFS, IMAGEFS = "nodefs.available", "imagefs.available"


def mount(point: str, device: str, fstype: str = "ext4") -> Mount:
    return Mount(point, "/", device, fstype, "/dev/sda1", True)


BASE = mount("/var/lib/dbranch", "8:1")


@pytest.mark.parametrize(
    ("mounts", "signals"),
    [
        # Not in a container of kubelet's.
        ((), set()),
        ((mount("/etc/hosts", "8:1"), mount("/etc/hostname", "8:1")), {NODEFS, IMAGEFS}),
        ((mount("/etc/hosts", "8:1"), mount("/etc/hostname", "8:2")), {NODEFS}),
        ((mount("/etc/hosts", "8:2"), mount("/etc/hostname", "8:1")), {IMAGEFS}),
        ((mount("/etc/hosts", "8:2"), mount("/etc/hostname", "8:2")), set()),
        # A runtime that keeps the file in memory, or mounts none.
        ((mount("/etc/hosts", "8:1"), mount("/etc/hostname", "0:30", "tmpfs")), {NODEFS, IMAGEFS}),
        ((mount("/etc/hosts", "8:1"),), {NODEFS, IMAGEFS}),
    ],
)
def test_the_disks_are_compared_by_what_the_container_has_of_them(
    mounts: tuple[Mount, ...], signals: set[str]
) -> None:
    assert shared_signals(BASE, mounts) == signals


def test_the_threshold_that_comes_first_counts() -> None:
    hard = {NODEFS: "10%", IMAGEFS: "15%", "memory.available": "100Mi"}
    configuration = {"kubeletconfig": {"evictionHard": hard}}
    assert threshold_of(configuration, frozenset({NODEFS})) == Threshold(part=0.1)
    assert threshold_of(configuration, frozenset({NODEFS, IMAGEFS})).of(1000) == 150
    assert (
        threshold_of({"kubeletconfig": {"evictionHard": {NODEFS: "1Gi"}}}, frozenset({NODEFS})).of(1) == 2**30
    )
    assert threshold_of({"kubeletconfig": {}}, frozenset({NODEFS})).of(1000) == 0
    with pytest.raises(InvalidInput):
        Threshold.parse("much%")
