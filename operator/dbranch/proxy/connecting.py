"""From a startup packet to a backend that answers: the branch is found and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from dbranch.proxy import wire
from dbranch.proxy.relay import ServerStart
from dbranch.proxy.routes import (
    CANNOT_CONNECT_NOW,
    SHUTDOWN,
    Backend,
    Go,
    Reject,
    Wait,
    decide,
    reject_branch,
)
from dbranch.proxy.session import Session
from dbranch.proxy.sockets import dial

# Seconds: one attempt to reach a backend; between two; for a backend to answer, however late it was reached.
_DIAL_TIMEOUT: Final = 5.0
_RETRY: Final = 0.25
_LEAST: Final = 1.0


async def connect(session: Session, startup: wire.Startup, hand_over: Callable[[], None]) -> None:
    """Finds the branch and its backend, waiting for either as long as `startTimeout`.

    `hand_over` is called once, when the backend has begun to answer.
    """
    board, loop = session.board, session.loop
    began, trouble = loop.time(), ""
    while not session.how:
        table, changed = board.table, board.changed()
        assert table, "the proxy serves before it has read its project"
        left = began + table.start_timeout - loop.time()
        if board.closing:
            session.refuse(Reject(SHUTDOWN, "the proxy is stopping", "Connect again.", "stopping"))
            return
        pause = left
        decision = decide(table, startup.branch)
        if isinstance(decision, Go) and decision.branch != session.claimed:
            decision = reject_branch(table, decision.branch, board.by_branch[decision.branch]) or decision
        match decision:
            case Reject():
                session.refuse(decision)
                return
            case Wait(what):
                trouble = what
            case Go() as go:
                session.claim(go.branch)
                answer = await _try(session, startup, go, max(left, _RETRY), hand_over)
                if answer is None:
                    board.metrics.waited(loop.time() - began)
                    return
                if answer:
                    trouble = f'branch "{go.branch}" of project {table.project} ({answer})'
                pause = _RETRY if answer else 0.0
        if left <= 0:
            text = f"waited {table.start_timeout:g} s for {trouble}"
            session.refuse(Reject(CANNOT_CONNECT_NOW, text, "Try again later.", "start_timeout"))
            return
        if pause:
            try:
                async with asyncio.timeout(min(pause, left)):
                    await changed.wait()
            except TimeoutError:
                pass


async def _try(
    session: Session, startup: wire.Startup, go: Go, left: float, hand_over: Callable[[], None]
) -> str | None:
    """One attempt. None: the backend answered and the session is on its way (or over). A sentence:
    it did not come about. Empty: the route changed meanwhile, so ask again at once."""
    board, server = session.board, ServerStart(session, hand_over)
    try:
        async with asyncio.timeout(min(left, _DIAL_TIMEOUT)):
            await dial(server, go.address, go.port)
    except OSError as error:
        return f"{go.address}:{go.port}: {error.strerror or 'no answer'}"
    # From here to the startup packet nothing is awaited: what the table says now is what holds.
    table = board.table
    if not table or decide(table, startup.branch) != go or board.closing or session.how:
        server.transport.abort()
        return ""
    session.place = Backend(go.branch, go.address, go.port, named=startup.branch is not None)
    session.server, session.greeting = server.transport, wire.Greeting()
    session.unanswered = server.answered
    server.transport.write(startup.packet)
    timer = session.loop.call_later(max(left, _LEAST), _no_answer, server.answered)
    try:
        answer = await server.answered
    except asyncio.CancelledError:
        server.transport.abort()
        raise
    finally:
        timer.cancel()
    if answer is not None:
        session.place = session.server = session.greeting = session.unanswered = None
        server.transport.abort()
        return answer
    return None


def _no_answer(answered: asyncio.Future[str | None]) -> None:
    if not answered.done():
        answered.set_result("no answer to the startup packet")
