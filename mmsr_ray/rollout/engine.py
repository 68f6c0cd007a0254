"""One vLLM engine: token ids and pictures in, sampled ids with log-probs, where they are asked for, and weight versions out.

Promises. Log-probs are those of the distribution that was sampled from: temperature applied, vision tokens excluded,
no top-p and no top-k. Each token carries the version of the weights that sampled it. An update happens between two
engine steps (`UpdateMode`): requests in flight are frozen, recomputed under the new weights and go on, or they finish
before it; no cached key, value or vision embedding survives it. Everything that goes wrong is an `EngineError`, and `EngineDead` when the process must be
replaced. The engine is bound to the event loop that called `start`.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsr_ray.agent.pictures import PictureLimits
from mmsr_ray.agent.ports import EngineError
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.config import Config
from mmsr_ray.kernels import bound_kernel_caches
from mmsr_ray.rollout.pixels import PixelCache
from mmsr_ray.rollout.residence import Paused, Residence, residence
from mmsr_ray.rollout.turnstile import Turnstile
from mmsr_ray.rollout.update import UpdateMode
from mmsr_ray.types import Generation, Picture, Sampling
from mmsr_ray.weights.collective import Invitation

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs, RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["EngineDead", "EngineError", "VLLMEngine", "load_codec"]

logger = logging.getLogger(__name__)

BAN = -100.0  # added to a logit: the most vLLM allows, and 0 probability in float32
CPU_BLOCK = 32  # tokens per cache block: vLLM's 128 is longer than most prompts of a small model, so nothing would be shared
PIXEL_CACHE_BYTES = 256 << 20
FIRST_VERSION = 0  # label of the weights that the model folder holds


class EngineDead(EngineError):
    """The engine cannot serve again: its process died, or an update broke half way."""


def load_codec(config: Config) -> Codec:
    """The tokens of the configured model. Raises CodecError."""
    model = config.model
    return Codec.load(
        model.path,
        min_pixels=model.min_pixels,
        max_pixels=model.max_pixels,
        thumbnail_max_pixels=model.thumbnail_max_pixels,
        limits=PictureLimits(config.data.max_image_bytes, config.data.max_image_pixels),
    )


class VLLMEngine:
    """An AsyncLLM with the settings of a config. `start` once, then `generate` from any number of coroutines."""

    def __init__(self, config: Config, store_name: str | None, namespace: str, *, seed: int | None = None) -> None:
        """`store_name` names the run's WeightStore in Ray's `namespace`; None for weights that never change (no Ray needed)."""
        self._config = config
        self._update_mode = UpdateMode(config.rollout.update)
        self._store_name = store_name
        self._namespace = namespace
        self._seed = config.run.seed if seed is None else seed
        self._llm: AsyncLLM | None = None
        self._codec: Codec | None = None
        self._turnstile = Turnstile()
        self._pixels = PixelCache(PIXEL_CACHE_BYTES)
        self._requests = itertools.count()
        self._version: int | None = None  # None until the first sync
        self._bias: dict[int, float] | None = None  # bans vision tokens where `ban.Ban` does not
        self._broken: str | None = None
        self._residence: Residence = Paused()
        self._changing = asyncio.Lock()  # one update or leave at a time
        self._away: AsyncExitStack | None = None  # while the device is somebody else's: the turnstile, held
        self._loaded: int | None = None  # while away: the version that lies on the device already
        self.tokens = 0  # sampled since the start
        self.syncs = 0

    @property
    def codec(self) -> Codec:
        """Of the running engine's model."""
        if self._codec is None:
            raise EngineError("the engine was not started")
        return self._codec

    @property
    def requests(self) -> int:
        """In the engine now, waiting ones included; 0 where it does not run."""
        return 0 if self._llm is None else self._llm.output_processor.get_num_unfinished_requests()

    # ------------------------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Load the model, compile what needs compiling, reach the weight store. Raises EngineError, also when it takes too long."""
        limit = self._config.rollout.start_seconds
        try:
            await asyncio.wait_for(self._start(), limit)
        except Exception as error:
            self.stop()
            why = f"within rollout.start_seconds={limit:.0f}" if isinstance(error, TimeoutError) else f": {error}"
            raise EngineError(f"the engine did not start {why}") from error

    async def _start(self) -> None:
        began = time.monotonic()
        _set_environment(self._config)
        self._codec = await asyncio.to_thread(load_codec, self._config)
        self._llm = await asyncio.to_thread(_build, self._config, self._store_name, self._seed, self._codec.banned_ids)
        self._bias = None if _bans_by_itself() else dict.fromkeys(self._codec.banned_ids, BAN)
        self._residence = residence(whole=self._config.learner.lora.sync != "adapter")
        await self._llm.update_weight_version(str(FIRST_VERSION))
        await self._warm_up()
        if self._store_name is not None:
            await self._reach_store(self._store_name)
        logger.info("engine ready in %.1f s: %s, %s", time.monotonic() - began, self._config.model.path, self._config.model.dtype)

    async def _warm_up(self) -> None:
        """One request through the text and the picture path: kernels compile here and not in the first rollout."""
        side = 2 * self.codec.geometry.factor
        buffer = io.BytesIO()
        Image.new("RGB", (side, side)).save(buffer, format="PNG")
        await self.generate([self.codec.image_pad_id, self.codec.end_id], [Picture(buffer.getvalue(), "warm-up")], Sampling(max_tokens=2))

    async def _reach_store(self, store_name: str) -> None:
        import ray
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        address = ray.get_runtime_context().gcs_address
        where = {"store": store_name, "namespace": self._namespace, "ray_address": address}
        await self._running().init_weight_transfer_engine(WeightTransferInitRequest(init_info=where))

    async def check(self) -> None:
        """Raises EngineDead if the engine can serve no more."""
        if self._broken is not None:
            raise EngineDead(self._broken)
        if self._running().errored:
            raise EngineDead("the engine's process died")

    def stop(self) -> None:
        """End the engine's processes, at once: left to itself vLLM takes its heap apart first, seconds of a CPU. Idempotent."""
        if self._llm is not None:
            self._llm.shutdown(timeout=0)
            self._llm = None

    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineError("the engine is not running")
        return self._llm

    # ------------------------------------------------------------------------------------------------ generation

    async def generate(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        """One model turn. `prompt_ids` is compact: one pad per picture. Temperature 0 is greedy. Raises EngineError.

        The end token belongs to the result. Cancelling the call ends the request in the engine.
        """
        began = time.monotonic()
        await self.check()
        try:
            output = await self._request(prompt_ids, pictures, self._params(sampling))
        except Exception as error:
            await self.check()
            raise EngineError(f"the engine refused or lost a request: {error}") from error
        generation = _generation(output, time.monotonic() - began)
        self.tokens += len(generation.token_ids)
        return generation

    async def _request(self, prompt_ids: list[int], pictures: list[Picture], params: SamplingParams) -> RequestOutput:
        llm = self._running()
        prompt: dict[str, Any] = {"prompt_token_ids": prompt_ids}
        if pictures:
            prompt["multi_modal_data"] = {"image": [self._pixels.get(picture) for picture in pictures]}
            prompt["multi_modal_uuids"] = {"image": [picture.sha for picture in pictures]}
        async with self._turnstile.passing():  # until it is in the engine's queue, an update has to wait
            (rendered,) = await llm.renderer.render_cmpl_async([prompt])  # type: ignore[list-item]
            queue = await llm.add_request(f"{next(self._requests)}", rendered, params)
        try:
            return queue.get_nowait() or await queue.get()  # type: ignore[return-value]  # the only output: FINAL_ONLY
        except asyncio.CancelledError:
            await llm.abort(queue.request_id, internal=True)
            raise
        finally:
            queue.close()

    def _params(self, sampling: Sampling) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop_token_ids=[self.codec.end_id],
            logit_bias=self._bias,
            logprobs=0 if sampling.logprobs else None,  # of the sampled token alone
            flat_logprobs=sampling.logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )

    # ------------------------------------------------------------------------------------------------ weights

    async def version(self) -> int:
        """Of the weights that sample now; FIRST_VERSION before the first sync."""
        return FIRST_VERSION if self._version is None else self._version

    async def sync(self, version: int, invitation: Invitation | None = None) -> dict[str, float]:
        """Load a published version; seconds waited for the turnstile, paused, updating, and in all. No-op when it is loaded.

        `invitation`: to a group to which the learner sends the version; without one it comes from the object store.
        An engine that has left its device comes back to it, weights first.
        Raises EngineDead when it failed or missed `rollout.sync_seconds`: the weights may then be a mixture.
        """
        began = time.monotonic()
        with self._broken_by(f"the update to weight version {version}"):
            async with asyncio.timeout(self._config.rollout.sync_seconds), self._changing, self._away or await self._nobody_inside():
                waited = time.monotonic()
                if self._version == version and self._away is None:
                    return {"wait": waited - began, "pause": 0.0, "update": 0.0, "total": waited - began}
                await self.check()
                paused, updated = await self._update(version, invitation)
                self._away = self._loaded = None
        self._version = version
        self.syncs += 1
        return {"wait": waited - began, "pause": paused - waited, "update": updated - paused, "total": time.monotonic() - began}

    async def load(self, version: int, handles: bytes) -> None:
        """Load a version from the memory of a learner on the same device (`weights.shared`), and stay away: `sync` then brings the rest back.

        Raises EngineDead like `sync`, and EngineError for an engine that has not left.
        """
        if self._away is None:
            raise EngineError("an engine that is on its device loads versions by sync")
        with self._broken_by(f"the update to weight version {version}"):
            async with asyncio.timeout(self._config.rollout.sync_seconds), self._changing:
                await self.check()
                if self._loaded is None:
                    await self._residence.come_back_weights(self._running())
                await self._take({"version": version, "handles": handles})
                self._loaded = version

    async def leave(self) -> None:
        """Give up the device until the next `sync`; requests wait, those in flight are kept. No-op while away.

        Raises EngineDead when it failed or missed `rollout.sync_seconds`, and where a `load` was not followed by a `sync`: vLLM cannot
        go back from half awake.
        """
        with self._broken_by("leaving the device"):
            async with asyncio.timeout(self._config.rollout.sync_seconds), self._changing:
                if self._loaded is not None:
                    raise EngineError(f"it has loaded version {self._loaded} and was not to come back")
                if self._away is not None:
                    return
                nobody_inside = await self._nobody_inside()
                await self.check()
                await self._residence.leave(self._running())
                self._away = nobody_inside

    async def _nobody_inside(self) -> AsyncExitStack:
        """The turnstile, held: no request is half way in and none comes in before this is closed."""
        stack = AsyncExitStack()
        await stack.enter_async_context(self._turnstile.held())
        return stack

    @contextmanager
    def _broken_by(self, what: str) -> Iterator[None]:
        """An engine in which a change failed half way is dead: its weights may be a mixture, its memory half there."""
        try:
            yield
        except BaseException as error:  # a cancellation, too
            self._broken = self._broken or f"{what} failed: {error!r}"
            if isinstance(error, Exception):
                raise EngineDead(self._broken) from error
            raise

    async def _update(self, version: int, invitation: Invitation | None) -> tuple[float, float]:
        llm = self._running()
        stay = Paused(self._update_mode) if self._away is None else self._residence
        if self._away is None:
            # drops prefix, processor and encoder caches while nothing runs; nothing runs again before the cache comes back
            await stay.leave(llm)
        if self._loaded is None:
            await stay.come_back_weights(llm)
        paused = time.monotonic()
        if self._loaded != version:
            await self._take({"version": version, "invitation": None if invitation is None else asdict(invitation)})
        updated = time.monotonic()
        await stay.come_back_cache(llm)
        return paused, updated

    async def _take(self, update: dict[str, Any]) -> None:
        """`update`: the fields of `weights.transfer.Update`."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm = self._running()
        await llm.start_weight_update()
        await llm.update_weights(WeightTransferUpdateRequest(update_info=update))
        await llm.finish_weight_update(weight_version=str(update["version"]))


# ---------------------------------------------------------------------------------------------------- settings


def _set_environment(config: Config) -> None:
    """For vLLM's processes, which inherit it.

    On a CPU, threads are not bound: vLLM would pin them to cores of its own choice, next to learner ranks that know
    nothing of it. And one worker runs inside the engine process: the hop to a process of its own costs 40 % of the CPU
    time of a small model (measured). The variable's name is vLLM's; the engine stays a process of its own all the same.
    Memory comes in huge pages: an update makes every layer anew, and to clear 4 KiB pages one by one takes several times as long
    as to fill them (measured: 1.3 against 5 to 11 GB/s).
    """
    bound_kernel_caches()
    os.environ["OMP_NUM_THREADS"] = str(config.rollout.threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's, read at its first large allocation
    from vllm.platforms import current_platform  # reads the level above when it is imported

    if current_platform.is_cpu():
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # `ban.Ban` is written for V1
        if config.rollout.tensor_parallel == 1:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    else:
        spawn()


def spawn() -> None:
    """Have vLLM start its processes anew: whoever asked about a GPU before cannot fork one that uses it (vLLM sees to it in actors only)."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"


def _bans_by_itself() -> bool:
    """Whether engines here are given `ban.Ban`."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _build(config: Config, store_name: str | None, seed: int, banned: Sequence[int]) -> AsyncLLM:
    """Blocking: starts vLLM's processes and loads the model.

    As the class for offline use, for what vLLM sets by use: on an H100 or H200 steps of at most 16,384 tokens instead of 2,048, two
    pictures' worth, beside which prompts and the vision tower would wait for each other.
    """
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(engine_args(config, store_name, seed, banned), usage_context=UsageContext.LLM_CLASS)


def engine_args(config: Config, store_name: str | None, seed: int, banned: Sequence[int] = ()) -> AsyncEngineArgs:
    """vLLM's arguments for a config and for the tokens that are never sampled."""
    from vllm import AsyncEngineArgs
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.platforms import current_platform

    from mmsr_ray.rollout.ban import engine_arguments

    rollout, agent, model = config.rollout, config.agent, config.model
    max_model_len = rollout.max_model_len or agent.max_total_tokens
    cpu: dict[str, Any] = {}
    if current_platform.is_cpu():
        cpu = {
            "kv_cache_memory_bytes": rollout.kv_cache_gib << 30,
            "block_size": CPU_BLOCK,
            # Room in one step for whatever can be there: a prompt with a seed that is split over two steps kills vLLM's CPU
            # engine (it rewinds the request's generator by an offset, which CPU generators do not have). Without
            # `rollout.seeded` there are seeds too: of an evaluation that is not greedy, of a client of the service.
            "max_num_batched_tokens": rollout.max_num_seqs * max_model_len,
            **engine_arguments(banned),
        }
    return AsyncEngineArgs(
        model=model.path,
        dtype=model.dtype,  # type: ignore[arg-type]
        seed=seed,
        max_model_len=max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel,
        # Left to itself vLLM asks Ray for its workers when it finds itself in a placement group, and the runner has that group's cards.
        distributed_executor_backend=None if rollout.tensor_parallel == 1 else "mp",
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        enforce_eager=rollout.enforce_eager,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",  # no sampling defaults from the model folder: they would bias the log-probs
        limit_mm_per_prompt={"image": 1 + agent.topk * max(1, agent.image_search_limit), "video": 0},
        # Pictures come in their final size; resizing here could only move them away from what the learner sees.
        mm_processor_kwargs={
            "do_resize": False,
            "size": {"shortest_edge": 1, "longest_edge": max(model.max_pixels, model.thumbnail_max_pixels)},
        },
        weight_transfer_config=None if store_name is None else WeightTransferConfig(backend="mmsr_weights"),
        disable_log_stats=True,
        enable_sleep_mode=config.learner.colocated and not current_platform.is_cpu(),
        **cpu,
    )


def _generation(output: RequestOutput, seconds: float) -> Generation:
    completion = output.outputs[0]
    ids = list(completion.token_ids)
    flat: Any = completion.logprobs
    versions = np.full(len(ids), FIRST_VERSION)
    for span in completion.weight_versions or ():
        versions[span.start : span.end] = int(span.version)
    return Generation(
        token_ids=ids,
        logprobs=None if flat is None else [flat.logprobs[start] for start in flat.start_indices],
        versions=versions.tolist(),
        stopped=completion.finish_reason == "stop",
        seconds=seconds,
    )
