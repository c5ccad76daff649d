"""The facts of a pod's status, and the finding if the pod keeps Postgres from starting. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dbranch.api import names
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason, is_ready

_PULL_REASONS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
_REJECTED_REASONS: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_PARAMETER_ERRORS: Final = (
    "unrecognized configuration parameter",
    "invalid value for parameter",
    "contains errors",
)
_ALTERED_SETTINGS: Final = "postgresql.auto.conf"
_LABELS_WITH_DATA: Final = ("DETAIL:", "STATEMENT:", "CONTEXT:", "HINT:", "QUERY:", "LOG:")
_TERMINATION_MESSAGE_LIMIT: Final = 160


@dataclass(frozen=True)
class PodFacts:
    """A pod with one container.

    `resource_version`: of the pod as it was read. `class_hash`, `template_hash`: of the slot that the pod was
    created for, empty if it has none. `restarted_at`: the restart that the pod was created for. `restore`: the UID of
    the DBRestore that it was claimed or created for.
    `terminating`: its deletion was requested. `terminated`: its phase is Succeeded or Failed. `restarts`: of the
    container. `reason`, `message`: of the container that waits or has terminated, or of the pod; empty if there is
    none. `last_termination_message`: one line of the container that terminated last.
    """

    name: str
    uid: str = ""
    resource_version: str = ""
    image: str = ""
    class_hash: str = ""
    template_hash: str = ""
    restarted_at: str | None = None
    restore: str | None = None
    terminating: bool = False
    terminated: bool = False
    running: bool = False
    ready: bool = False
    address: str | None = None
    image_id: str | None = None
    restarts: int = 0
    reason: str = ""
    message: str = ""
    last_termination_message: str = ""


def pod_facts(body: Mapping[str, Any]) -> PodFacts:
    """Return the facts of a pod as the API server returned it."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    container: Mapping[str, Any] = next(iter(status.get("containerStatuses") or ()), {})
    state = container.get("state") or {}
    waiting, terminated = state.get("waiting") or {}, state.get("terminated") or {}
    last_terminated = (container.get("lastState") or {}).get("terminated") or {}
    annotations = meta.get("annotations") or {}
    message = waiting.get("message") or terminated.get("message") or status.get("message") or ""
    return PodFacts(
        name=meta["name"],
        uid=meta.get("uid", ""),
        resource_version=meta.get("resourceVersion", ""),
        image=next((c.get("image", "") for c in spec.get("containers") or ()), ""),
        class_hash=(meta.get("labels") or {}).get(names.LABEL_CLASS, ""),
        template_hash=annotations.get(names.TEMPLATE_HASH, ""),
        restarted_at=annotations.get(names.RESTARTED_AT),
        restore=annotations.get(names.POD_RESTORE),
        terminating=bool(meta.get("deletionTimestamp")),
        terminated=status.get("phase") in ("Succeeded", "Failed"),
        running="running" in state,
        ready=is_ready(body),
        address=status.get("podIP"),
        image_id=container.get("imageID") or None,
        restarts=int(container.get("restartCount", 0)),
        reason=waiting.get("reason") or terminated.get("reason") or status.get("reason") or "",
        message=_one_line(message),
        last_termination_message=_one_line(last_terminated.get("message") or terminated.get("message") or ""),
    )


def _one_line(text: str) -> str:
    """Return the last line with an error, or else the last line.

    >>> _one_line("FATAL:  no room\\nshutting down\\n"), _one_line("starting\\ndone\\n"), _one_line("")
    ('FATAL:  no room', 'done', '')
    >>> _one_line("ERROR:  duplicate key\\nDETAIL:  Key (name)=(Anna error) already exists.\\n")
    'ERROR:  duplicate key'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Others of Postgres' lines may hold values of rows, and everybody who may read the object sees this one.
    lines = [line for line in lines if not any(label in line for label in _LABELS_WITH_DATA)]
    errors = [line for line in lines if "FATAL" in line or "PANIC" in line or "error" in line.lower()]
    return (errors or lines or [""])[-1][:_TERMINATION_MESSAGE_LIMIT]


def pod_finding(pod: PodFacts, subject: str, reset_command: str = "") -> Finding | None:
    """Return why the branch `subject` cannot start in this pod; None if nothing is wrong with the pod.

    `reset_command`: what undoes ALTER SYSTEM, if that has set something: then it may be the cause.
    """
    if pod.reason in _PULL_REASONS:
        text = f"{subject}: cannot pull {pod.image} ({pod.message or pod.reason}); Postgres is not started; "
        return Finding(
            Reason.IMAGE_PULL_FAILED, _with_advice(text, "check postgres.image and imagePullSecrets")
        )
    if pod.reason in _REJECTED_REASONS or pod.terminated:
        text = (
            f"{subject}: pod {pod.name} was rejected ({pod.reason}: {pod.message}); Postgres is not started; "
        )
        return Finding(Reason.POD_REJECTED, _with_advice(text, "it is tried again"))
    last_message = pod.last_termination_message
    if any(error in last_message for error in _PARAMETER_ERRORS):
        text = f"{subject}: Postgres rejects its parameters ({last_message}); it does not start; "
        advice = "correct spec.postgres.parameters"
        if reset_command:
            # Postgres names the file: a value that it does not take makes the whole file invalid.
            is_altered = _ALTERED_SETTINGS in last_message
            advice = (
                f"run {reset_command}" if is_altered else f"{advice}, or undo ALTER SYSTEM: {reset_command}"
            )
        return Finding(Reason.INVALID_PARAMETERS, _with_advice(text, advice))
    if pod.reason == "CrashLoopBackOff":
        text = f"{subject}: Postgres exits again and again ({last_message or 'no message'}); "
        advice = f"see the log of pod {pod.name}"
        if reset_command:
            advice = f"{advice}; if it is by ALTER SYSTEM: {reset_command}"
        return Finding(Reason.CRASH_LOOPING, _with_advice(text, advice))
    return None


def _with_advice(text: str, advice: str) -> str:
    """Return text and advice as one message, the text cut so that the advice fits."""
    room = MESSAGE_LIMIT - len(advice)
    return (text if len(text) <= room else text[: room - 4].rstrip() + "…); ") + advice
