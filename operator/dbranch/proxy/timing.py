"""Delays and time limits of the proxy, in seconds."""

from __future__ import annotations

from typing import Final

# The API server

# The API server ends a watch after this time and up to WATCH_JITTER_SECONDS more. It sends a bookmark once a
# minute, so a watch that is silent for WATCH_SILENCE_SECONDS is a dead connection.
WATCH_TIMEOUT_SECONDS: Final = 300
WATCH_JITTER_SECONDS: Final = 60
WATCH_SILENCE_SECONDS: Final = 100.0
# A watch that ends sooner than this is followed by a backoff.
MIN_WATCH_SECONDS: Final = 1.0
API_REQUEST_TIMEOUT_SECONDS: Final = 10.0
MIN_BACKOFF_SECONDS: Final = 0.2
MAX_BACKOFF_SECONDS: Final = 10.0
# Shortest time between two writes of status.proxies when only session counts have changed.
SESSION_COUNTS_INTERVAL_SECONDS: Final = 10.0

# Connecting

# Lower bound of spec.proxy.handshakeTimeout.
MIN_HANDSHAKE_SECONDS: Final = 0.1
DIAL_TIMEOUT_SECONDS: Final = 5.0
# A dial gets at least this long, however late it begins.
MIN_DIAL_SECONDS: Final = 0.25
# Between the dials of a backend that does not answer: the first delay, doubled up to the second one.
MIN_KNOCK_SECONDS: Final = 0.02
MAX_KNOCK_SECONDS: Final = 1.0
# A session that waits for its turn to dial looks again after this time.
MAX_TURN_SECONDS: Final = 2.0
# A backend gets at least this long to answer the startup packet, however late it was reached.
MIN_ANSWER_SECONDS: Final = 1.0
CANCEL_TIMEOUT_SECONDS: Final = 5.0
CERTIFICATE_CHECK_SECONDS: Final = 1.0
# From the begin of one TLS handshake to that of the next. Each takes 1 to 2 ms of the event loop: sessions keep more
# than half of it.
MIN_HANDSHAKE_SPACING_SECONDS: Final = 0.004

# Restores

# A branch's own port is listened on this much longer than new sessions are held: the cluster's nodes need some time
# to send to the branch's pod again what comes to its Service.
BRANCH_PORT_LINGER_SECONDS: Final = 10.0

# Measuring

HEALTH_KEEPALIVE_SECONDS: Final = 15.0
LOOP_LAG_INTERVAL_SECONDS: Final = 1.0
# How long a thread other than the event loop's may hold the interpreter (Python's own value is 5 ms).
THREAD_SWITCH_SECONDS: Final = 0.0005

# Ending

# An ending session's cancel is repeated after the first of these, then after twice as long each time up to the
# second, and after the first one again once the backend has sent anything.
MIN_CANCEL_INTERVAL_SECONDS: Final = 0.1
MAX_CANCEL_INTERVAL_SECONDS: Final = 1.0
# For a session that seems to be at rest to end without a cancel, which costs its Postgres a process.
AT_REST_CANCEL_SECONDS: Final = 0.5
# For a client to read what its backend still sends; then it is read and dropped, so that the backend can end.
END_DISCARD_SECONDS: Final = 2.0
# For a backend to close; then the end counts as unconfirmed.
END_TIMEOUT_SECONDS: Final = 4.0
# For a client to read what was written last and to close.
LINGER_SECONDS: Final = 2.0
# At shutdown sessions drain with this limit, which is none: drain_sessions ends what is left much sooner.
SHUTDOWN_DRAIN_SECONDS: Final = 86400.0
SHUTDOWN_POLL_SECONDS: Final = 0.05
# For sessions that have to end (longer than END_TIMEOUT_SECONDS), and for their last bytes to be sent.
SHUTDOWN_END_SECONDS: Final = 4.5
SHUTDOWN_FLUSH_SECONDS: Final = 0.1
