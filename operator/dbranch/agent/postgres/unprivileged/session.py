"""One session's process: it logs in over the socket that it was given, and runs what the agent asks for."""

from __future__ import annotations

import math
import signal
import socket
from contextlib import suppress
from typing import Any, Final

from dbranch.agent.postgres.unprivileged.frames import FrameError, receive_frame, send_frame
from dbranch.agent.postgres.unprivileged.wire import AgentGone, Connection, ProtocolError, ServerError

# The agent gives up by its own time limit first; then this process is ended by the signal's default action.
_ALARM_EXTRA_SECONDS: Final = 2
# Between two requests, should the agent hang.
_IDLE_SECONDS: Final = 600


def run_session(server: socket.socket, agent: socket.socket, request: dict[str, Any]) -> bool:
    """Run a session; return True if the agent has ended it and another may follow, False if it failed.

    `request`: `parameters` of the startup packet, and `seconds` that it may take. Frames to the agent:
    `{"started": {…}}`, then for each `{"sql": …, "seconds": …}` one `{"rows": […]}`, or
    `{"sqlstate": …, "message": …}` after an error of the server, or `{"failed": …}`, which is the last. The agent
    ends the session by `{}`.
    """
    with suppress(AgentGone, FrameError, OSError):
        try:
            _limit(request["seconds"])
            connection = Connection(server, agent)
            send_frame(agent, {"started": connection.start(request["parameters"])})
            while True:
                signal.alarm(_IDLE_SECONDS)
                query = receive_frame(agent)
                if not query:
                    return True
                _limit(query["seconds"])
                try:
                    answer: dict[str, Any] = {"rows": connection.query(query["sql"])}
                except ServerError as error:
                    if error.fatal:
                        raise
                    answer = {"sqlstate": error.sqlstate, "message": error.message}
                try:
                    send_frame(agent, answer)
                except FrameError as error:
                    raise ProtocolError(f"an answer that is {error}") from error
        except ServerError as error:
            failed = {"failed": error.message, "sqlstate": error.sqlstate, "routine": error.routine}
            send_frame(agent, failed)
        except ProtocolError as error:
            send_frame(agent, {"failed": str(error)})
        except MemoryError:
            send_frame(agent, {"failed": "an answer that takes too much memory"})
    return False


def _limit(seconds: float) -> None:
    signal.alarm(math.ceil(seconds) + _ALARM_EXTRA_SECONDS)
