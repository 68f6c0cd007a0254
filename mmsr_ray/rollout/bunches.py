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


class Bunches:
    """To be mixed into actors with an event loop, which have methods that give a summary and a result."""

    async def bunches(self, method: str, calls: Sequence[Sequence[Any]], seconds: float) -> AsyncIterator[list[Any]]:
        """Call `method` with each of these arguments, all at once; call it with num_returns="streaming".

        Yields two lists a bunch: the results, and then, once it is known that the results are somewhere, a `Told` for each of them.
        Raises TapeMiss: it is no failure of one call, the replay is another run than the one recorded.
        """
        tasks = {asyncio.create_task(self._within(method, arguments, seconds)): place for place, arguments in enumerate(calls)}
        try:
            while tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                done, _ = await asyncio.wait(tasks, timeout=BUNCH_SECONDS)
                ended = [(tasks.pop(task), *task.result()) for task in done]
                yield [result for _, _, result, _ in ended]
                yield [Told(place, summary, failure) for place, summary, _, failure in ended]
        finally:
            for task in tasks:
                task.cancel()

    async def _within(self, method: str, arguments: Sequence[Any], seconds: float) -> tuple[Any, Any, str]:
        """(summary, result, why there is none)."""
        try:
            async with asyncio.timeout(seconds) as limit:
                return *await getattr(self, method)(*arguments), ""
        except TapeMiss:
            raise
        except Exception as error:  # of whatever kind, it is told to who asked
            return None, None, f"no answer within {seconds:.0f} s" if limit.expired() else f"{type(error).__name__}: {error}"
