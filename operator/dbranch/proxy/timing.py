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
DIAL_RETRY_SECONDS: Final = 0.25
# A backend gets at least this long to answer the startup packet, however late it was reached.
MIN_ANSWER_SECONDS: Final = 1.0
CANCEL_TIMEOUT_SECONDS: Final = 5.0
CERTIFICATE_CHECK_SECONDS: Final = 1.0

# Ending

# For a busy backend to reach the end of a message after its statement was cancelled.
BOUNDARY_TIMEOUT_SECONDS: Final = 5.0
# For a client to read what was written last and to close.
LINGER_SECONDS: Final = 2.0
# At shutdown sessions drain with this limit, which is none: drain_sessions ends what is left much sooner.
SHUTDOWN_DRAIN_SECONDS: Final = 86400.0
SHUTDOWN_POLL_SECONDS: Final = 0.05
# For sessions that have to end to reach a message boundary, and for their last bytes to be sent.
SHUTDOWN_END_SECONDS: Final = 2.0
SHUTDOWN_FLUSH_SECONDS: Final = 0.1
