"""How the three roles log: one line a record, on standard error."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from dbranch.api.conditions import printable

logger = logging.getLogger("dbranch.command")


class Lines(logging.Formatter):
    """One line a record with its `fields` (a dict given by `extra`): JSON, or plain `name=value` words."""

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
            head = {"time": when, "level": record.levelname, "logger": record.name, "message": text}
            return json.dumps(head | fields, default=str)
        words = [f"{k}={json.dumps(v, default=str)}" for k, v in fields.items() if v != ""]
        return " ".join([when, record.levelname, record.name, text, *words])


def start_logging(env: Mapping[str, str]) -> None:
    """Logs from INFO on to standard error: `DBRANCH_LOG_FORMAT=json`, or plain text (the default)."""
    # What no line shows is not looked up for each: thread, process, and where in the code it was said.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(env.get("DBRANCH_LOG_FORMAT", "plain") == "json"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def log_command(*argv: object) -> None:
    """Logs the command line that does what a system call is about to do."""
    logger.info("# %s", printable(shlex.join(str(word) for word in argv)))
