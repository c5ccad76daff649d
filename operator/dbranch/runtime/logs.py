"""The logging of all roles: one line a record, on standard error."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from dbranch.api.conditions import printable
from dbranch.api.errors import DbranchError

logger = logging.getLogger("dbranch.command")


class LineFormatter(logging.Formatter):
    """Formats a record and its `fields` (a dict in `extra`) as one line: JSON, or text with `name=value` pairs."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        if self._json:
            record_fields = {"time": when, "level": record.levelname, "logger": record.name, "message": text}
            return json.dumps(record_fields | fields, default=str)
        pairs = [f"{k}={json.dumps(v, default=str)}" for k, v in fields.items() if v != ""]
        return " ".join([when, record.levelname, record.name, text, *pairs])


def start_logging(env: Mapping[str, str], handler: logging.Handler | None = None) -> None:
    """Log level INFO and above to standard error, as the environment's DBRANCH_LOG_FORMAT says: json or plain.

    `handler` takes the place of one that writes at once and waits while nobody reads.
    """
    # No line shows thread, process or source location, so logging need not look them up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(env.get("DBRANCH_LOG_FORMAT", "plain") == "json"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def log_error(logger: logging.Logger, error: Exception, subject: str) -> None:
    """Log what went wrong with `subject`; with the stack if it is no error that the code expects."""
    expected = isinstance(error, DbranchError | OSError)
    logger.warning("%s: %s", subject, error, exc_info=None if expected else error)


def log_command(*argv: object) -> None:
    """Log the command line that would do what the next system call does."""
    logger.info("# %s", printable(shlex.join(str(word) for word in argv)))
