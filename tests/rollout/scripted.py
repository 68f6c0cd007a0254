"""A runner whose tools answer from a script, and helpers that run inside its process."""

import asyncio
import hashlib
import io
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsr_ray.agent.episode import Tools
from mmsr_ray.agent.pieces import Own
from mmsr_ray.agent.ports import EngineError
from mmsr_ray.agent.tokens import Transcript
from mmsr_ray.rollout.env_runner import SearchEnvRunner
from mmsr_ray.rollout.update import UpdateMode
from mmsr_ray.types import Generation, ImageHit, Picture, Sampling, SealedTokens, TextHit, ToolFailure, ToolKind, ToolResult

GREEDY = Sampling(temperature=0.0, max_tokens=12)


def png(seed: int, side: int = 56) -> bytes:
    """A picture of noise, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def as_on_the_hub(model: Path, folder: Path) -> Path:
    """A copy of a model whose config.json is written as those of Qwen/Qwen2.5-VL are: the language model's numbers on top."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    text = {name: value for name, value in config.pop("text_config").items() if name not in ("model_type", "dtype", "tie_word_embeddings")}
    (folder / "config.json").write_text(json.dumps(text | config))
    return folder


class ScriptedTools:
    """Tools without latency and without a web."""

    failure: ToolFailure | None = None

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        if self.failure is not None:
            return ToolResult(ToolKind.IMAGE, "", failure=self.failure, detail=f"scripted {self.failure}")
        data = png(1, 28)
        hit = ImageHit("a page", Picture(data, hashlib.sha256(data).hexdigest()))
        return ToolResult(ToolKind.IMAGE, "", (hit,))

    async def text_search(self, query: str, question: str) -> ToolResult:
        return ToolResult(ToolKind.TEXT, query, (TextHit("http://a", "a summary"),))


class ScriptedRunner(SearchEnvRunner):
    def connect_tools(self) -> Tools:
        return ScriptedTools()


# ---------------------------------------------------------------------------------------------------- run in the runner


def prompt(runner: SearchEnvRunner, text: str, *pictures: int) -> tuple[list[int], list[Picture]]:
    """Compact ids and pictures of a user turn with noise pictures."""
    codec = runner._engine.codec
    transcript = Transcript(codec)
    transcript.add_user([*(codec.user_picture(png(seed)) for seed in pictures), Own(text)])
    return transcript.compact_ids(), transcript.pictures


async def generate(runner: SearchEnvRunner, text: str, pictures: tuple[int, ...], sampling: Sampling) -> Generation:
    return await runner._engine.generate(*prompt(runner, text, *pictures), sampling)


async def three_turns(runner: SearchEnvRunner, sampling: Sampling) -> SealedTokens:
    """A sealed transcript with four pictures of two sizes and three sampled turns."""
    codec = runner._engine.codec
    transcript = Transcript(codec)
    transcript.add_user([codec.user_picture(png(5)), Own("who is this?")])
    for turn in range(3):
        transcript.add_generation(await runner._engine.generate(transcript.compact_ids(), transcript.pictures, sampling))
        if turn < 2:
            found = [codec.thumbnail(png(10 + turn, 28)), codec.thumbnail(png(20 + turn, 56))][: 2 - turn]
            transcript.add_user([Own("1."), found[0], Own("a page"), *found[1:], Own("now answer")])
    return transcript.seal()


async def cancelled(runner: SearchEnvRunner, calls: int) -> int:
    """Requests left in the engine after some were cancelled half way."""
    tasks = [asyncio.create_task(generate(runner, f"{i}", (1,), Sampling(0.0, max_tokens=400))) for i in range(calls)]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(result, asyncio.CancelledError) for result in ended)
    return unfinished(runner)


def unfinished(runner: SearchEnvRunner) -> int:
    """Requests that are with the engine."""
    llm = runner._engine._llm
    assert llm is not None
    return llm.get_num_unfinished_requests()


def set_update(runner: SearchEnvRunner, mode: UpdateMode) -> None:
    runner._engine._update_mode = mode


def fail_generations(runner: SearchEnvRunner, failures: int) -> None:
    """The next `failures` generations break; negative: all of them, until called again with 0."""
    engine = runner._engine
    original = type(engine).generate.__get__(engine)
    left = [failures]

    async def flaky(*args: Any) -> Generation:
        if left[0] != 0:
            left[0] -= 1
            raise EngineError("scripted")
        return await original(*args)

    engine.generate = flaky  # type: ignore[method-assign]


def tools_fail(runner: SearchEnvRunner, failure: ToolFailure | None) -> None:
    """Every image search from now on; None: no longer."""
    tools = runner._tools
    assert isinstance(tools, ScriptedTools)
    tools.failure = failure


def kill_engine(runner: SearchEnvRunner) -> list[int]:
    """Pids of this process and of the engine process, which is killed."""
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    return [os.getpid(), *(child.pid or 0 for child in children)]


async def waits_for_its_turn(runner: SearchEnvRunner) -> bool:
    """Asked for prompts while it may not take device memory, a runner starts no engine, and has nothing to give up."""
    asked = asyncio.create_task(runner.ready())
    await asyncio.sleep(1.5)
    await asyncio.wait_for(runner.leave_device(), 1.0)
    started = runner._engine._llm is not None or asked.done()
    return not started and runner._at_gate
