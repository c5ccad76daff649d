"""From a startup packet to a backend that answers: find the branch's backend, dial it, and wait for either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from dbranch.proxy import sqlstate, timing, wire
from dbranch.proxy.knock import Gate
from dbranch.proxy.proxy_protocol import format_peer
from dbranch.proxy.relay import ServerStart
from dbranch.proxy.routes import Backend, Dial, Reject, Wait, check_branch_limit, decide
from dbranch.proxy.session import Session
from dbranch.proxy.sockets import dial


async def connect(session: Session, startup: wire.StartupMessage, hand_over: Callable[[], None]) -> None:
    """Connect the session to its branch's backend, or reject it after `startTimeout` seconds.

    `hand_over` is called once, when the backend has begun to answer.
    """
    switchboard, loop = session.switchboard, session.loop
    started_at, awaited = loop.time(), ""
    while not session.end_reason:
        table, change_event = switchboard.table, switchboard.change_event()
        assert table, "the proxy serves before it has read its project"
        seconds_left = started_at + table.start_timeout - loop.time()
        if switchboard.shutting_down:
            stopping = Reject(
                sqlstate.ADMIN_SHUTDOWN, "the proxy is stopping", "Connect again.", reason="stopping"
            )
            session.reject(stopping)
            return
        gate: Gate | None = None
        decision = decide(table, startup.branch)
        if isinstance(decision, Dial) and decision.branch != session.counted_branch:
            branch_sessions = switchboard.sessions_by_branch[decision.branch]
            decision = check_branch_limit(table, decision.branch, branch_sessions) or decision
        match decision:
            case Reject():
                session.reject(decision)
                return
            case Wait():
                awaited = decision.awaited
            case Dial():
                session.count_under(decision.branch)
                gate = switchboard.gates.at(decision.address, decision.port)
                if gate.enter():
                    timeout = max(seconds_left, timing.MIN_DIAL_SECONDS)
                    failure: str | None = ""
                    try:
                        failure = await _try_backend(session, startup, decision, timeout, hand_over)
                    finally:
                        gate.leave(failure)
                    if failure is None:
                        switchboard.metrics.observe_connect_wait(loop.time() - started_at)
                        return
                    if not failure:
                        continue
                reason = gate.failure or "many sessions are being connected"
                awaited = f'branch "{decision.branch}" of project {table.project} ({reason})'
        seconds_left = started_at + table.start_timeout - loop.time()
        if seconds_left <= 0:
            message = f"waited {table.start_timeout:g} s for {awaited}"
            session.reject(
                Reject(sqlstate.CANNOT_CONNECT_NOW, message, "Try again later.", reason="start_timeout")
            )
            return
        if gate:
            await gate.wait(seconds_left)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds_left):
                    await change_event.wait()


async def _try_backend(
    session: Session,
    startup: wire.StartupMessage,
    decision: Dial,
    timeout: float,
    hand_over: Callable[[], None],
) -> str | None:
    """Dial the backend and send it the startup packet, in `timeout` seconds.

    Return None if the backend answered (the session runs, or has ended already); a reason if it did not; an
    empty string if the route changed meanwhile, so that the caller has to decide again at once.
    """
    switchboard, server = session.switchboard, ServerStart(session, hand_over)
    try:
        async with asyncio.timeout(min(timeout, timing.DIAL_TIMEOUT_SECONDS)):
            await dial(server, decision.address, decision.port)
    except OSError as error:
        return f"{format_peer(decision.address, decision.port)}: {error.strerror or 'no answer'}"
    # Nothing is awaited from here until the startup packet is sent, so this table is the one in force.
    table = switchboard.table
    if not table or decide(table, startup.branch) != decision:
        server.transport.abort()
        return ""
    if switchboard.shutting_down or session.end_reason:
        server.transport.abort()
        return ""
    session.backend = Backend(
        decision.branch, decision.address, decision.port, requested=startup.branch is not None
    )
    session.generation = table.generation
    session.server, session.greeting = server.transport, wire.Greeting()
    session.pending_answer = server.answered
    server.transport.write(startup.packet)
    answer_timeout = max(timeout, timing.MIN_ANSWER_SECONDS)
    timer = session.loop.call_later(answer_timeout, _on_answer_timeout, server.answered)
    try:
        failure = await server.answered
    except asyncio.CancelledError:
        server.transport.abort()
        raise
    finally:
        timer.cancel()
    if failure is not None:
        session.backend = session.server = session.greeting = session.pending_answer = None
        server.transport.abort()
        return failure
    return None


def _on_answer_timeout(answered: asyncio.Future[str | None]) -> None:
    if not answered.done():
        answered.set_result("no answer to the startup packet")
