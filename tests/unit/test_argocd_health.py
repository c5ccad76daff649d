"""The health script for Argo CD, run by Lua 5.1, the version that Argo CD has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51

from dbranch.api.conditions import STALLED_REASONS, Finding, Reason

CONFIG_MAP = Path(__file__).parents[2] / "docs" / "argocd" / "argocd-cm.yaml"
Json = dict[str, Any]


def health(body: Json) -> tuple[str, str]:
    """Return the status and message that the script returns for an object."""
    config = yaml.safe_load(CONFIG_MAP.read_text(encoding="utf-8"))
    script = yaml.safe_load(config["data"]["resource.customizations"])["dbranch.io/*"]["health.lua"]
    lua = lua51.LuaRuntime()
    lua.globals().obj = lua.table_from(body, recursive=True)
    answer = lua.execute(script)
    return answer["status"], answer["message"]


def an_object(*conditions: Json, metadata: Json | None = None, **status: Any) -> Json:
    described = {"observedGeneration": 3, "conditions": list(conditions), **status}
    return {"metadata": {"generation": 3, **(metadata or {})}, "status": described}


def condition(name: str, status: str, reason: Reason, message: str) -> Json:
    return {"type": name, "status": status, "reason": reason.value, "message": message}


READY = condition("Ready", "True", Reason.AVAILABLE, "it accepts connections")
RECOVERING = condition("Ready", "False", Reason.RECOVERING, "Postgres is starting")


def test_an_object_that_is_ready_is_healthy() -> None:
    assert health(an_object(READY)) == ("Healthy", "it accepts connections")


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"generation": 1}},
        {"metadata": {"generation": 1}, "status": {}},
        an_object(),
        an_object(condition("Ready", "Unknown", Reason.PENDING, "")),
        an_object(RECOVERING),
        an_object(READY, observedGeneration=2),
        an_object(READY, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
    ],
    ids=["new", "no status", "no condition", "pending", "starting", "spec changed", "deleted"],
)
def test_what_is_under_way_is_progressing(body: Json) -> None:
    assert health(body)[0] == "Progressing"


def test_a_stopped_object_is_suspended() -> None:
    stopped = condition("Ready", "False", Reason.STOPPED, "it is stopped")
    assert health(an_object(stopped)) == ("Suspended", "it is stopped")


@pytest.mark.parametrize("reason", sorted(STALLED_REASONS))
def test_what_a_person_has_to_mend_is_degraded(reason: Reason) -> None:
    ready = condition("Ready", Finding(reason, "").status, reason, "mend it")
    stalled = condition("Stalled", "True", reason, "mend it")
    assert health(an_object(ready, stalled)) == ("Degraded", "mend it")


def test_an_object_in_an_unknown_state_is_degraded() -> None:
    unknown = condition("Ready", "Unknown", Reason.NODE_NOT_READY, "node n1 is not Ready")
    assert health(an_object(unknown)) == ("Degraded", "node n1 is not Ready")


def a_restore(*conditions: Json) -> Json:
    return {**an_object(*conditions), "kind": "DBRestore"}


def test_a_restore_is_healthy_once_it_is_complete() -> None:
    assert health(a_restore()) == ("Progressing", "waiting for the controller")
    step = condition("Reconciling", "True", Reason.SWITCHING, "new sessions are held")
    assert health(a_restore(step)) == ("Progressing", "new sessions are held")
    done = condition("Complete", "True", Reason.RESTORED, "it has the data of main")
    assert health(a_restore(done)) == ("Healthy", "it has the data of main")
    repeated = condition("Complete", "True", Reason.ALREADY_APPLIED, "it was done before")
    assert health(a_restore(repeated)) == ("Healthy", "it was done before")
    failed = [condition(name, "True", Reason.POOL_FULL, "the pool is full") for name in ("Failed", "Stalled")]
    assert health(a_restore(*failed)) == ("Degraded", "the pool is full")
