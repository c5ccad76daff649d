"""What users may not set in postgresql.conf, and the major versions of PostgreSQL that are supported.

Source of the CRDs' validation rules, which `hack/generate` writes, and of the agent's own check.
"""

from __future__ import annotations

from typing import Final

# The majors whose servers the tests run; slot-start.sh and the rules below fit these.
OLDEST_MAJOR: Final = 14
NEWEST_MAJOR: Final = 18

# All that the lexer of postgresql.conf takes as a name, in lower case: guc-file.l, ID and QUALIFIED_ID.
NAME_PATTERN: Final = r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$"

# Values, in lower case, with which Postgres does not start in its pod: seccomp's RuntimeDefault has no io_uring.
IMPOSSIBLE_VALUES: Final = {"io_method": "io_uring"}

# Set on Postgres' command line or implied by where the files lie: a user's value would have no effect or do harm.
# ssl: the proxy terminates TLS; a branch's Postgres has no certificate.
FORCED: Final = frozenset(
    {
        "archive_cleanup_command", "archive_command", "archive_library", "archive_mode", "config_file",
        "data_directory", "data_sync_retry", "external_pid_file", "fsync", "full_page_writes", "hba_file",
        "ident_file", "include", "include_dir", "include_if_exists", "listen_addresses", "log_destination",
        "logging_collector", "port", "primary_conninfo", "primary_slot_name", "recovery_end_command",
        "recovery_init_sync_method", "restore_command", "ssl", "synchronous_standby_names",
        "unix_socket_directories", "unix_socket_group", "unix_socket_permissions", "wal_init_zero",
        "wal_recycle",
    }
)  # fmt: skip
