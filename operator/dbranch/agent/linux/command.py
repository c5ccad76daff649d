"""The only module that runs commands; each is logged as one could type it."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Collection, Sequence

from dbranch.api.errors import CommandFailed
from dbranch.runtime.logs import log_command

logger = logging.getLogger("dbranch.command")

Process = subprocess.Popen[bytes]


def run(argv: Sequence[object], timeout: float = 60.0) -> str:
    """Run a command of the node to its end and return its standard output, stripped.

    Raises CommandFailed if it exits with another code than 0, cannot be started (code 127), or is not done after
    `timeout` seconds (then it is killed).
    """
    words = [str(word) for word in argv]
    log_command(*words)
    try:
        completed = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(words, 127, f"{words[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(words, None, f"not done after {timeout:g} s") from error
    if completed.returncode != 0:
        raise CommandFailed(words, completed.returncode, completed.stderr.strip() or completed.stdout.strip())
    return completed.stdout.strip()


def start(argv: Sequence[object], handles: Collection[int]) -> Process:
    """Start a command that goes on beside this process, with these descriptors and without an environment.

    Raises CommandFailed if it cannot be started (code 127).
    """
    words = [str(word) for word in argv]
    try:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=tuple(handles), env={})
    except OSError as error:
        raise CommandFailed(words, 127, f"{words[0]} cannot be started ({error.strerror})") from error
