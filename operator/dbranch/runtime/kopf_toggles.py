"""kopf's wait for its indices, without waking every object for each other one.

At a start each object's task waits until all objects are in the indices. kopf 1.45 wakes all of these tasks whenever
one object more is in them, which is quadratic: 2,000 branches took the controller 36 s of processor time (tried).
"""

from __future__ import annotations

from collections.abc import Iterable

from kopf._cogs.aiokits.aiotoggles import Toggle, ToggleSet


def wake_only_on_change() -> None:
    """Make kopf wake those who wait for a set of toggles only when the state of the set changes.

    Adding or dropping a toggle changes no other toggle, so nobody waits for anything else. Idempotent.
    """
    ToggleSet.make_toggle = _make_toggle  # type: ignore[method-assign]
    ToggleSet.drop_toggle = _drop_toggle  # type: ignore[method-assign]
    ToggleSet.drop_toggles = _drop_toggles  # type: ignore[method-assign]


async def _make_toggle(self: ToggleSet, value: bool = False, *, name: str | None = None) -> Toggle:
    toggle = Toggle(value, name=name, condition=self._condition)
    async with self._condition:
        was_on = self.is_on()
        self._toggles.add(toggle)
        _wake(self, was_on)
    return toggle


async def _drop_toggle(self: ToggleSet, toggle: Toggle) -> None:
    await _drop_toggles(self, (toggle,))


async def _drop_toggles(self: ToggleSet, toggles: Iterable[Toggle]) -> None:
    async with self._condition:
        was_on = self.is_on()
        self._toggles.difference_update(toggles)
        _wake(self, was_on)


def _wake(toggles: ToggleSet, was_on: bool) -> None:
    if toggles.is_on() != was_on:
        toggles._condition.notify_all()
