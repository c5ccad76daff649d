"""What a copy must not keep and only a running Postgres can give up: subscriptions, prepared transactions."""

from __future__ import annotations

from dataclasses import dataclass

from dbranch.effect.session import Endpoint
from dbranch.plan.layout import Layout


@dataclass(frozen=True)
class Cleaned:
    """What was found and taken away."""

    subscriptions: int = 0
    prepared_transactions: int = 0


def ensure_cleaned(layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint) -> Cleaned:
    """Cleaned, so written into the marker, and Postgres open to its users; repeatable.

    Call as soon as `session.await_accepting` returned, before the branch is told to be Accepting. Where
    there is nothing to clean it costs one session and a reload (milliseconds).
    """
    raise NotImplementedError
