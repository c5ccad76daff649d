"""The controller's delays and time limits, in seconds."""

from __future__ import annotations

from typing import Final

# After a reconcile that raised an error.
FAILED_RETRY_SECONDS: Final = 2.0
# Between two reconciles of an object that is not Ready, or whose password is in a user's Secret: the controller does
# not watch users' Secrets, nor what others do to its own objects.
UNREADY_RESYNC_SECONDS: Final = 20.0

# A project's deletion waits until its branches are gone, a branch's until snapshots of it are taken and all proxies
# obey the route without it.
BRANCHES_GONE_POLL_SECONDS: Final = 0.5
SNAPSHOTS_TAKEN_POLL_SECONDS: Final = 0.3
PROXIES_OBEY_POLL_SECONDS: Final = 0.2
# Proxies that do not answer are not waited for any longer; their sessions end with Postgres.
PROXIES_OBEY_TIMEOUT_SECONDS: Final = 30.0
