"""A program on a pseudo-terminal: what it shows, and what is typed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

# It only ends a test that hangs.
TIMEOUT_SECONDS = 180.0
INTERRUPT = "\x03"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """A program that runs on a terminal of 24 lines and 80 columns; it is killed at the end of the block."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.output = ""
        self._code: int | None = None
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            try:
                # As a shell on a terminal starts it; what runs in the background ignores it.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.chdir("/")
                os.execvpe(argv[0], [*argv], {**environment})
            finally:
                os._exit(127)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._code is None:
            os.kill(self._process, 9)
            os.waitpid(self._process, 0)
        os.close(self._terminal)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def expect(self, text: str) -> None:
        """Wait until `text` was shown; escapes count."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while text not in self.output:
            assert time.monotonic() < deadline, f"{text!r} is not shown: {self.output!r}"
            assert self._read(), f"{text!r} is not shown before the end: {self.output!r}"

    def end(self) -> int:
        """Read to the end; return the exit code, 128 + n for signal n."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self._read():
            assert time.monotonic() < deadline, f"it goes on: {self.output!r}"
        _, status = os.waitpid(self._process, 0)
        code = os.waitstatus_to_exitcode(status)
        self._code = 128 - code if code < 0 else code
        return self._code

    @property
    def screen(self) -> list[str]:
        """The lines that were shown, without escapes; one that was drawn again is there each time."""
        return _ESCAPES.sub("", self.output).replace("\r\n", "\n").replace("\r", "\n").split("\n")

    def _read(self) -> bool:
        """Read what is shown within a second; False at the end."""
        if not select.select([self._terminal], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # EIO: the program has ended
            return False
        self.output += data.decode(errors="replace")
        return bool(data)
