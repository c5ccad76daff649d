"""A step of a branch's life, and what it plans. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dbranch.agent.branch.actions import Action
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.api.conditions import Condition, Finding


@dataclass(frozen=True)
class Planned:
    """What a step plans: actions, and either `then` or `finding`.

    `then`: the facts that follow from the actions; the next step is planned with them. `finding`: the next step has
    to wait, and this is what the step's condition says meanwhile. `postgres`: what a step of the storage says about
    Postgres. `awaits`: the slot whose Postgres is waited for. `requeue_after`: seconds after which to reconcile
    again, since no event will come (with `then`: for what is left to a later reconcile). `retry_after`: the same
    after a failure; one that repeats is retried ever more rarely.
    """

    actions: tuple[Action, ...] = ()
    then: BranchFacts | None = None
    finding: Finding | None = None
    awaits: str | None = None
    postgres: Finding | None = None
    requeue_after: float | None = None
    retry_after: float | None = None


@dataclass(frozen=True)
class Step:
    """A step: it is planned if it is `needed` for what is desired, and the facts do not say that it is `done`.

    `name`: of the step in logs. `condition`: the condition that it reports into.
    """

    name: str
    condition: Condition
    needed: Callable[[Desired], bool]
    done: Callable[[Desired, BranchFacts], bool]
    plan: Callable[[Desired, BranchFacts], Planned]


def always(desired: Desired) -> bool:
    """Return True: the step is part of every branch's life."""
    return True


def runs(desired: Desired) -> bool:
    """Return True if the branch's Postgres is to run."""
    return desired.runs


def serves_users(desired: Desired) -> bool:
    """Return True if the branch's Postgres is to run for users: what a restore prepares does not yet."""
    return desired.runs and desired.restore is None


def slot_of(facts: BranchFacts) -> str:
    """Return the slot of the branch's live pod, which every step behind the slot's has."""
    assert facts.live_pod is not None
    return facts.live_pod.name
