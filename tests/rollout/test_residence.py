"""What vLLM is told when an engine leaves its device and comes back, in which order. vLLM's own part needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from mmsr_ray.rollout.residence import Asleep, Paused, Residence, sleep_level
from mmsr_ray.rollout.update import UpdateMode


class Told:
    """Takes down what it is told. `asleep`: never wakes up whole."""

    def __init__(self, *, asleep: bool = False) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._asleep = asleep

    def __getattr__(self, name: str) -> Any:
        async def told(**arguments: Any) -> bool:
            self.calls.append((name, arguments))
            return arguments.get("tags") == ["kv_cache"] and not self._asleep

        return told


async def there_and_back(residence: Residence, llm: Any) -> None:
    await residence.leave(llm)
    await residence.come_back_weights(llm)
    await residence.come_back_cache(llm)


async def test_a_sleeper_wakes_weights_first() -> None:
    told = Told()
    await there_and_back(Asleep(sleep_level(whole=True)), told)
    assert told.calls == [
        ("sleep", {"level": 2, "mode": "keep"}),
        ("wake_up", {"tags": ["weights"]}),
        ("wake_up", {"tags": ["kv_cache"]}),
    ]
    with pytest.raises(RuntimeError, match="still asleep"):
        await there_and_back(Asleep(1), Told(asleep=True))


async def test_on_a_cpu_it_pauses() -> None:
    told = Told()
    await there_and_back(Paused(UpdateMode.WAIT), told)
    assert told.calls == [("pause_generation", {"mode": "wait", "clear_cache": True}), ("resume_generation", {})]


def test_weights_are_saved_where_a_version_does_not_bring_them_all() -> None:
    assert (sleep_level(whole=True), sleep_level(whole=False)) == (2, 1)


def test_vllm_has_what_it_is_told() -> None:
    """Names and arguments against vLLM's own signatures, without an engine."""
    import inspect

    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    assert {"level", "mode"} <= set(inspect.signature(AsyncLLM.sleep).parameters)
    assert "tags" in inspect.signature(AsyncLLM.wake_up).parameters
    assert "enable_sleep_mode" in inspect.signature(AsyncEngineArgs).parameters
