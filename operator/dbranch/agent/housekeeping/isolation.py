"""Each thing of a round by itself: what fails does not end the round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dbranch.api.errors import Busy
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)


class Isolation:
    """Catches what goes wrong with one thing, logs it when it changes, and counts it."""

    def __init__(self, count_error: Callable[[], None] = lambda: None) -> None:
        self._count_error = count_error
        # By subject: the text that was logged last.
        self._logged: dict[str, str] = {}
        self._failed: dict[str, str] = {}

    @contextmanager
    def item(self, subject: str) -> Iterator[None]:
        """Run one thing of a round. What is busy is left to the next round, and is no error."""
        try:
            yield
        except Busy as error:
            if self._is_new(subject, error):
                logger.info("%s: %s", subject, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other things of the round come
            self._count_error()
            if self._is_new(subject, error):
                log_error(logger, error, f"housekeeping: {subject}")

    def _is_new(self, subject: str, error: Exception) -> bool:
        text = f"{type(error).__name__}: {error}"
        self._failed[subject] = text
        return self._logged.get(subject) != text

    def end_round(self) -> None:
        """Forget what did not fail in this round."""
        self._logged, self._failed = self._failed, {}
