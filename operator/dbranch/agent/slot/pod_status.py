"""What a pod's status says is wrong with it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dbranch.api import names
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason, is_ready

_PULL: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
_REJECTED: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_PARAMETERS: Final = (
    "unrecognized configuration parameter",
    "invalid value for parameter",
    "contains errors",
)


@dataclass(frozen=True)
class PodFacts:
    """A pod of one container. `reason`, `message`: what its status says is the matter, empty where nothing is.

    `slot_class` is the class that it was made for, `restarted_at` the restart it was made for, if for one.
    `form`: what it was made of besides, if it is a slot's; `version`: the resourceVersion of what was read.
    `over`: in a terminal phase. `restarts` of the container; `ended` is what the last one that ended said.
    """

    name: str
    uid: str = ""
    version: str = ""
    image: str = ""
    slot_class: str = ""
    form: str = ""
    restarted_at: str | None = None
    terminating: bool = False
    over: bool = False
    running: bool = False
    ready: bool = False
    address: str | None = None
    image_id: str | None = None
    restarts: int = 0
    reason: str = ""
    message: str = ""
    ended: str = ""


def pod_facts(body: Mapping[str, Any]) -> PodFacts:
    """The facts of a pod as the API server has it."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    container: Mapping[str, Any] = next(iter(status.get("containerStatuses") or ()), {})
    state = container.get("state") or {}
    waiting, over = state.get("waiting") or {}, state.get("terminated") or {}
    last = (container.get("lastState") or {}).get("terminated") or {}
    marks = meta.get("annotations") or {}
    return PodFacts(
        name=meta["name"],
        uid=meta.get("uid", ""),
        version=meta.get("resourceVersion", ""),
        image=next((c["image"] for c in spec.get("containers") or ()), ""),
        slot_class=(meta.get("labels") or {}).get(names.LABEL_CLASS, ""),
        form=marks.get(names.TEMPLATE_HASH, ""),
        restarted_at=marks.get(names.RESTARTED_AT),
        terminating=bool(meta.get("deletionTimestamp")),
        over=status.get("phase") in ("Succeeded", "Failed"),
        running="running" in state,
        ready=is_ready(body),
        address=status.get("podIP"),
        image_id=container.get("imageID") or None,
        restarts=int(container.get("restartCount", 0)),
        reason=waiting.get("reason") or over.get("reason") or status.get("reason") or "",
        message=_one_line(waiting.get("message") or over.get("message") or status.get("message") or ""),
        ended=_one_line(last.get("message") or over.get("message") or ""),
    )


def _one_line(text: str) -> str:
    """What was said last: the end of a log stands in a termination message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL" in line or "error" in line.lower()]
    return (fatal or lines or [""])[-1][:160]


def trouble_of(pod: PodFacts, who: str) -> Finding | None:
    """Why `who` cannot start in this pod; None where nothing is wrong with it."""
    if pod.reason in _PULL:
        text = f"{who}: cannot pull {pod.image} ({pod.message or pod.reason}); Postgres is not started; "
        return Finding(Reason.IMAGE_PULL_FAILED, _within(text, "check postgres.image and imagePullSecrets"))
    if pod.reason in _REJECTED or pod.over:
        text = f"{who}: pod {pod.name} was rejected ({pod.reason}: {pod.message}); Postgres is not started; "
        return Finding(Reason.POD_REJECTED, _within(text, "it is tried again"))
    if any(word in pod.ended for word in _PARAMETERS):
        text = f"{who}: Postgres does not take its parameters ({pod.ended}); it does not start; "
        return Finding(Reason.INVALID_PARAMETERS, _within(text, "correct spec.postgres.parameters"))
    if pod.reason == "CrashLoopBackOff":
        text = f"{who}: Postgres ends again and again ({pod.ended or 'no word'}); "
        return Finding(Reason.CRASH_LOOPING, _within(text, f"see the log of pod {pod.name}"))
    return None


def _within(text: str, advice: str) -> str:
    room = MESSAGE_LIMIT - len(advice)
    return (text if len(text) <= room else text[: room - 4].rstrip() + "…); ") + advice
