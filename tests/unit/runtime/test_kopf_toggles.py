"""Objects that wait for kopf's indices are woken once, not once for each other object."""

from __future__ import annotations

import asyncio

from kopf._cogs.aiokits.aiotoggles import Toggle, ToggleSet

from dbranch.runtime.kopf_toggles import wake_only_on_change

COUNT = 200


def test_all_wait_until_the_last_toggle_is_gone_and_are_woken_once() -> None:
    wake_only_on_change()
    checks = 0

    def is_all_on(states: object) -> bool:
        nonlocal checks
        checks += 1
        return all(states)  # type: ignore[call-overload,no-any-return]

    async def scenario() -> None:
        indexed = ToggleSet(is_all_on)
        toggles = [await indexed.make_toggle(name=str(number)) for number in range(COUNT)]
        done: list[int] = []

        async def wait(number: int) -> None:
            await indexed.wait_for(True)
            done.append(number)

        waiting = [asyncio.create_task(wait(number)) for number in range(COUNT)]
        await asyncio.sleep(0)
        for toggle in toggles[:-2]:
            await indexed.drop_toggle(toggle)
            await asyncio.sleep(0)
        assert done == [] and not indexed.is_on()
        await indexed.drop_toggles(toggles[-2:])
        await asyncio.gather(*waiting)
        assert sorted(done) == list(range(COUNT)) and indexed.is_on()
        # A new one that is off holds everybody again, until it is turned on.
        late = await indexed.make_toggle()
        assert isinstance(late, Toggle)
        second = asyncio.create_task(wait(COUNT))
        await asyncio.sleep(0)
        await late.turn_to(True)
        await second

    asyncio.run(scenario())
    # A few for each toggle and each who waits; kopf's own way takes some COUNT * COUNT / 2.
    assert checks < 10 * COUNT
