"""Apply the actions of a branch's plan. Each looks before it acts, and may be repeated after a crash at any point."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dbranch.agent.branch.actions import (
    Action,
    Adopt,
    Bind,
    Claim,
    Clean,
    CreateInitdbArea,
    CreateInitdbPod,
    CreatePod,
    DeletePod,
    Open,
    PromoteInitdb,
    RecordImage,
    RemoveSlot,
    ResetAlterSystem,
    SetOwnVerifiers,
    SetPasswords,
    TakeRestore,
    TakeSnapshot,
    WriteSettings,
)
from dbranch.agent.branch.facts import Desired
from dbranch.agent.branch.observe import endpoint_of
from dbranch.agent.checkpoint import checkpoint_source
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.node_secrets import NodeSecrets
from dbranch.agent.pool.records import ensure_initialized_recorded
from dbranch.agent.postgres import session
from dbranch.agent.postgres.answer import RejectedSetting
from dbranch.agent.postgres.cleaning import ensure_cleaned
from dbranch.agent.postgres.opening import ensure_opened
from dbranch.agent.postgres.password import choose_own, ensure_own_verifiers, ensure_passwords
from dbranch.agent.postgres.server import observe_server
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot import pods
from dbranch.agent.slot.pod_spec import branch_pod, claim_patch, initdb_pod
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.slot.scripts import read_initdb, read_slot_start
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.alter_system import ensure_alter_system_reset
from dbranch.agent.volume.marker import Marker, RestoreRef
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.origins.adopt import ensure_branch_adopted
from dbranch.agent.volume.origins.initdb import ensure_initdb_area, ensure_initdb_promoted
from dbranch.agent.volume.origins.snapshot import ensure_snapshot
from dbranch.agent.volume.restores import ensure_restore_taken
from dbranch.agent.warm.watched import WatchedWarmPods
from dbranch.api import names
from dbranch.api.errors import DbranchError, NotAccepting
from dbranch.api.project import Project
from dbranch.api.scram import parse_branch_verifiers
from dbranch.api.secrets import secret_text
from dbranch.kube.client import Cluster
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.limited import LimitedDict
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.timings import StepTimer

logger = logging.getLogger(__name__)

# Of projects; others are read again from their Secrets.
_MAX_STOCKS: Final = 1000


@dataclass
class Outcome:
    """What the actions of one reconcile did.

    `marker`: of the branch, as it is now. `stored`: it was stored just now, with the settings that it should have.
    `slot`: the slot that was bound or created last. `has_new_pod`: the branch got a pod, `claimed_pod` if it was
    a warm one. `reloaded`: Postgres has read its settings again; if it has not, `rejected_settings` says why.
    """

    marker: Marker | None
    timer: StepTimer
    stored: bool = False
    slot: str | None = None
    has_new_pod: bool = False
    claimed_pod: PodFacts | None = None
    reloaded: bool = False
    rejected_settings: tuple[RejectedSetting, ...] = ()


class BranchEffects:
    """Applies actions on this node."""

    def __init__(
        self, cluster: Cluster, layout: Layout, context: NodeContext, watched: WatchedWarmPods
    ) -> None:
        self._cluster, self._layout, self._context = cluster, layout, context
        self._watched = watched
        self._secrets = NodeSecrets(cluster, context)
        # By project: who chooses among the verifiers of its branches.
        self._choices = KeyedLocks()
        # By project UID: the passwords' version, and verifiers of them.
        self._stocks: LimitedDict[str, tuple[str, tuple[tuple[str, ...], ...]]] = LimitedDict(_MAX_STOCKS)

    def apply(self, desired: Desired, action: Action, outcome: Outcome) -> None:
        """Apply one action and record in `outcome` what it did."""
        match action:
            case (
                Clean(name)
                | SetPasswords(name)
                | WriteSettings(name)
                | Open(name)
                | RecordImage(name)
                | SetOwnVerifiers(name)
            ):
                if outcome.marker:
                    endpoint = endpoint_of(desired, name, outcome.marker)
                    self._apply_to_postgres(desired, action, endpoint, outcome)
            case CreateInitdbArea() | PromoteInitdb() | TakeSnapshot() | Adopt():
                self._apply_to_volume(desired, action, outcome)
                outcome.stored = outcome.marker is not None
            case TakeRestore():
                self._take_restore(desired, action, outcome)
            case ResetAlterSystem(requested_at):
                outcome.marker = ensure_alter_system_reset(
                    self._layout_of(desired), desired.project.uid, desired.branch.uid, requested_at
                )
            case _:
                self._apply_to_slot(desired, action, outcome)
        outcome.timer.record(type(action).__name__)

    def _apply_to_volume(self, desired: Desired, action: Action, outcome: Outcome) -> None:
        project, branch, layout, settings = desired.project, desired.branch, self._layout, desired.settings
        match action:
            case CreateInitdbArea(name):
                owner = project.postgres.run_as_user
                ensure_initdb_area(layout, project.uid, branch.uid, owner)
                slot.ensure_slot(layout, name, owner)
                slot.ensure_initdb_bound(layout, name, project.uid, branch.uid)
            case PromoteInitdb():
                ensure_initialized_recorded(layout, project.uid)
                outcome.marker = ensure_initdb_promoted(
                    layout, project.uid, branch.uid, settings, now_rfc3339()
                )
            case TakeSnapshot(source_uid, undeletes):
                checkpoint_source(layout, project.uid, source_uid, project.postgres.database)
                outcome.timer.record("Checkpoint")
                outcome.marker = ensure_snapshot(
                    layout, project.uid, source_uid, branch.uid, settings, now_rfc3339(), undeletes
                )
            case Adopt(retained_uid):
                outcome.marker = ensure_branch_adopted(
                    layout, project.uid, retained_uid, branch.uid, settings, now_rfc3339()
                )

    def _take_restore(self, desired: Desired, action: TakeRestore, outcome: Outcome) -> None:
        project, branch, restore, layout = desired.project, desired.branch, desired.restore, self._layout
        assert restore is not None
        checkpoint_source(layout, project.uid, action.source_uid, project.postgres.database)
        outcome.timer.record("Checkpoint")
        done_by = RestoreRef(restore.uid, restore.undo.value, restore.undo_uid or "")
        outcome.marker = ensure_restore_taken(
            layout, project.uid, branch.uid, action.source_uid, done_by, desired.settings, now_rfc3339()
        )
        outcome.stored = True

    def _layout_of(self, desired: Desired) -> Layout:
        """Return where the data is that is meant: the branch's own, or that of a restore beside it."""
        return self._layout.prepared if desired.restore else self._layout

    def _apply_to_slot(self, desired: Desired, action: Action, outcome: Outcome) -> None:
        project, branch, layout = desired.project, desired.branch, self._layout_of(desired)
        owner, namespace = project.postgres.run_as_user, self._context.namespace
        restore_uid = desired.restore.uid if desired.restore else None
        match action:
            case DeletePod(pod, grace):
                pods.delete_pod(self._cluster, namespace, pod, grace)
            case RemoveSlot(name):
                slot.ensure_slot_removed(layout, name)
            case CreateInitdbPod():
                body = initdb_pod(self._context, layout, project, branch, read_initdb())
                pods.ensure_pod(self._cluster, body)
            case Claim(pod):
                claim = claim_patch(project, branch, pod.uid, restore_uid)
                with self._watched.reserved(pod.name):
                    outcome.claimed_pod = pods.ensure_claimed(self._cluster, namespace, pod, claim)
                outcome.slot, outcome.has_new_pod = pod.name, True
            case CreatePod(name):
                body = branch_pod(
                    self._context, layout, project, branch, name, read_slot_start(), restore_uid
                )
                pods.ensure_slot_with_pod(self._cluster, layout, owner, body)
                outcome.slot, outcome.has_new_pod = name, True
            case Bind(name):
                if not outcome.stored:
                    # A bind starts Postgres, so what it reads is in place before.
                    subvolume.ensure_settings(layout, project.uid, branch.uid, desired.settings)
                slot.ensure_slot(layout, name, owner)
                slot.ensure_bound(layout, name, project.uid, branch.uid)
                outcome.slot = name

    def _apply_to_postgres(
        self, desired: Desired, action: Action, endpoint: Endpoint, outcome: Outcome
    ) -> None:
        project, branch, layout = desired.project, desired.branch, self._layout_of(desired)
        match action:
            case Clean():
                cleaned = ensure_cleaned(layout, project.uid, branch.uid, endpoint)
                if cleaned.subscriptions or cleaned.prepared_transactions:
                    logger.info("branch %s/%s: cleaned: %s", branch.namespace, branch.object_name, cleaned)
                outcome.marker = subvolume.marker_of(layout.branch(project.uid, branch.uid))
            case SetPasswords():
                secret, roles = self._verifier_secret(project), desired.roles(endpoint.user)
                verifiers = _projects_verifiers(secret, roles)
                if outcome.marker and outcome.marker.password == project.password_version:
                    logger.warning(
                        "branch %s/%s: a password was changed in Postgres; it is set again as the Secrets say",
                        branch.namespace,
                        branch.object_name,
                    )
                if roles[0] in verifiers:
                    outcome.marker = ensure_passwords(layout, project.uid, branch.uid, endpoint, verifiers)
            case SetOwnVerifiers():
                outcome.marker = self._set_own_verifiers(desired, endpoint) or outcome.marker
            case WriteSettings():
                subvolume.ensure_settings(layout, project.uid, branch.uid, desired.settings)
                outcome.reloaded = self._reload(endpoint)
                if not outcome.reloaded:
                    outcome.rejected_settings = observe_server(layout, endpoint).rejected_settings
            case Open():
                outcome.marker = ensure_opened(layout, project.uid, branch.uid, endpoint)
            case RecordImage(_, digest):
                outcome.marker = subvolume.ensure_recorded(
                    layout, project.uid, branch.uid, lambda marker: marker.with_image(digest)
                )

    def _verifier_secret(self, project: Project) -> Mapping[str, Any] | None:
        return self._secrets.get(names.verifier_secret_name(project.uid))

    def _set_own_verifiers(self, desired: Desired, endpoint: Endpoint) -> Marker | None:
        """Give the branch verifiers that no other branch of the project has; return its marker, None if not.

        The branch serves its users either way: what fails is tried again at the next reconcile.
        """
        project, branch, roles = desired.project, desired.branch, desired.roles(endpoint.user)
        try:
            # Nobody else chooses until the marker has it.
            with self._choices.held(project.namespace, project.name):
                markers = observe_subvolumes(self._layout, project.uid).branches.items()
                used = {m.verifiers for uid, m in markers if isinstance(m, Marker) and uid != branch.uid}
                stock = self._stock(project)
                own = choose_own(stock, used, len(roles))
                if own is None and stock:
                    # Perhaps there are more by now.
                    own = choose_own(self._stock(project, reread=True), used, len(roles))
                if own is None:
                    return None
                verifiers = dict(zip(roles, own, strict=True))
                return ensure_own_verifiers(self._layout, project.uid, branch.uid, endpoint, verifiers)
        except (DbranchError, OSError) as error:
            logger.info("branch %s/%s keeps its verifiers: %s", branch.namespace, branch.object_name, error)
            return None

    def _stock(self, project: Project, reread: bool = False) -> Sequence[tuple[str, ...]]:
        """Return the verifiers of which each branch takes its own; they are read once for several branches."""
        version = project.password_version or ""
        read_version, stock = self._stocks.get(project.uid, ("", ()))
        if reread or read_version != version or not stock:
            text = secret_text(self._verifier_secret(project), "branches")
            stock = parse_branch_verifiers(text, version)
            self._stocks[project.uid] = version, stock
        return stock

    def _reload(self, endpoint: Endpoint) -> bool:
        """Make Postgres load its settings files; return True if it has."""
        try:
            loaded = session.reload(self._layout, endpoint)
        except NotAccepting:
            logger.info("slot %s: Postgres does not run; it reads the settings at its start", endpoint.slot)
            return False
        if not loaded:
            logger.warning("slot %s: Postgres has not loaded its settings; see its log", endpoint.slot)
        return loaded


def _projects_verifiers(secret: Mapping[str, Any] | None, roles: Sequence[str]) -> dict[str, str]:
    """Return the project's verifiers by role, in the order of `joined_version`."""
    texts = (secret_text(secret, key) for key in ("verifier", "superuser"))
    return {role: text for role, text in zip(roles, texts, strict=False) if text}
