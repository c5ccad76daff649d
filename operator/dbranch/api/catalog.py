"""What each reason means and what to do about it, by condition: the source of docs/conditions.md.

Status and Stalled are not repeated here: `api.conditions` says them. A test holds the catalog against `Reason`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dbranch.api.conditions import Condition, Reason


@dataclass(frozen=True)
class Entry:
    """A reason for users: `meaning` in one sentence, `remedy` in one sentence ("" where nothing is to be done).

    `project`, `branch`, `snapshot` and `restore` are the conditions that carry it on an object of that kind.
    """

    meaning: str
    remedy: str = ""
    project: tuple[Condition, ...] = ()
    branch: tuple[Condition, ...] = ()
    snapshot: tuple[Condition, ...] = ()
    restore: tuple[Condition, ...] = ()


def _both(condition: Condition, meaning: str, remedy: str = "") -> Entry:
    return Entry(meaning, remedy, (condition,), (condition,))


def _project(condition: Condition, meaning: str, remedy: str = "") -> Entry:
    return Entry(meaning, remedy, project=(condition,))


def _branch(condition: Condition, meaning: str, remedy: str = "") -> Entry:
    return Entry(meaning, remedy, branch=(condition,))


def _snapshot(meaning: str, remedy: str = "") -> Entry:
    return Entry(meaning, remedy, snapshot=(Condition.READY,))


def _all(condition: Condition, meaning: str, remedy: str = "") -> Entry:
    return Entry(meaning, remedy, (condition,), (condition,), (condition,))


def _restore(condition: Condition, meaning: str, remedy: str = "") -> Entry:
    # A refresh that fails says why in its branch, too.
    branch = (Condition.REFRESHED,) if condition == Condition.FAILED else ()
    return Entry(meaning, remedy, branch=branch, restore=(condition,))


_READY, _SCHEDULED, _STORAGE = Condition.READY, Condition.SCHEDULED, Condition.STORAGE_READY
_POSTGRES, _ROUTED, _BLOCKED = Condition.POSTGRES_READY, Condition.ROUTED, Condition.DELETION_BLOCKED
_SNAPSHOTTED, _REFRESHED = Condition.SNAPSHOTTED, Condition.REFRESHED
_RECONCILING, _COMPLETE, _FAILED = Condition.RECONCILING, Condition.COMPLETE, Condition.FAILED
_UNEXPIRED = Condition.EXPIRATION_BLOCKED

CATALOG: Final[Mapping[Reason, Entry]] = {
    Reason.AVAILABLE: _all(
        _READY, "Every step is done; a project or branch can be connected to, a snapshot can be a source."
    ),
    Reason.PENDING: Entry(
        "Nothing is reported yet, or a change of state is under way.",
        project=(_READY, _STORAGE, _POSTGRES),
        branch=(_READY, _STORAGE, _POSTGRES),
        snapshot=(_READY,),
    ),
    Reason.STOPPED: Entry(
        "It is stopped, as spec.state asks; its data stays.",
        "Set spec.state to Running, or run `dbranch resume`.",
        project=(_READY, _STORAGE, _POSTGRES),
        branch=(_READY, _STORAGE, _POSTGRES),
    ),
    Reason.DELETING: _all(
        _READY, "It is being deleted; no new session reaches it, and it is no source any more."
    ),
    Reason.BOUND: _both(_SCHEDULED, "It is bound to a node; the binding never changes."),
    Reason.ABOVE_LIMIT: _both(
        _SCHEDULED,
        "It is bound to a node, and exceeds a limit of its namespace that was set later; it goes on as it is, and "
        "can be changed as long as it exceeds the limit by no more than now.",
        "Lower or delete what the message names, or ask a cluster administrator to raise the limit (docs/limits.md).",
    ),
    Reason.NO_ELIGIBLE_NODE: _project(
        _SCHEDULED,
        "No node with a ready agent may hold the project: labels, taints, free space, or no agent at all.",
        "The message names what is missing: label or uncordon a node, free space; see the DaemonSet dbranch-agent.",
    ),
    Reason.NODE_NOT_READY: Entry(
        "The node is not Ready, so the state of what it holds is unknown.",
        "Bring the node back; for one that is away for good, set the annotation dbranch.io/abandon-node.",
        project=(_SCHEDULED,),
        branch=(_SCHEDULED,),
        snapshot=(_READY,),
        restore=(_RECONCILING,),
    ),
    Reason.AGENT_NOT_REPORTING: _both(
        _SCHEDULED,
        "The node's agent is not Ready, so the state of what the node holds is unknown.",
        "See the agent's pod on that node: kubectl describe, and its log.",
    ),
    Reason.NODE_GONE: Entry(
        "The Node object and its agent are gone; what the node held is out of reach.",
        "Bring the node back under its name, or delete the object: nothing is waited for then.",
        project=(_SCHEDULED,),
        branch=(_SCHEDULED,),
        snapshot=(_READY,),
    ),
    Reason.PROJECT_NOT_FOUND: Entry(
        "The DBProject does not exist in this namespace, or is being deleted.",
        "Apply the DBProject, or make the object again with another spec.project.",
        branch=(_SCHEDULED,),
        snapshot=(_READY,),
    ),
    Reason.PROJECT_NOT_READY: _branch(
        _SCHEDULED, "The project is not bound to a node yet.", "See the project's conditions."
    ),
    Reason.SOURCE_NOT_FOUND: Entry(
        "No branch of the project has the name in spec.source; a restore waits for its source, also for a snapshot, "
        "until its startingDeadline.",
        "Make that branch, or make the object again with a source that exists; the message names them.",
        branch=(_SCHEDULED,),
        restore=(_RECONCILING, _FAILED),
    ),
    Reason.SOURCE_NOT_READY: Entry(
        "The source branch is not stored yet; of a restore: the source, also a snapshot.",
        "See the source's conditions.",
        branch=(_SCHEDULED,),
        restore=(_RECONCILING,),
    ),
    Reason.NAME_TAKEN: Entry(
        "An object that is not dbranch's, or is another project's, has a name that is needed; it is left alone.",
        "Delete or rename the object in the message, or choose another name.",
        project=(_ROUTED,),
        branch=(_SCHEDULED,),
    ),
    Reason.OBJECT_REFUSED: Entry(
        "The API server refuses an object that is needed: a quota, an admission webhook, a policy, its validation. "
        "The message has its sentence. All else goes on, a switch, too; it is tried again, at last every minute. A "
        "project whose connection string works has it in Ready alone.",
        "Do what the sentence asks for: raise the quota, correct the policy or the object.",
        project=(_READY, _ROUTED),
        branch=(_SCHEDULED, _SNAPSHOTTED, _REFRESHED),
        restore=(_RECONCILING,),
    ),
    Reason.WAITING_FOR_DELETION: Entry(
        "An object that has a name that is needed is still being deleted.",
        "See what holds it: its finalizers.",
        project=(_READY, _ROUTED),
        branch=(_SCHEDULED,),
    ),
    Reason.LIMIT_EXCEEDED: Entry(
        "The namespace has as many projects or branches as a limit allows, the project has 1000 branches, or as many "
        "snapshots as a limit allows of it or of one branch; nothing "
        "is made, and those that were made earlier are not affected. A project whose root branch is refused says so "
        "in PostgresReady.",
        "Delete what is not needed any more, or ask a cluster administrator to raise the limit (docs/limits.md).",
        project=(_SCHEDULED, _POSTGRES),
        branch=(_SCHEDULED, _SNAPSHOTTED),
        snapshot=(_READY,),
    ),
    Reason.SNAPSHOT_NOT_FOUND: _branch(
        _SCHEDULED,
        "No DBSnapshot of the project has the name in spec.sourceSnapshot, or it is being deleted.",
        "Make that snapshot, or make the branch again from one that exists: `dbranch snapshot list`.",
    ),
    Reason.SNAPSHOT_NOT_READY: _branch(
        _SCHEDULED, "The snapshot is not taken yet, or is lost.", "See the snapshot's conditions."
    ),
    Reason.AGENT_TOO_OLD: Entry(
        "The node's agent is of a release that knows no snapshots or restores; nothing that needs them begins on the "
        "node until it is newer.",
        "Wait for the rollout of the DaemonSet dbranch-agent, or upgrade the chart.",
        branch=(_SCHEDULED,),
        snapshot=(_READY,),
        restore=(_RECONCILING,),
    ),
    Reason.ON_SCHEDULE: Entry(
        "Snapshots of the branch are taken, or its data is replaced, as its schedules say.",
        branch=(_SNAPSHOTTED, _REFRESHED),
    ),
    Reason.INVALID_SCHEDULE: Entry(
        "A schedule is no five fields of cron that have a time, or names a time zone that does not exist.",
        "Correct the schedule that the message names, in spec.snapshots or spec.refresh.",
        branch=(_SNAPSHOTTED, _REFRESHED),
    ),
    Reason.SNAPSHOT_MISSED: _snapshot(
        "It is the record of a schedule's run, and its time has passed; a record is never taken again.",
        "Delete it.",
    ),
    Reason.SNAPSHOT_LOST: _snapshot(
        "Its data is missing: on the node the subvolume of its UID is gone, or it is the record of a restore or "
        "deletion that was made again; nothing is ever taken in its place.",
        "Delete it; where data should be there, look at the node's disk first.",
    ),
    Reason.RESTORING: _branch(
        _READY,
        "A DBRestore exchanges its data: sessions end, new ones are held for less than a second or so.",
    ),
    Reason.QUEUED: _restore(
        _RECONCILING,
        "Another restore of the branch is going on or was made earlier; they are done one after the other.",
    ),
    Reason.PROJECT_STOPPED: _restore(
        _RECONCILING,
        "The project is stopped; the restore waits for it, until its startingDeadline.",
        "Resume the project: `dbranch resume --all`.",
    ),
    Reason.CLEANING: _restore(
        _RECONCILING, "What a copy must not keep of its source is removed; the old data serves on."
    ),
    Reason.SWITCHING: _restore(
        _RECONCILING, "The new data is ready; new sessions are held, those of the old data end."
    ),
    Reason.STOPPING: _restore(_RECONCILING, "The sessions of the old data end."),
    Reason.OPENING: _restore(
        _RECONCILING,
        "Postgres starts on the new data, which nobody else reaches yet; the old data serves on.",
    ),
    Reason.RESTORED: _restore(
        _COMPLETE, "The branch has the data of the source; status.undoSnapshot has what it had before."
    ),
    Reason.ALREADY_APPLIED: _restore(
        _COMPLETE,
        "A restore of this name was done on the branch before, so nothing was done again: the object was made anew "
        "by Git, a backup or a saved file.",
        "To restore again, make a DBRestore with another name.",
    ),
    Reason.NO_SOURCE: _restore(
        _FAILED,
        "Neither spec.source nor spec.sourceSnapshot is named, and the root branch has no origin; or the branch is "
        "named as its own source.",
        "Name another branch or a snapshot in another DBRestore.",
    ),
    Reason.BRANCH_REPLACED: _restore(
        _FAILED,
        "The branch was deleted, or made again under its name, which is another database.",
        "Make another DBRestore.",
    ),
    Reason.QUEUE_FULL: _restore(
        _FAILED, "Five restores of the branch wait already.", "Make it again when they are done."
    ),
    Reason.STARTING_DEADLINE_EXCEEDED: _restore(
        _FAILED,
        "What the message names was missing for as long as spec.startingDeadline; nothing was done.",
        "Provide it, and make another DBRestore.",
    ),
    Reason.START_FAILED: _restore(
        _FAILED,
        "Postgres did not start on the new data, or did not take it over in time; the branch has its old data.",
        "See the message; make another DBRestore.",
    ),
    Reason.CANCELED: _restore(
        _FAILED,
        "The restore was taken back before it was done; the branch has its old data.",
        "Make another DBRestore.",
    ),
    Reason.RECONCILE_FAILED: Entry(
        "A value cannot be used, or the controller has met a fault of its own; it is tried again, at last every "
        "five minutes.",
        "Correct what the message names; the controller's log has more.",
        project=(_READY, _ROUTED),
        branch=(_SCHEDULED,),
        restore=(_RECONCILING,),
    ),
    Reason.POOL_MOUNTED: _project(_STORAGE, "The project's pool is attached and mounted."),
    Reason.POOL_LOW: Entry(
        "The pool, or the node's disk below it, is almost full; what runs goes on; no restore begins that keeps the "
        "old data.",
        "Delete branches, raise spec.storage.size, or free space on the node; `undo: Discard` keeps nothing.",
        project=(_STORAGE,),
        restore=(_FAILED,),
    ),
    Reason.CREATING_POOL: Entry(
        "The pool's image, filesystem or mount is being made.",
        project=(_STORAGE,),
        branch=(_STORAGE,),
    ),
    Reason.ATTACH_FAILED: _project(
        _STORAGE,
        "The pool cannot be attached or mounted now; it is tried again.",
        "See the message and the agent's log.",
    ),
    Reason.POOL_FULL: Entry(
        "The pool has too little space for a new branch or snapshot; what runs goes on.",
        "Delete branches or snapshots, or raise spec.storage.size.",
        branch=(_STORAGE,),
        snapshot=(_READY,),
        restore=(_FAILED,),
    ),
    Reason.NODE_DISK_LOW: Entry(
        "The node's disk has too little space for anything new; what runs goes on.",
        "Free space on the node's disk that holds the base directory.",
        project=(_STORAGE,),
        branch=(_STORAGE,),
        snapshot=(_READY,),
        restore=(_FAILED,),
    ),
    Reason.POOL_LOST: _project(
        _STORAGE,
        "The pool that was made is missing, or another one is in its place; it is never made again.",
        "Look at the node's disk: is the base directory mounted, is it the same machine? docs/storage.md says more.",
    ),
    Reason.POOL_DAMAGED: _project(
        _STORAGE,
        "The image holds no usable filesystem, or btrfs read other blocks than were written.",
        "Dump what can be read; run btrfs scrub or btrfs check on the node; then btrfs device stats --reset.",
    ),
    Reason.BTRFS_MISSING: _project(
        _STORAGE,
        "The node's kernel has no btrfs or no loop devices.",
        "Load the modules btrfs and loop on the node.",
    ),
    Reason.STORED: _branch(_STORAGE, "The branch is a subvolume of the project's pool, on disk for good."),
    Reason.SNAPSHOTTING: Entry(
        "The snapshot of the source is being made; something holds it up for a moment.",
        branch=(_STORAGE,),
        snapshot=(_READY,),
        restore=(_RECONCILING,),
    ),
    Reason.INITIALIZING: _branch(_STORAGE, "initdb runs for the project's root branch."),
    Reason.SNAPSHOT_FAILED: Entry(
        "The snapshot could not be made; it is tried again. In Snapshotted: the last one of a schedule was not "
        "taken, as the message says; the next run takes another.",
        "See the message and the agent's log.",
        branch=(_STORAGE, _SNAPSHOTTED),
        snapshot=(_READY,),
    ),
    Reason.INITDB_FAILED: _branch(
        _STORAGE,
        "initdb failed; it is tried again on a fresh subvolume.",
        "Correct what the message names: image, user, database.",
    ),
    Reason.SOURCE_UNSAFE: Entry(
        "The source keeps data outside its subvolume (tablespace, link, nested subvolume); no copy of it is whole.",
        "Move the data into PGDATA; the message names the path.",
        branch=(_STORAGE,),
        snapshot=(_READY,),
        restore=(_FAILED,),
    ),
    Reason.SOURCE_DELETED: _branch(
        _STORAGE,
        "The source was deleted before the copy of it was taken; nothing that was stored is lost.",
        "Delete the branch, and make it again from another source.",
    ),
    Reason.DATA_LOST: _branch(
        _STORAGE,
        "The branch was stored and its subvolume is missing or unreadable; it is never made again.",
        "Look at the node's disk; docs/storage.md says what can be recovered by hand.",
    ),
    Reason.STORAGE_UNCLEAR: Entry(
        "A newer release of dbranch wrote the data or its record; this one neither uses, copies nor deletes it.",
        "Upgrade the agent of the node.",
        project=(_STORAGE,),
        branch=(_STORAGE,),
        snapshot=(_READY,),
        restore=(_FAILED,),
    ),
    Reason.ACCEPTING: _both(_POSTGRES, "Postgres accepts connections."),
    Reason.RESTART_PENDING: _both(
        _POSTGRES,
        "Postgres accepts connections, without the settings in the message: they take effect at its next start.",
        "Run `dbranch restart BRANCH` when it suits.",
    ),
    Reason.SETTINGS_REJECTED: _both(
        _POSTGRES,
        "Postgres accepts connections and does not take a parameter; it would not start with it, so "
        "`dbranch restart` refuses.",
        "Correct the parameter in the message, in spec.postgres.parameters; what ALTER SYSTEM has set, by `dbranch "
        "restart BRANCH --reset-alter-system` or ALTER SYSTEM RESET.",
    ),
    Reason.SESSION_FAILED: _both(
        _POSTGRES,
        "Postgres accepts connections; dbranch's own session in it is refused or fails, so new settings and "
        "passwords wait; it is tried again.",
        "Do what the server's line in the message asks for; too many clients: end sessions, raise max_connections.",
    ),
    Reason.NOT_ANSWERING: _both(
        _POSTGRES,
        "Postgres runs and has not answered dbranch several times; sessions go on, and new ones still reach it.",
        "See the load and the log of its pod (status.node.pod); `dbranch restart BRANCH` if it hangs.",
    ),
    Reason.CLEANING_FAILED: _both(
        _POSTGRES,
        "What the copy must not keep of its source (subscriptions, prepared transactions) cannot be removed, so it "
        "admits nobody; it is tried again.",
        "See the server's line in the message; correct it in the source and make the branch again.",
    ),
    Reason.WRITES_BRAKED: _both(
        _POSTGRES,
        "The node's disk is almost full and the branch fills it: Postgres accepts connections, with "
        "default_transaction_read_only.",
        "Delete branches or free space on the node. To delete rows: BEGIN READ WRITE.",
    ),
    Reason.WRITER_STOPPED: _both(
        _POSTGRES,
        "The node's disk is almost full and the branch went on filling it: its Postgres is stopped.",
        "Delete branches or free space on the node: it starts by itself once there is room.",
    ),
    Reason.IMAGE_CHANGED: _both(
        _POSTGRES,
        "Postgres accepts connections; its image is another one than was meant, or sorts text otherwise than the one "
        "that built the indexes.",
        "Set spec.postgres.image to the image that is meant; rebuild what the collations in the message order.",
    ),
    Reason.WARM_SLOTS_REJECTED: _project(
        _POSTGRES,
        "Postgres accepts connections; the API server rejects the pods that new branches would use.",
        "Correct what the message says, mostly spec.postgres.resources, or a quota of the nodes' namespace.",
    ),
    Reason.WAITING_FOR_SLOT: _both(
        _POSTGRES, "The Postgres pod is starting, or the last one is still ending."
    ),
    Reason.IMAGE_PULL_FAILED: _both(
        _POSTGRES,
        "The node cannot pull spec.postgres.image.",
        "Correct spec.postgres.image or spec.postgres.imagePullSecrets.",
    ),
    Reason.POD_REJECTED: _both(
        _POSTGRES,
        "The node or the API server refused the Postgres pod (no room, or its resources); it is tried again.",
        "Free room on the node, or correct spec.postgres.resources.",
    ),
    Reason.MOUNT_NOT_PROPAGATED: _both(
        _POSTGRES,
        "The branch's data is bound and does not reach its pod.",
        "Restart the node's agent; its base directory must be mounted with Bidirectional propagation.",
    ),
    Reason.START_BLOCKED: _both(
        _POSTGRES,
        "The pod runs, and Postgres is not started (or admits nobody), since something is wrong with the data.",
        "Correct what the message names: the owner or mode of PGDATA, the lock, spec.postgres.runAsUser or user.",
    ),
    Reason.RECOVERING: _both(_POSTGRES, "Postgres is starting: crash recovery of the snapshot."),
    Reason.CRASH_LOOPING: _both(
        _POSTGRES,
        "Postgres ends again and again.",
        "See the log of its pod in the nodes' namespace (status.node.pod); the message holds its last line. If ALTER "
        "SYSTEM did it: `dbranch restart BRANCH --reset-alter-system`.",
    ),
    Reason.INVALID_PARAMETERS: _both(
        _POSTGRES,
        "Postgres does not take a parameter.",
        "Correct spec.postgres.parameters; the message names it. Of postgresql.auto.conf: `dbranch restart BRANCH "
        "--reset-alter-system`.",
    ),
    Reason.IMAGE_INCOMPATIBLE: Entry(
        "The image is of another major version of PostgreSQL than the data, or of one that is not supported.",
        "Set spec.postgres.image to a major version that the message names.",
        project=(_POSTGRES,),
        branch=(_STORAGE, _POSTGRES),
        restore=(_FAILED,),
    ),
    Reason.ROLE_NOT_FOUND: _both(
        _POSTGRES,
        "The role in spec.postgres.user was dropped or renamed, so the connection string does not answer; other "
        "roles are admitted.",
        "Create the role with `dbranch psql --superuser` and give it what it owned; its password is set by itself.",
    ),
    Reason.ROUTED: _project(_ROUTED, "Every proxy sends new sessions to spec.activeBranch."),
    Reason.DRAINING: _project(
        _ROUTED, "New sessions reach the active branch; some old ones are ending on another."
    ),
    Reason.BRANCH_NOT_FOUND: Entry(
        "spec.activeBranch names no branch, so the old route stays; or the branch of a snapshot does not exist (any "
        "more), so nothing is taken; a restore waits for its branch, until its startingDeadline.",
        "Name a branch that exists; make a snapshot again with another spec.branch.",
        project=(_ROUTED,),
        snapshot=(_READY,),
        restore=(_RECONCILING,),
    ),
    Reason.BRANCH_NOT_READY: Entry(
        "The branch in spec.activeBranch is not Ready yet; the old route stays and moves by itself. Or the branch of "
        "a snapshot is not stored yet, or its project is stopped; the snapshot is taken by itself later. The branch "
        "of a restore is not stored yet: it waits, until its startingDeadline.",
        project=(_ROUTED,),
        snapshot=(_READY,),
        restore=(_RECONCILING,),
    ),
    Reason.BRANCH_STOPPED: _project(
        _ROUTED,
        "The branch in spec.activeBranch is stopped; the old route stays.",
        "Resume it: `dbranch resume BRANCH`.",
    ),
    Reason.BRANCH_DELETING: _project(
        _ROUTED,
        "The branch in spec.activeBranch is being deleted.",
        "Name another branch in spec.activeBranch.",
    ),
    Reason.PROXY_NOT_READY: _project(
        _ROUTED,
        "Not every proxy pod runs and obeys the route yet.",
        "See the pods of the Deployment <project>-proxy.",
    ),
    Reason.SECRET_NOT_FOUND: Entry(
        "The Secret in spec.postgres.passwordSecret, or its key, does not exist; the password stays as it was.",
        "Make the Secret, or correct the name or key.",
        project=(_READY, _ROUTED),
    ),
    Reason.SECRET_INVALID: Entry(
        "The value in spec.postgres.passwordSecret cannot be a password: empty, not UTF-8, or with a line break at "
        "its end (as `--from-file` of a file that an editor wrote has it); the password stays as it was.",
        "Correct the value: `kubectl create secret generic NAME --from-literal=password=…`.",
        project=(_READY, _ROUTED),
    ),
    Reason.PULL_SECRET_NOT_FOUND: Entry(
        "A Secret in spec.postgres.imagePullSecrets does not exist in the project's namespace, or is none for "
        "pulling images; an image that is on the node already is used without it.",
        "Make it: `kubectl create secret docker-registry NAME …`, or correct the name.",
        project=(_READY, _ROUTED),
    ),
    Reason.TLS_SECRET_NOT_FOUND: _project(
        _ROUTED,
        "The Secret in spec.proxy.tls.secretName does not exist.",
        "Make the Secret, or correct the name.",
    ),
    Reason.TLS_SECRET_INVALID: _project(
        _ROUTED,
        "The TLS Secret does not hold tls.crt and tls.key in PEM.",
        "Make it of type kubernetes.io/tls.",
    ),
    Reason.WAITING_FOR_AGENT: _both(
        _BLOCKED,
        "The deletion waits for the snapshot of a branch that is being made of this one, or until nothing on the "
        "node uses the data; it goes on by itself.",
        "If the message names a process or mount on the node, end it.",
    ),
    Reason.UNDO_REFUSED: _both(
        _BLOCKED,
        "The DBSnapshot by which the deletion could be undone cannot be made, so the object and its data stay.",
        "Do what the message says (a quota, a webhook), or set spec.undo of a branch to Discard, spec.undo.keep of a "
        "project to 0s: then nothing is kept.",
    ),
    Reason.ROOT_BRANCH: _branch(
        _UNEXPIRED,
        "The root branch of a project does not expire, whatever its spec says.",
        "Take spec.ttl and spec.expirationTime away.",
    ),
    Reason.ACTIVE_BRANCH: _branch(
        _UNEXPIRED,
        "The branch has a time to expire, which does not count while it is the active branch or is to become it; "
        "when another one is active, it goes no sooner than a day later, or its ttl if that is shorter.",
        "Switch to another branch to let it expire (docs/expiry.md).",
    ),
    Reason.PROTECTED: Entry(
        "The branch is protected: it is not restored, and its time to expire does not count; after that it goes no "
        "sooner than a day later, or its ttl if that is shorter.",
        "Run `dbranch unprotect BRANCH` to let it expire (docs/expiry.md), or to restore it by another DBRestore.",
        branch=(_UNEXPIRED,),
        restore=(_FAILED,),
    ),
}
