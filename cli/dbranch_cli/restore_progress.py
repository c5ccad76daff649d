"""The steps of a restore as they follow each other, each with its seconds, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from dbranch.api.catalog import CATALOG
from dbranch.api.conditions import Condition, Reason, find_condition, is_condition_true
from dbranch.api.enums import ConditionStatus
from dbranch_cli.colors import colorize
from dbranch_cli.formatting import escape_controls

_CLEAR_LINE: Final = "\r\x1b[K"
_PENDING: Final = "Pending"


def step_of(restore: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Return the step of a DBRestore, its message, and whether it is the last one."""
    for condition_type in (Condition.COMPLETE, Condition.FAILED, Condition.RECONCILING):
        condition = find_condition(restore.get("status"), condition_type)
        if condition and condition["status"] == ConditionStatus.TRUE:
            is_last = condition_type != Condition.RECONCILING
            return str(condition["reason"]), str(condition.get("message") or ""), is_last
    return _PENDING, "", False


class StepPrinter:
    """Prints a line for each step that a DBRestore has done, and for one that waits for somebody."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._live = quiet, sys.stderr.isatty()
        self._started_at = self._step_started_at = time.monotonic()
        self._step, self._is_over = _PENDING, False

    def print_changes(self, body: Mapping[str, Any]) -> None:
        """Print the step that has ended, if another has begun."""
        step, message, is_last = step_of(body)
        if step == self._step:
            return
        now = time.monotonic()
        if self._step != _PENDING:
            self._print_line("✓", "green", self._step, f"{now - self._step_started_at:5.1f} s")
        self._step, self._step_started_at, self._is_over = step, now, is_last
        entry = CATALOG.get(Reason(step))
        if is_last:
            # What has failed is the command's own error.
            if is_condition_true(body["status"], Condition.COMPLETE):
                self._print_line("✓", "green", step, f"{now - self._started_at:5.1f} s in all")
        elif entry and entry.remedy:
            self._print_line("!", "yellow", step, message)
        self.redraw()

    def redraw(self) -> None:
        """Draw the line of the present step, on a terminal."""
        if self._live and not self._quiet and not self._is_over:
            seconds = time.monotonic() - self._step_started_at
            sys.stderr.write(f"{_CLEAR_LINE}… {self._step:<15} {seconds:5.1f} s")
            sys.stderr.flush()

    def clear(self) -> None:
        """Clear the line of the present step."""
        if self._live and not self._quiet and not self._is_over:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()

    def _print_line(self, sign: str, color: str, step: str, detail: str) -> None:
        if self._quiet:
            return
        plain = {"✓": "+", "!": "-"}[sign]
        shown = _CLEAR_LINE + colorize(sign, color, sys.stderr) if self._live else plain
        sys.stderr.write(f"{shown} {step:<15} {escape_controls(detail)}".rstrip() + "\n")
        sys.stderr.flush()
