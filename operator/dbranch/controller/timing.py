"""The controller's delays and time limits, in seconds."""

from __future__ import annotations

from typing import Final

# Between two reconciles of an object that is not Ready; the delay grows from here. It does not grow where only a
# reconcile finds out what a person has corrected: users' Secrets and objects of other owners are not watched.
UNREADY_RESYNC_SECONDS: Final = 20.0
# Deletions wait for events: of branches, of copies, of proxies. This is for an event that was lost.
DELETION_RESYNC_SECONDS: Final = 60.0
# Proxies that do not answer are not waited for any longer; their sessions end with Postgres.
PROXIES_OBEY_TIMEOUT_SECONDS: Final = 30.0
# kopf calls a delete handler of an object that still exists so often; the work queue does the work.
KOPF_DELETION_SECONDS: Final = 300.0
