"""The suite `tools`: what the tool plane costs beside slow services, and TRL's tool loop beside ours.

Every service is a stand-in in a process of its own (jobs/benchmark_server.py); the tools are the real actors of a run.
A tool call of one second is a chain of requests whose times add up to it: 0.2 s upload, 0.6 s image search, 0.2 s for five
thumbnails at once; 0.6 s text search, 0.2 s for five pages at once, 0.2 s for their summaries.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jobs.benchmark_load import BareClient, Photos, Server, one_by_one, play, pointed_at, running, stand_in
from jobs.benchmark_rows import row
from jobs.connect import connect
from mmsr_ray.agent.episode import run_episode
from mmsr_ray.agent.ports import Tools
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.atlas.policy import build_policy
from mmsr_ray.config import AgentConfig, Config
from mmsr_ray.types import Generation, Outcome, Picture, Sample, Sampling, ToolKind

log = logging.getLogger("benchmark")

TRAJECTORIES, TOPK = 512, 5
RATE, BURST = 50.0, 20  # of each search service: requests per second, and at once
PACE = 40.0  # trajectories begun per second where no limit is to be met
CALL_SECONDS = 1.0
ROLLOUTS, LATENCIES, ROUNDS = (8, 32), (0.0, 0.2, 1.0), 3
TRL = Path(__file__).with_name("benchmark_trl.py")
TRL_SECONDS = 400.0


def tools(config: Config) -> list[dict[str, Any]]:
    """All rows. Those beside TRL are left out, with a sentence, where TRL is not installed."""
    connect(config)
    photos = Photos()
    with stand_in() as server:
        rows = [_limited(config, server, photos)]
        with running(pointed_at(config, server, topk=TOPK)) as started:
            rows += asyncio.run(_added(started, server, photos))
            rows.append(asyncio.run(_group(started, server, photos)))
        rows += _beside_trl(config, server, photos)
    return rows


def _row(name: str, value: float, unit: str, reference: str, reference_value: float) -> dict[str, Any]:
    return row(name, value, unit, reference, reference_value, "tools")


def _slow(server: Server, seconds: float) -> None:
    """A tool call takes `seconds` from now on."""
    server.take(search=0.6 * seconds, other=0.2 * seconds)


# ---------------------------------------------------------------------------------------------------- the plane by itself


def _limited(config: Config, server: Server, photos: Photos) -> dict[str, Any]:
    """The last trajectory starts when the limit lets it: (512 - 20) / 50 s after the first; then come two calls of 1 s."""
    ideal = (TRAJECTORIES - BURST) / RATE + 2 * CALL_SECONDS
    with running(pointed_at(config, server, topk=TOPK, rate=RATE, burst=BURST)) as started:
        asyncio.run(play(started, photos.take(8), topk=TOPK, start_of=lambda _: 0.0))  # connections, imports
        time.sleep(1.0)  # the buckets fill again
        _slow(server, CALL_SECONDS)
        played = asyncio.run(play(started, photos.take(TRAJECTORIES), topk=TOPK, start_of=lambda _: 0.0))
    return _row(
        f"seconds until {TRAJECTORIES} trajectories begun at once have all done an image search and then a text search, calls of "
        f"{CALL_SECONDS:g} s, {RATE:g} searches of each kind per second",
        played.wall, "s", "the ideal: latency and rate limit", ideal,
    )  # fmt: skip


async def _added(started: Tools, server: Server, photos: Photos) -> list[dict[str, Any]]:
    """Median of a call's seconds beyond the services' own, in ms, by the tools and by a bare client."""
    rows = []
    async with BareClient(server.base, TOPK) as bare:
        _slow(server, 0.0)
        light = {"tools": [], "bare": []}
        for _ in range(ROUNDS):
            light["tools"].append((await one_by_one(started, photos.take(10), topk=TOPK)).median)
            light["bare"].append((await one_by_one(bare, photos.take(10), topk=TOPK)).median)
        _slow(server, CALL_SECONDS)
        paced = {
            name: await play(searches, photos.take(TRAJECTORIES), topk=TOPK, start_of=lambda number: number / PACE)
            for name, searches in (("tools", started), ("bare", bare))
        }
        _slow(server, 0.0)
    name = "ms of a tool call beyond the services' own time, median, "
    for load, mine, theirs in (
        ("one call at a time", *(statistics.median(light[side]) for side in ("tools", "bare"))),
        (
            f"{TRAJECTORIES} trajectories, {PACE:g} begun per second, calls of 1 s",
            *(paced[s].median - CALL_SECONDS for s in ("tools", "bare")),
        ),
    ):
        rows.append(_row(name + load, 1000 * mine, "ms", "the same requests by bare aiohttp", 1000 * theirs))
    return rows


async def _group(started: Tools, server: Server, photos: Photos) -> dict[str, Any]:
    _slow(server, 0.2)
    before = server.counts().get("google_lens", 0)
    (photo,) = photos.take(1)
    results = await asyncio.gather(*(started.image_search(photo, None, "Who built this?") for _ in range(8)))
    if not all(result.ok for result in results):
        raise RuntimeError(f"an image search failed: {results}")
    paid = server.counts()["google_lens"] - before
    return _row("image searches paid by a GRPO group of 8 on one picture", paid, "searches", "calls", len(results))


# ---------------------------------------------------------------------------------------------------- beside TRL


def _beside_trl(config: Config, server: Server, photos: Photos) -> list[dict[str, Any]]:
    """Scripted rollouts of one tool call each, here and by GRPOTrainer. TRL waits for each sample's tools before the next's."""
    if find_spec("trl") is None:
        log.warning("TRL is not installed, so its rows are left out: .venv/bin/pip install -e '.[bench]' adds it")
        return []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = str(build_policy(Path(folder) / "policy", 0))
        theirs = _trl_seconds(model, server)
        with running(pointed_at(config, server, topk=1)) as started:
            ours = asyncio.run(_our_seconds(started, server, photos, model))
    for tool in ("sync", "async"):
        for rollouts in ROLLOUTS:
            for latency in LATENCIES:
                rows.append(
                    _row(
                        f"seconds of {rollouts} rollouts with a tool call of {latency:g} s each, generation scripted, against TRL with {tool} tools",
                        ours[rollouts, latency], "s", "TRL 1.16 GRPOTrainer", theirs[tool, rollouts, latency],
                    )
                )  # fmt: skip
    return rows


def _trl_seconds(model: str, server: Server) -> dict[tuple[str, int, float], float]:
    sizes = ["--rollouts", *map(str, ROLLOUTS), "--latency", *map(str, LATENCIES), "--rounds", str(ROUNDS)]
    command = [sys.executable, str(TRL), "--model", model, "--base", server.base, *sizes]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TRL_SECONDS, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode != 0:
        raise RuntimeError(f"TRL's side failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {(f["tool"], f["rollouts"], f["latency"]): statistics.median(f["seconds"]) for f in found}


async def _our_seconds(started: Tools, server: Server, photos: Photos, model: str) -> dict[tuple[int, float], float]:
    codec = Codec.load(model, min_pixels=784, max_pixels=3136, thumbnail_max_pixels=784)
    medians = {}
    _slow(server, 0.0)
    await _rollouts(started, codec, photos.take(2))
    for rollouts in ROLLOUTS:
        for latency in LATENCIES:
            _slow(server, latency)
            medians[rollouts, latency] = statistics.median([await _rollouts(started, codec, photos.take(rollouts)) for _ in range(ROUNDS)])
    _slow(server, 0.0)
    return medians


async def _rollouts(started: Tools, codec: Codec, photos: Sequence[bytes]) -> float:
    """Seconds of whole episodes: picture, prompt, tool call, observation, answer, sealing. Raises RuntimeError unless all went well."""
    prompts, limits = PromptSet.load("brief"), AgentConfig(prompts="brief", topk=1)

    def episode(number: int, photo: bytes) -> Any:
        return run_episode(
            Sample(f"{number}", "Who built this?", photo, ("the harbour company",)), index=0, workflow="on_demand",
            generate=_Script(codec, f"who built tower {photo.hex()[-40:]}"), tools=started, codec=codec, prompts=prompts,
            limits=limits, sampling=Sampling(),
        )  # fmt: skip

    began = time.perf_counter()
    trajectories = await asyncio.gather(*(episode(number, photo) for number, photo in enumerate(photos)))
    seconds = time.perf_counter() - began
    for trajectory in trajectories:
        if trajectory.outcome is not Outcome.OK or trajectory.calls(ToolKind.TEXT) != 1:
            raise RuntimeError(f"an episode went wrong: {trajectory.outcome} {trajectory.detail}")
    return seconds


class _Script:
    """A policy of one rollout: it searches, then it answers, in no time."""

    def __init__(self, codec: Codec, query: str) -> None:
        self._codec = codec
        self._turns = iter(
            (f"<reason>I look.</reason><text_search>{query}</text_search>", "<reason>I know.</reason><answer>It is the tower.</answer>")
        )

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        ids = self._codec.encode_turn(next(self._turns))
        return Generation(ids, [-0.5] * len(ids), [0] * len(ids), stopped=True)
