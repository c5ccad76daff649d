"""The controller's delays and time limits, in seconds."""

from __future__ import annotations

from typing import Final

# Between two reconciles of an object that is not Ready; the delay grows from here. It does not grow where only a
# reconcile finds out what a person has corrected: users' Secrets and objects of other owners are not watched.
UNREADY_RESYNC_SECONDS: Final = 20.0
# What the API server refuses is tried again after this time, which doubles up to the second one: nothing says that a
# quota was raised.
REFUSED_RETRY_SECONDS: Final = 5.0
REFUSED_LONGEST_RETRY_SECONDS: Final = 60.0
# A source that is gone is in the cache for so long at most.
SOURCE_GONE_RETRY_SECONDS: Final = 1.0
# And for so long it may not have who has the last place of a namespace.
PLACE_TAKEN_RETRY_SECONDS: Final = 1.0
# The number of a project's branches is written so long after it has changed, once for all that came meanwhile.
BRANCH_COUNT_DELAY_SECONDS: Final = 3.0
# What a switch does not need is done so long after it, unless the proxies acknowledge it sooner.
SWITCHED_RESYNC_SECONDS: Final = 0.5
# Which branch is active, in the branches' columns: so long after a switch, whose first sessions log in meanwhile.
ACTIVE_DELAY_SECONDS: Final = 0.5
# Deletions wait for events: of branches, of copies, of proxies. This is for an event that was lost.
DELETION_RESYNC_SECONDS: Final = 60.0
# Proxies that do not answer are not waited for any longer; their sessions end with Postgres.
PROXIES_OBEY_TIMEOUT_SECONDS: Final = 30.0
# So many projects' proxies are replaced at once after an upgrade, each for at most so long, and looked at meanwhile.
MAX_PROXY_ROLLOUTS: Final = 5
PROXY_ROLLOUT_SECONDS: Final = 120.0
PROXY_ROLLOUT_POLL_SECONDS: Final = 5.0
# While a user's Secret is read every UNREADY_RESYNC_SECONDS, all that is made for the project is compared as rarely
# as this.
DRIFT_CHECK_SECONDS: Final = 300.0
# What a watch of the controller's own lists and follows begins anew after this time if it breaks.
OBJECT_WATCH_RETRY_SECONDS: Final = 5.0
# While a branch's data is exchanged new sessions are held, so a proxy that does not say that it does so is not waited
# for any longer: what it lets through is refused by Postgres.
RESTORE_HOLD_SECONDS: Final = 5.0
# A restore that waits for its turn, or for what is missing, looks so often; events come before that.
RESTORE_WAITING_SECONDS: Final = 10.0
# And one that runs, or has left something behind: what it waits for is an event.
RESTORE_RUNNING_SECONDS: Final = 10.0
# A step for which new sessions are held is reported if it takes this long.
RESTORE_REPORTED_SECONDS: Final = 1.0
# How often it is looked which branches and snapshots have expired, and how many snapshots are deleted at a time.
EXPIRY_POLL_SECONDS: Final = 5.0
MAX_EXPIRIES_AT_ONCE: Final = 10
EXPIRED_RETRY_SECONDS: Final = 5.0
# How often it is looked which schedules are due; and while runs wait for others on their node.
SCHEDULE_POLL_SECONDS: Final = 5.0
SCHEDULE_WAITING_POLL_SECONDS: Final = 1.0
# So many scheduled snapshots are taken at once on a node.
MAX_SCHEDULED_SNAPSHOTS: Final = 2
# What was written is in the cache within this time.
CACHE_BEHIND_SECONDS: Final = 60.0
# A branch that has no data so long after it was created holds back no snapshot any more.
CREATION_SECONDS: Final = 120.0
# A run that is not taken so long after its time is late: metrics say so.
SCHEDULE_LATE_SECONDS: Final = 900.0
# So many branches are being deleted at a time when more expire, and one while a branch is being created. A deletion
# or a create that takes longer than this holds up nobody.
MAX_BRANCH_EXPIRIES: Final = 5
DELETION_COUNTS_SECONDS: Final = 60.0
CREATE_COUNTS_SECONDS: Final = 60.0
# An expired branch whose deletion the API server refuses (a webhook, a policy) is tried again so late at last.
EXPIRY_REFUSED_LONGEST_SECONDS: Final = 300.0
# A branch that has expired this long ago, and exists, is worth an alert.
EXPIRY_OVERDUE_SECONDS: Final = 900.0
# How often it is looked whether pools are low; and behind a copy that was deleted in one, how long it takes at most
# until btrfs has freed it and the agent, which looks every minute, has reported the pool.
POOL_RELIEF_POLL_SECONDS: Final = 15.0
POOL_MEASURED_SECONDS: Final = 150.0
# What the API server refuses to delete of a project that is being deleted: its policies may not know that yet.
POLICY_LAG_RETRY_SECONDS: Final = 0.5
# Before that a deletion is not worth a write.
SNAPSHOT_DELETION_REPORT_SECONDS: Final = 5.0
# While the first list of a kind that kopf watches is still read.
CACHE_EMPTY_RETRY_SECONDS: Final = 1.0
# kopf calls a delete handler of an object that still exists so often; the work queue does the work.
KOPF_DELETION_SECONDS: Final = 300.0
