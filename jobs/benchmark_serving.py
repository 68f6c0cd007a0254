"""The suite `serving`: load on the running application, what it costs beyond the bare engine, and what happens when something changes.

Promise: clients are a process of their own. Both sides of the overhead get the same prompts, greedy, answers of the same length: the
untrained policy hardly ever ends one (benchmark_evaluation.py). A request that fails where none may stops the measurement.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import serve

from jobs.benchmark_rows import row
from jobs.benchmark_weights import larger
from mmsr_ray.config import Config
from mmsr_ray.data.reader import read_samples
from mmsr_ray.rollout.measure import bare_rate
from mmsr_ray.serving.app import start
from mmsr_ray.serving.keys import Keys
from mmsr_ray.types import Sample

CLIENTS_PROGRAM = Path(__file__).with_name("benchmark_clients.py")
CLIENTS = (1, 16, 64, 256)
BEYOND = 512  # clients, twice serving.max_requests
QUESTIONS = 256
SECONDS = 5.0
MEANWHILE = 4.0  # seconds after which something happens to the service under load
SWAPS = 3
SWAP_SECONDS = 15.0  # of load, enough for SWAPS of them
PATIENCE = 180.0
SETTINGS = ("serving.port=8017", "serving.requests_per_minute=0", "serving.model_name=atlas")
Load = dict[str, Any]


def serving(config: Config) -> list[dict[str, Any]]:
    """Load, overload, a live swap and two kills with the model of model.path; the overhead with the untrained one of Atlas."""
    samples = read_samples(config.data.train, config.data, questions=QUESTIONS, seed=config.run.seed)
    rows = _overheads(config, samples)
    with _service(config) as service, tempfile.TemporaryDirectory() as folder:
        bodies = _bodies(Path(folder), samples, "atlas")
        loads = {clients: service.load(bodies, clients) for clients in CLIENTS}
        _none_failed(loads.values())
        rows += _load_rows(loads)
        rows += _overload(service.load(bodies, BEYOND), loads[max(CLIENTS)])
        rows += _changes(service, config, bodies, Path(folder))
    return rows


class Service:
    def __init__(self, url: str) -> None:
        self.url = url

    def load(self, bodies: Path, clients: int, *, seconds: float = SECONDS, meanwhile: Callable[[], None] | None = None) -> Load:
        command = [sys.executable, str(CLIENTS_PROGRAM), self.url, str(bodies), f"--clients={clients}", f"--seconds={seconds}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(process.communicate, timeout=seconds + 2 * PATIENCE)
            if meanwhile:
                time.sleep(MEANWHILE)
                meanwhile()  # what it raises stops the measurement
                if process.poll() is not None:
                    raise RuntimeError(f"what happens to the service took longer than the {seconds:g} s of load")
            out, _ = ended.result()
        found = json.loads(out)
        sys.stderr.write(f"{clients} clients: {found}\n")
        return found


@contextmanager
def _service(config: Config) -> Iterator[Service]:
    start(config, Keys([]))
    try:
        yield Service(f"http://{config.serving.host}:{config.serving.port}")
    finally:
        serve.shutdown()


def _bodies(folder: Path, samples: Sequence[Sample], model: str) -> Path:
    file = folder / f"{model.replace(':', '-')}.jsonl"
    with file.open("w") as out:
        for sample in samples:
            url = "data:image/png;base64," + base64.b64encode(sample.image).decode()
            parts = [{"type": "text", "text": sample.question}, {"type": "image_url", "image_url": {"url": url}}]
            out.write(json.dumps({"model": model, "messages": [{"role": "user", "content": parts}]}) + "\n")
    return file


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides of an overhead do: direct answers of `tokens` tokens, a picture each."""

    model: str  # in words
    clients: int
    questions: int
    tokens: int
    seconds: float  # of load on ours


TINY = Work("a model of a million parameters", 128, QUESTIONS, 64, 1.5 * SECONDS)
HALF = Work("a model of the 0.5B shape, random weights, bf16", 32, 32, 32, 6 * SECONDS)


def _overheads(config: Config, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The service costs the same CPU for each request, whatever the model: beside a tiny one it looks large, so there is a larger one."""
    tiny = Path(config.atlas.dir, "policy")
    rows = [_overhead(replace(config, model=replace(config.model, path=str(tiny))), samples, TINY)]
    with larger(config, tiny) as large:
        return rows if large is None else [*rows, _overhead(large, samples, HALF, large.rollout.threads)]


def _overhead(config: Config, samples: Sequence[Sample], work: Work, threads: int = 0) -> dict[str, Any]:
    """HTTP, ingress, agent and engine against vLLM alone."""
    short = replace(config, agent=replace(config.agent, max_turn_tokens=work.tokens))
    asked = samples[: work.questions]
    bare = bare_rate(short, asked, 1, 3, direct=True, threads=threads)
    with _service(short) as service, tempfile.TemporaryDirectory() as folder:
        ours = service.load(_bodies(Path(folder), asked, "atlas:direct"), work.clients, seconds=work.seconds)
    _none_failed([ours])
    name = f"tokens per second through HTTP, ingress, agent and engine against bare vLLM, {work.model}, {work.clients} clients"
    return row(f"{name}, direct answers of {work.tokens} tokens, a picture each", ours["tokens_per_second"], "tokens/s",
               "vllm.LLM.generate on the same prompts", bare.per_second, "serving")  # fmt: skip


def _load_rows(loads: dict[int, Load]) -> list[dict[str, Any]]:
    rows, one = [], loads[1]
    for clients, load in loads.items():
        who = "one client" if clients == 1 else f"{clients} clients"
        rows.append(
            row(f"answers per second, {who}, on demand with searches", load["requests_per_second"], "answers/s",
                "one client", one["requests_per_second"], "serving")
        )  # fmt: skip
        for share in ("p50", "p95", "p99"):
            rows.append(row(f"{share} of an answer, {who}, ms", 1e3 * load[share], "ms", "one client", 1e3 * one[share], "serving"))
    return rows


def _overload(load: Load, below: Load) -> list[dict[str, Any]]:
    """Twice the clients that may be inside: 429 with Retry-After, and the others fare as before."""
    statuses = load["statuses"]
    if set(statuses) - {"200", "429"} or load["without_retry_after"] or not statuses.get("429"):
        raise RuntimeError(f"{BEYOND} clients were answered {statuses}, {load['without_retry_after']} times 429 without Retry-After")
    sent = sum(statuses.values())
    return [
        row(f"share of requests answered 429 with Retry-After, {BEYOND} clients where 256 may be inside", statuses["429"] / sent,
            "share refused", "all requests", 1.0, "serving"),
        row(f"p99 of an answer that was let in, {BEYOND} clients, ms", 1e3 * load["p99"], "ms", "256 clients", 1e3 * below["p99"], "serving"),
    ]  # fmt: skip


def _changes(service: Service, config: Config, bodies: Path, folder: Path) -> list[dict[str, Any]]:
    """Requests that failed while weights are swapped, an agent is killed, the only engine is killed, under 16 clients: none may."""
    weights = serve.get_deployment_handle("Weights", "mmsr")

    def swap() -> None:
        for number in range(SWAPS):
            copy = shutil.copytree(config.model.path, folder / f"weights-{time.time_ns()}-{number}")
            version = weights.bring_in.remote(str(copy)).result(timeout_s=PATIENCE)
            while weights.state.remote().result(timeout_s=PATIENCE)["proven"] != version:
                time.sleep(0.1)

    def kill(deployment: str) -> Callable[[], None]:
        handle = serve.get_deployment_handle(deployment, "mmsr")
        return lambda: os.kill(handle.stats.remote().result(timeout_s=PATIENCE)["pid"], signal.SIGKILL)

    rows = []
    for what, happens, seconds in (
        (f"{SWAPS} live weight swaps", swap, SWAP_SECONDS),
        ("kill -9 of the only agent", kill("Agent"), SECONDS),
        ("kill -9 of the only engine", kill("Engine"), SECONDS),
    ):
        load = service.load(bodies, 16, seconds=seconds, meanwhile=happens)
        _none_failed([load])
        sent = float(sum(load["statuses"].values()))
        rows.append(row(f"requests answered across {what}, 16 clients", load["statuses"]["200"], "requests", "sent", sent, "serving"))
        rows.append(row(f"slowest of them, ms ({what})", 1e3 * load["slowest"], "ms", "their median", 1e3 * load["p50"], "serving"))
    return rows


def _none_failed(loads: Any) -> None:
    for load in loads:
        if set(load["statuses"]) != {"200"}:
            raise RuntimeError(f"requests failed: {load['statuses']}")
