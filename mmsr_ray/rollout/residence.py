"""An engine's coming to and going from its device, for engines that share it with a learner rank.

Promise: after `leave` nothing runs and, where vLLM can sleep, the device holds neither weights nor cache; requests are kept.
`come_back_weights` makes room for weights, which then hold anything unless they were saved: load a version. `come_back_cache`
makes room for the cache and lets requests go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mmsr_ray.rollout.update import UpdateMode

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

SAVE_WEIGHTS, DISCARD_WEIGHTS = 1, 2  # vLLM's sleep levels: weights go to host memory, or nowhere


class Residence(Protocol):
    async def leave(self, llm: AsyncLLM) -> None: ...

    async def come_back_weights(self, llm: AsyncLLM) -> None: ...

    async def come_back_cache(self, llm: AsyncLLM) -> None: ...


class Paused:
    """On a CPU, where vLLM has no sleep mode: memory stays, nothing runs. `mode`: what becomes of the turns under way."""

    def __init__(self, mode: UpdateMode = UpdateMode.KEEP) -> None:
        self._mode = mode

    async def leave(self, llm: AsyncLLM) -> None:
        await llm.pause_generation(mode=self._mode.value, clear_cache=True)

    async def come_back_weights(self, llm: AsyncLLM) -> None:
        pass

    async def come_back_cache(self, llm: AsyncLLM) -> None:
        await llm.resume_generation()


class Asleep:
    """vLLM's sleep mode (the engine must be built with `enable_sleep_mode`). It pauses first and resumes when all is back."""

    def __init__(self, level: int) -> None:
        self._level = level

    async def leave(self, llm: AsyncLLM) -> None:
        await llm.sleep(level=self._level, mode="keep")

    async def come_back_weights(self, llm: AsyncLLM) -> None:
        await llm.wake_up(tags=["weights"])

    async def come_back_cache(self, llm: AsyncLLM) -> None:
        if not await llm.wake_up(tags=["kv_cache"]):
            raise RuntimeError("vLLM's engine is still asleep after its weights and its cache were woken")


def residence(*, whole: bool) -> Residence:
    """What suits this machine. `whole`: each version brings all weights, so that none needs saving."""
    from vllm.platforms import current_platform

    return Paused() if current_platform.is_cpu() else Asleep(sleep_level(whole=whole))


def sleep_level(*, whole: bool) -> int:
    """Adapters alone would come back to a model without its other weights."""
    return DISCARD_WEIGHTS if whole else SAVE_WEIGHTS
