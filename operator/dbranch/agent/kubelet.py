"""Below which free space of the disk under the base directory kubelet evicts pods. Reads only."""

from __future__ import annotations

import json
import logging
import ssl
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dbranch.agent.context import Threshold
from dbranch.agent.layout import Layout
from dbranch.agent.linux.mounts import Mount, mount_containing, mounts_at, read_mounts
from dbranch.agent.timing import KUBELET_TIMEOUT_SECONDS
from dbranch.api.errors import InvalidInput

logger = logging.getLogger(__name__)

_NODEFS, _IMAGEFS = "nodefs.available", "imagefs.available"
_PORT: Final = 10250
_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
# A container has these files from kubelet's directory, and from that of the container runtime: they are on the disks
# at which kubelet looks, wherever its directory is.
_FILES: Final = {_NODEFS: Path("/etc/hosts"), _IMAGEFS: Path("/etc/hostname")}


def observe_eviction(layout: Layout, address: str, fallback: str) -> Threshold:
    """Return the free space of the disk under the base directory below which kubelet evicts pods.

    `address`: the node's, at which kubelet answers. `fallback`: the threshold where it does not. Raises InvalidInput
    if that is neither a percentage nor a quantity.
    """
    default = Threshold.parse(fallback)
    signals = shared_signals(mount_containing(layout.base), read_mounts())
    if not signals:
        return Threshold()
    logger.warning(
        "%s is on the disk of %s, so kubelet's thresholds count for it; a disk of its own is better",
        layout.base,
        " and ".join(sorted({_NODEFS: "kubelet", _IMAGEFS: "the images"}[signal] for signal in signals)),
    )
    try:
        threshold = threshold_of(read_configuration(address), signals)
    except (OSError, ValueError, InvalidInput, AttributeError) as error:
        logger.warning(
            "kubelet does not say below which free space it evicts (%s); agent.evictionThreshold counts: %s",
            error,
            fallback,
        )
        return default
    logger.info("kubelet evicts below %.1f %% or %d bytes free", threshold.part * 100, threshold.size)
    return threshold


def shared_signals(base: Mount | None, mounts: tuple[Mount, ...]) -> frozenset[str]:
    """Return kubelet's signals whose filesystem holds the base directory; none outside of a container of kubelet's.

    Mountinfo's device is that of the filesystem, also where `stat` shows another one for each subvolume.
    """
    devices = {signal: at[-1] for signal, path in _FILES.items() if (at := mounts_at(path, mounts))}
    if base is None or _NODEFS not in devices:
        return frozenset()
    shared = {signal for signal, mount in devices.items() if mount.device == base.device}
    images = devices.get(_IMAGEFS)
    if _NODEFS in shared and (images is None or images.fstype == "tmpfs"):
        # Some runtimes keep this file in memory: then the images are where kubelet is, as a rule.
        shared.add(_IMAGEFS)
    return frozenset(shared)


def threshold_of(configuration: Mapping[str, Any], signals: frozenset[str]) -> Threshold:
    """Return the threshold that comes first of those signals in kubelet's configuration."""
    hard = configuration["kubeletconfig"].get("evictionHard") or {}
    thresholds = [Threshold.parse(str(hard[signal])) for signal in signals if signal in hard]
    return Threshold(
        max((threshold.part for threshold in thresholds), default=0.0),
        max((threshold.size for threshold in thresholds), default=0),
    )


def read_configuration(address: str) -> Any:
    """Return kubelet's `/configz`. Raises OSError or ValueError if it does not answer, or not with that."""
    host = f"[{address}]" if ":" in address else address
    request = urllib.request.Request(
        f"https://{host}:{_PORT}/configz", headers={"Authorization": f"Bearer {_TOKEN.read_text().strip()}"}
    )
    # Kubelet's certificate is its own, as a rule. Who answers at the node's own address is the node.
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(request, timeout=KUBELET_TIMEOUT_SECONDS, context=trusting) as answer:
        return json.load(answer)
