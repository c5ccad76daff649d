"""The only place that runs commands; each stands in the log as one could type it."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence

from dbranch.api.errors import CommandFailed
from dbranch.runtime.logs import log_command

logger = logging.getLogger("dbranch.command")


def run(argv: Sequence[object], seconds: float = 60.0) -> str:
    """Runs a command of the node to its end and returns what it printed on standard output, stripped.

    CommandFailed where it ends with another code than 0, cannot be started (code 127) or is not done after
    `seconds` (then it is killed).
    """
    words = [str(word) for word in argv]
    log_command(*words)
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(words, 127, f"{words[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(words, None, f"not done after {seconds:g} s") from error
    if done.returncode != 0:
        raise CommandFailed(words, done.returncode, done.stderr.strip() or done.stdout.strip())
    return done.stdout.strip()
