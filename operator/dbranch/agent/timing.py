"""The agent's delays, time limits and grace periods, in seconds."""

from __future__ import annotations

from typing import Final

# Retries of a reconcile where no event of an object will come. A failure that repeats is retried ever more rarely.
LONGEST_RETRY_SECONDS: Final = 300.0
BUSY_RETRY_SECONDS: Final = 0.5
FAILED_RETRY_SECONDS: Final = 3.0
# Deletions wait for events: of the object and of its pods. These are for an event that was lost.
CONTROLLER_FINALIZER_POLL_SECONDS: Final = 60.0
RELEASE_POLL_SECONDS: Final = 60.0
BRANCH_POD_DELETION_POLL_SECONDS: Final = 5.0
# A pod requests its branch only; a project's pods are its branches', so there hardly ever are any.
POD_DELETION_POLL_SECONDS: Final = 0.3
# A deletion that something on the node holds up is tried ever more rarely, and reported after the first seconds.
HELD_DELETION_LONGEST_RETRY_SECONDS: Final = 30.0
HELD_DELETION_REPORT_SECONDS: Final = 5.0
# A finalizer that was not removed, since others wrote the object meanwhile, is tried again.
FINALIZER_REMOVED_CHECK_SECONDS: Final = 1.0
# kopf calls a delete handler of an object that still exists so often; the work queue does the work.
KOPF_DELETION_SECONDS: Final = 300.0

# Trash is unlinked, not read; only a tenant's nested subvolumes take their time.
TRASH_TIMEOUT_SECONDS: Final = 60.0

# A branch.
BRANCH_RESYNC_SECONDS: Final = 300.0
BRANCH_FAILED_RETRY_SECONDS: Final = 2.0
NO_SPACE_RETRY_SECONDS: Final = 30.0
# The deletion of a branch whose data a newer release wrote waits for a newer agent.
STORAGE_UNCLEAR_RETRY_SECONDS: Final = 60.0
REJECTED_POD_RETRY_SECONDS: Final = 10.0
PREVIOUS_POD_POLL_SECONDS: Final = 1.0
MOUNT_PROPAGATION_RETRY_SECONDS: Final = 30.0
# A Postgres without the role of the agent's sessions, in a pool that was adopted with another user.
MISSING_SUPERUSER_RETRY_SECONDS: Final = 30.0
# A Postgres that served users and does not answer the agent is asked again, and after so long is reported.
UNANSWERED_RETRY_SECONDS: Final = 5.0
UNANSWERED_SECONDS: Final = 30.0
# After a bind, the time in which the script in the slot has to see the branch; it looks every two seconds.
MOUNT_PROPAGATION_TIMEOUT_SECONDS: Final = 5.0
# After Postgres has reloaded its settings, which of them need a restart is known.
RELOADED_SETTINGS_POLL_SECONDS: Final = 0.3
# A branch that has just begun to accept gets verifiers of its own a little later: it competes with no start.
OWN_VERIFIERS_DELAY_SECONDS: Final = 2.0
# A reconcile that is followed by another one within this time leaves it to that to measure the branch.
MEASURED_LATER_SECONDS: Final = 5.0
# Without the CHECKPOINT on its source a branch only starts slower.
CHECKPOINT_TIMEOUT_SECONDS: Final = 10.0
# For a Postgres that needs no shutdown checkpoint: its data is deleted next, or its pool is read-only.
NO_CHECKPOINT_GRACE_SECONDS: Final = 2

# A snapshot.
SNAPSHOT_FAILED_RETRY_SECONDS: Final = 3.0
SNAPSHOT_WATCH_RETRY_SECONDS: Final = 5.0
# Its deletion waits for a branch that is being made of it, of which no event comes.
SNAPSHOT_COPY_POLL_SECONDS: Final = 1.0
# At first, until the data that a restore or a deletion leaves has the name of its snapshot; no event comes after a
# restart of the agent.
SNAPSHOT_AWAITED_POLL_SECONDS: Final = 1.0
# So long after its time a scheduled snapshot is still taken: later it would be another moment's.
SCHEDULED_SNAPSHOT_SECONDS: Final = 600.0
# So long the record of a restore may be there before the restore that names it.
SNAPSHOT_RECORD_GRACE_SECONDS: Final = 60.0
# What can be measured within this time is reported together with the snapshot itself.
QUICK_MEASURE_SECONDS: Final = 0.2

# A restore. Each polls what no event announces: others of the node, pods that end, a switch that is tried again.
RESTORE_QUEUED_POLL_SECONDS: Final = 1.0
RESTORE_POD_DELETION_POLL_SECONDS: Final = 0.5
RESTORE_SWITCH_RETRY_SECONDS: Final = 0.1
RESTORE_START_POLL_SECONDS: Final = 2.0
# While it is switched, new sessions are held: what is not exchanged within this time is taken back.
RESTORE_SWITCH_TIMEOUT_SECONDS: Final = 10.0
# A preparation that fails all this time is given up, and one that has not come to an end after the second.
RESTORE_FAILING_SECONDS: Final = 10.0
RESTORE_PREPARATION_TIMEOUT_SECONDS: Final = 600.0
# A session ends when its backend sees the signal.
SESSIONS_END_FIRST_POLL_SECONDS: Final = 0.002
SESSIONS_END_LONGEST_POLL_SECONDS: Final = 0.1
SESSIONS_END_TIMEOUT_SECONDS: Final = 3.0

# initdb of a new project.
INITDB_RETRY_SECONDS: Final = 10.0
INITDB_DONE_POLL_SECONDS: Final = 0.1
INITDB_PROMOTED_RETRY_SECONDS: Final = 0.05
INITDB_GRACE_SECONDS: Final = 5

# The start of a Postgres. In a warm slot the reconcile itself waits this long: then one write reports everything.
WARM_START_TIMEOUT_SECONDS: Final = 1.0
START_WAIT_SECONDS: Final = 5.0
START_FAILED_RETRY_SECONDS: Final = 0.5
POD_ADDRESS_POLL_SECONDS: Final = 0.05
# Postgres is tried this often even if its PID file does not say that it is ready.
START_TRY_SECONDS: Final = 0.25

# SQL sessions. Beyond the server's own time limits, the time after which the agent closes the socket.
SQL_TIMEOUT_SECONDS: Final = 5.0
SQL_WATCHDOG_EXTRA_SECONDS: Final = 1.0
# The process that forks the sessions starts Python; it answers nothing else than its start.
SQL_PROCESS_START_SECONDS: Final = 30.0
SQL_PROCESS_ANSWER_SECONDS: Final = 5.0
# A branch's start takes two or three sessions.
SQL_PROCESS_IDLE_SECONDS: Final = 10.0
# A PID file says that Postgres is ready before it has to be true: a tenant may write it.
START_TRY_LIMIT_SECONDS: Final = 0.02
# A reload is looked at until the session has the new settings: they are passed on within a millisecond or two.
RELOAD_FIRST_POLL_SECONDS: Final = 0.0005
RELOAD_LONGEST_POLL_SECONDS: Final = 0.1
RELOAD_TIMEOUT_SECONDS: Final = 1.0

# The token by which the agent reads its projects' Secrets: how long it is valid, and when another one is asked for.
NODE_TOKEN_SECONDS: Final = 3600
NODE_TOKEN_RENEWAL_SECONDS: Final = 2400.0

# A project's pool.
PROJECT_RESYNC_SECONDS: Final = 60.0
BTRFS_MISSING_RETRY_SECONDS: Final = 60.0
POOL_FAILED_RETRY_SECONDS: Final = 30.0
POOL_DETACH_FAILED_RETRY_SECONDS: Final = 5.0
READ_ONLY_POOL_POLL_SECONDS: Final = 10.0
REMOUNT_RETRY_SECONDS: Final = 0.05
# A pool that becomes read-only again this soon after a remount is left to a person.
REMOUNT_BACKOFF_SECONDS: Final = 600.0

# Warm slots: between two reconciles that nothing triggered, and between two lists of the node's objects.
WARM_RESYNC_SECONDS: Final = 60.0
WARM_FAILED_RETRY_SECONDS: Final = 3.0
WARM_POD_DELETION_POLL_SECONDS: Final = 0.5
# Branches that are starting go first, also those of a burst: for so long after the first warm slot was missing. Then
# the refill goes on beside them, else a stream of bursts would hold it up for ever.
WARM_REFILL_DELAY_SECONDS: Final = 20.0
WARM_IDLE_POLL_SECONDS: Final = 1.0
# Branches of a burst come one after the other: after the last one the node is quiet for so long before the refill.
WARM_QUIET_SECONDS: Final = 0.5
# A warm pod that does not run after this holds up no other.
WARM_POD_START_SECONDS: Final = 30.0
# What counts as one burst, how long a burst keeps its number of warm slots, and after which time half of it is left.
WARM_BURST_SECONDS: Final = 60.0
WARM_DEMAND_HOLD_SECONDS: Final = 600.0
WARM_DEMAND_HALF_LIFE_SECONDS: Final = 600.0
# No warm slot is kept on a node that had no room for a branch's pod.
NODE_FULL_SECONDS: Final = 60.0
# A warm pod that the node had no room for counts for its class this long; then it is tried again.
REJECTED_WARM_POD_RETRY_SECONDS: Final = 600.0
# A class whose pods the API server rejects is tried again after this, then less and less often.
REJECTED_CLASS_RETRY_SECONDS: Final = 10.0
WARM_POD_GRACE_SECONDS: Final = 2

# A branch whose tenant made more files and extents than are counted in this time is not measured.
MEASURE_SECONDS: Final = 60.0

# Sweeps of the node.
HOUSEKEEPING_INTERVAL_SECONDS: Final = 60.0
# Well below the time after which a loop that does not come round is taken for stuck.
LONGEST_HOUSEKEEPING_INTERVAL_SECONDS: Final = 300.0
# Consecutive rounds of this process in which no object named something, before that counts. No clock plays a part.
ORPHAN_ROUNDS: Final = 10
# A slot's directory is created before its pod, which follows within a few requests.
ORPHAN_SLOT_ROUNDS: Final = 2
# A process of a pod that was deleted by force may go on writing into its slot.
SLOT_EMPTYING_TIMEOUT_SECONDS: Final = 10.0
OWN_POD_WATCH_RETRY_SECONDS: Final = 5.0

# The free bytes of the node's disk: what a writer can take until it is noticed.
SPACE_POLL_SECONDS: Final = 1.0
# While the disk is short. btrfs destroys a deleted subvolume in the background.
TRIM_INTERVAL_SECONDS: Final = 3.0
# Kubelet's configuration is read once, when the agent starts.
KUBELET_TIMEOUT_SECONDS: Final = 5.0

# Postgres pods. A fast shutdown writes a checkpoint first.
POSTGRES_GRACE_SECONDS: Final = 300
# The readiness probe waits inside, so that the first one succeeds.
READINESS_TIMEOUT_SECONDS: Final = 10
# Each probe is a process that the node starts: with two hundred pods a period of ten seconds took two
# processors (tried). Only people who look at the pod wait for it.
READINESS_PERIOD_SECONDS: Final = 120
POD_WATCH_RETRY_SECONDS: Final = 1.0
# How often it is looked whether branches with schedules have been written to.
WRITTEN_POLL_SECONDS: Final = 10.0
