"""TRL's side of the tool benchmark, in a process of its own: the rollouts of GRPOTrainer with a tool, generation scripted.

    python jobs/benchmark_trl.py --model FOLDER --base http://127.0.0.1:1234 --rollouts 8 32 --latency 0 0.2 1 --rounds 3

Promise: everything but the two scripted turns (a tool call, then an answer) is TRL's own: the trainer's `_generate`, chat
template, parsing, `_tool_call_loop`. The tool makes the requests of our text search, one after the other: search, read,
summarise. Prints one JSON list of {"tool": "sync" | "async", "rollouts", "latency", "seconds": [one per round]}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import datasets
import trl  # type: ignore[import-not-found]  # the extra `bench`
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

datasets.config.TORCHCODEC_AVAILABLE = False  # type: ignore[attr-defined] # no audio or video here, and its build may be for another torch
BASE = ""  # of the stand-in server
TEMPLATE = Path(str(trl.__file__)).parent / "chat_templates" / "qwen3_vl.jinja"  # TRL refuses tools with Qwen2.5-VL's own


def _search_url(query: str) -> str:
    return f"{BASE}/search.json?engine=google&num=2&q={quote(query)}"


def _prompt(page: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": page}]}).encode()


def search_web(query: str) -> str:
    """Search the web.

    Args:
        query: What to search for.

    Returns:
        A summary of the first page found.
    """
    link = _fetch(_search_url(query))["organic_results"][0]["link"]
    page = _fetch(f"{BASE}/reader/{link}")["data"]["content"]
    return _fetch(f"{BASE}/v1/chat/completions", _prompt(page))["choices"][0]["message"]["content"]


def _fetch(url: str, body: bytes | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=30) as reply:
        return json.load(reply)


_session: aiohttp.ClientSession | None = None


async def search_web_async(query: str) -> str:
    """Search the web.

    Args:
        query: What to search for.

    Returns:
        A summary of the first page found.
    """
    global _session
    if _session is None:
        _session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with _session.get(_search_url(query)) as reply:
        link = (await reply.json())["organic_results"][0]["link"]
    async with _session.get(f"{BASE}/reader/{link}") as reply:
        page = (await reply.json())["data"]["content"]
    async with _session.post(f"{BASE}/v1/chat/completions", data=_prompt(page)) as reply:
        return (await reply.json())["choices"][0]["message"]["content"]


class Scripted(GRPOTrainer):
    """Says a tool call first and an answer afterwards, in no time."""

    tool = ""
    asked = 0
    calling = True

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> tuple[list[list[int]], None]:
        turns = []
        for _ in prompt_ids:
            self.asked += 1
            call = {"name": self.tool, "arguments": {"query": f"query {self.asked} of {id(self)}"}}
            text = f"<tool_call>\n{json.dumps(call)}\n</tool_call>" if self.calling else "It is the tower."
            turns.append([*self._tokenizer.encode(text, add_special_tokens=False), self._tokenizer.eos_token_id])
        self.calling = not self.calling
        return turns, None


def trainer(model: str, tool: Any) -> Scripted:
    processor = AutoProcessor.from_pretrained(model)
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATE.read_text()
    question = [{"role": "user", "content": "Who built this?"}]
    made = Scripted(
        model=Qwen2_5_VLForConditionalGeneration.from_pretrained(model),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir="unused", use_cpu=True, report_to=[], num_generations=8, per_device_train_batch_size=8,
            max_completion_length=2048, max_tool_calling_iterations=1,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": question}] * 32),
        processing_class=processor,
        tools=[tool],
    )  # fmt: skip
    made.tool = tool.__name__
    return made


def prompts(count: int) -> list[list[dict[str, Any]]]:
    picture = Image.new("RGB", (56, 56), (9, 99, 200))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Who built this?"}]
    return [[{"role": "user", "content": content}] for _ in range(count)]


def set_latency(seconds: float) -> None:
    """A call takes `seconds`: three fifths for the search, a fifth for the page and for its summary."""
    request = urllib.request.Request(f"{BASE}/latency/{0.6 * seconds}/{0.2 * seconds}", method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        pass


def play(made: Scripted, rollouts: int) -> float:
    """Seconds of one batch of rollouts. Raises RuntimeError unless each of them called the tool and got an answer from it."""
    asked = prompts(rollouts)
    made._sync_tool_dicts, made._async_tool_dicts = [], []  # what `_generate_and_score_completions` sets up around `_generate`
    for _ in asked:
        tool = made._standalone_tools[0]
        waits = asyncio.iscoroutinefunction(tool)
        made._sync_tool_dicts.append({} if waits else {made.tool: tool})
        made._async_tool_dicts.append({made.tool: tool} if waits else {})
    began = time.perf_counter()
    completions: list[list[dict[str, Any]]] = made._generate(asked)[3]  # type: ignore[assignment]
    seconds = time.perf_counter() - began
    answers = [[m["content"] for m in turns if m["role"] == "tool"] for turns in completions]
    if not all(len(told) == 1 and told[0].startswith("Summary") for told in answers):
        raise RuntimeError(f"a rollout did not get the tool's answer: {answers[0]}")
    return seconds


def main() -> int:
    global BASE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 0.2, 1.0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    BASE = args.base
    found = []
    for name, tool in (("sync", search_web), ("async", search_web_async)):
        made = trainer(args.model, tool)
        set_latency(0.0)
        play(made, 2)
        for rollouts in args.rollouts:
            for latency in args.latency:
                set_latency(latency)
                rounds = 1 if rollouts * latency > 5 else args.rounds  # one call after another: it takes long enough to be exact
                seconds = [play(made, rollouts) for _ in range(rounds)]
                found.append({"tool": name, "rollouts": rollouts, "latency": latency, "seconds": seconds})
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stderr.write(f"medians: {[round(statistics.median(f['seconds']), 3) for f in found]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
