"""SQLSTATEs of the errors that the proxy itself sends (PostgreSQL manual, appendix A)."""

from __future__ import annotations

from typing import Final

CONNECTION_FAILURE: Final = "08006"
PROTOCOL_VIOLATION: Final = "08P01"
FEATURE_NOT_SUPPORTED: Final = "0A000"
INVALID_AUTHORIZATION: Final = "28000"
INVALID_CATALOG_NAME: Final = "3D000"
TOO_MANY_CONNECTIONS: Final = "53300"
QUERY_CANCELED: Final = "57014"
ADMIN_SHUTDOWN: Final = "57P01"
CANNOT_CONNECT_NOW: Final = "57P03"
INTERNAL_ERROR: Final = "XX000"
