"""Listeners on the own ports of branches that are being restored.

While a branch's data is exchanged, its Service leads to the proxies' pods: a client of that Service waits there as
one of the project's does. Connections that were accepted stay when their listener goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from dbranch.api import names
from dbranch.proxy import timing
from dbranch.proxy.branches import ProxyBranch
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.client import ClientStart
from dbranch.proxy.sockets import LISTEN_BACKLOG, listening_socket
from dbranch.proxy.switchboard import Switchboard

log = logging.getLogger(__name__)


class _Listener:
    """A listener for clients of one branch."""

    def __init__(
        self, port: int, branch: ProxyBranch, switchboard: Switchboard, canceller: Canceller
    ) -> None:
        """Listen on the port; connections are accepted by the event loop. Raise OSError if the port is taken."""
        self.uid = branch.uid
        self._switchboard, self._canceller, self._branch = switchboard, canceller, branch.name
        self._socket = listening_socket(port)
        self._server: asyncio.Server | None = None
        self._task = asyncio.get_running_loop().create_task(self._accept())

    async def _accept(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: ClientStart(self._switchboard, self._canceller, self._branch),
            sock=self._socket,
            backlog=LISTEN_BACKLOG,
        )

    def close(self) -> None:
        self._task.cancel()
        if self._server:
            self._server.close()
        else:
            self._socket.close()


class BranchPorts:
    """The listeners for the branches that are being restored, and for a while those that were.

    Two branches may have the same port, which says nothing then of the branch that a client is for: while both need
    it, nobody listens there.
    """

    def __init__(self, switchboard: Switchboard, canceller: Canceller) -> None:
        self._switchboard, self._canceller = switchboard, canceller
        # By the branch's UID; with a timer once its restore has ended.
        self._branches: dict[str, ProxyBranch] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._listeners: dict[int, _Listener] = {}
        self._closed = False

    def on_applied(self, branches: Mapping[str, ProxyBranch]) -> None:
        """Listen for the branches that are being restored, as the table in force has them."""
        restoring = {branch.uid: branch for branch in branches.values() if branch.restoring}
        if self._closed or not (restoring or self._branches):
            return
        for uid in restoring:
            if timer := self._timers.pop(uid, None):
                timer.cancel()
        self._branches |= restoring
        for uid in self._branches.keys() - restoring.keys() - self._timers.keys():
            delay = timing.BRANCH_PORT_LINGER_SECONDS
            self._timers[uid] = asyncio.get_running_loop().call_later(delay, self._forget, uid)
        self._update()

    def _forget(self, uid: str) -> None:
        del self._branches[uid], self._timers[uid]
        self._update()

    def _update(self) -> None:
        by_port: dict[int, list[ProxyBranch]] = {}
        for branch in self._branches.values():
            by_port.setdefault(names.branch_port(branch.uid), []).append(branch)
        for port, listener in tuple(self._listeners.items()):
            if [branch.uid for branch in by_port.get(port, [])] != [listener.uid]:
                listener.close()
                del self._listeners[port]
        for port, sharing in by_port.items():
            if len(sharing) == 1 and port not in self._listeners:
                self._listen(port, sharing[0])

    def _listen(self, port: int, branch: ProxyBranch) -> None:
        try:
            self._listeners[port] = _Listener(port, branch, self._switchboard, self._canceller)
        except OSError as error:
            message = (
                "branch %s: port %d: %s; connections to its own Service are refused until it is restored"
            )
            log.warning(message, branch.name, port, error.strerror or error)

    def close(self) -> None:
        """Stop listening for good; what has waited is accepted no more."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        for listener in self._listeners.values():
            listener.close()
        self._branches, self._timers, self._listeners = {}, {}, {}
