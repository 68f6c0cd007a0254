"""Many calls to one runner as one: Ray's cost of a call is paid once a list of questions, not once a question.

Promise: every call of the list ends once, within its time, with a result or with the reason why there is none; what ended comes in
bunches, at most `BUNCH_SECONDS` after the first of a bunch, however long the others take. Cancelling the list cancels what is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmsr_ray.tools.tape import TapeMiss

BUNCH_SECONDS = 0.05  # what ends so soon after another comes with it


@dataclass(frozen=True, slots=True)
class Told:
    """How the call at `place` of the list ended; without a summary, `failure` says why."""

    place: int
    summary: Any = None
    failure: str = ""
    not_on_tape: bool = False  # no failure of one call: the replay is another run than the one recorded


class Bunches:
    """To be mixed into actors with an event loop, which have methods that give a summary and a result."""

    async def bunches(self, method: str, calls: Sequence[Sequence[Any]], seconds: float) -> AsyncIterator[list[Any]]:
        """Call `method` with each of these arguments, all at once; call it with num_returns="streaming".

        Yields two lists a bunch: the results, and then, once it is known that the results are somewhere, a `Told` for each of them.
        """
        tasks = {asyncio.create_task(self._within(place, method, arguments, seconds)) for place, arguments in enumerate(calls)}
        try:
            while tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                done, tasks = await asyncio.wait(tasks, timeout=BUNCH_SECONDS)
                ended = [task.result() for task in done]
                yield [result for result, _ in ended]
                yield [told for _, told in ended]
        finally:
            for task in tasks:
                task.cancel()

    async def _within(self, place: int, method: str, arguments: Sequence[Any], seconds: float) -> tuple[Any, Told]:
        """The result, None where there is none."""
        try:
            async with asyncio.timeout(seconds) as limit:
                summary, result = await getattr(self, method)(*arguments)
                return result, Told(place, summary)
        except TapeMiss as miss:
            return None, Told(place, failure=str(miss), not_on_tape=True)
        except Exception as error:  # of whatever kind, it is told to who asked
            return None, Told(place, failure=f"no answer within {seconds:.0f} s" if limit.expired() else f"{type(error).__name__}: {error}")
