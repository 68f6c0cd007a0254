"""TRL's side of the training benchmark, in a process of its own: whole steps of `GRPOTrainer.train()`.

    python jobs/benchmark_trl_training.py --model FOLDER --data train.parquet --base http://127.0.0.1:1234 --rollouts 8 \
        --latency 0.2 1 --rounds 3

Promise: only what is said is scripted (jobs/benchmark_script.py). Both turns of every rollout are sampled for real, with as
many tokens as they then have, and replaced; all else is TRL's own: prompts, `generate`, parsing, `_tool_call_loop`, reward,
log-probs of policy and reference, loss, optimiser. Its messages are those of our own prompts, token for token, by a chat
template and a response template; with Qwen2.5-VL's own template TRL refuses tools.

It gets its best settings: the tool as a coroutine, all rollouts in one device batch, no gradient checkpointing, nothing saved,
evaluated or reported, one torch thread or all, whichever is faster. A step lasts from the end of the one before to its own end.

Prints one JSON object: {"tokens": mean of a rollout, prompt and tool's answer included, "threads": chosen, "seconds":
{latency: [one per round]}}.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]  # the extra `bench`

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from jobs import benchmark_trl
from jobs.benchmark_script import TURN_TOKENS, right, rollout
from jobs.benchmark_trl import search_web_async, set_latency
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.config import DataConfig
from mmsr_ray.data.reader import read_samples
from mmsr_ray.types import Sample

GROUP = 8
# The tiny policy's own template, and our observation after a text search where TRL puts a tool's answer.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ 'user' if message['role'] == 'tool' else message['role'] }}\n"
    "{% if message['role'] == 'tool' %}<information>1. {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'tool' %}</information> Answer:{% endif %}"
    "{% for call in message.tool_calls or [] %}<text_search>{{ call.function.name }} {{ call.function.arguments | tojson }}</text_search>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<text_search>",
            "close_pattern": r"</text_search>\s*",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": search_web_async.__name__, "arguments": {"query": "{content}"}}},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}


class Scripted(GRPOTrainer):
    """Samples every turn and says what the script says."""

    spoken = 0  # rollouts so far
    lengths: list[float]  # mean tokens of a rollout, by step

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._turns = [rollout(self._encode, self.spoken + i, example["answers"]) for i, example in enumerate(inputs)]
        self._turn = 0
        self.spoken += len(inputs)
        output = super()._generate_and_score_completions(inputs)
        self.lengths.append(float(output["prompt_mask"].sum() + output["completion_mask"].sum()) / len(inputs))
        return output

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        sampled, _ = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if len(sampled) != len(self._turns) or any(len(ids) != TURN_TOKENS for ids in sampled):
            raise RuntimeError(f"turn {self._turn}: {len(sampled)} answers of {[len(ids) for ids in sampled]} tokens")
        said = [list(turns[self._turn]) for turns in self._turns]
        self._turn += 1
        return said, None

    def _encode(self, text: str) -> list[int]:
        end: Any = self._tokenizer.eos_token_id
        return [*self._tokenizer.encode(text, add_special_tokens=False), end]


class Watch(TrainerCallback):
    """Times steps, and sets tools and threads between them.

    The first steps have instant tools and try one thread and all cores, each after a step that warms up; the better of the
    two is kept for what follows: more threads help a batch of 32 and hurt one of 8.
    """

    def __init__(self, latencies: list[float], rounds: int, rollouts: int) -> None:
        self._tries: dict[int, list[float]] = {1: [], os.cpu_count() or 1: []}
        plan: list[tuple[float, int]] = [(0.0, threads) for threads in self._tries for _ in range(rounds + 1)]  # 0: the best
        for latency in latencies:
            # one call after another: where that takes long, one step is exact enough
            plan += [(latency, 0)] * (1 if rollouts * latency > 10 else rounds)
        self._plan, self._slow = plan, dict[float, list[float]]()
        self._began = 0.0

    @property
    def steps(self) -> int:
        return len(self._plan)

    @property
    def threads(self) -> int:
        """The number that has served best, by the median of all but the first step."""
        return min(self._tries, key=lambda n: statistics.median(self._tries[n][1:]))

    @property
    def seconds(self) -> dict[float, list[float]]:
        return {0.0: self._tries[self.threads][1:], **self._slow}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._prepare(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        took = time.perf_counter() - self._began
        latency, threads = self._plan[state.global_step - 1]
        (self._tries[threads] if threads else self._slow.setdefault(latency, [])).append(took)
        if state.global_step < self.steps:
            self._prepare(state.global_step)

    def _prepare(self, step: int) -> None:
        latency, threads = self._plan[step]
        torch.set_num_threads(threads or self.threads)
        set_latency(latency)
        self._began = time.perf_counter()


def row(sample: Sample, prompts: PromptSet) -> dict[str, Any]:
    """One prompt as TRL takes it, in the pieces of our first message."""
    before, after = prompts.templates["round_1"].parts[0][1], sample.question
    content = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": after}]
    picture = Image.open(io.BytesIO(sample.image)).convert("RGB")
    return {"prompt": [{"role": "user", "content": content}], "images": [picture], "answers": list(sample.answers)}


def reward(completions: list[list[dict[str, Any]]], answers: list[list[str]], **_: Any) -> list[float | None]:
    for turns in completions:
        told = [message["content"] for message in turns if message["role"] == "tool"]
        if len(told) != 1 or not told[0].startswith("Summary"):
            raise RuntimeError(f"a rollout did not get the tool's answer: {turns}")
    return [float(right(turns[-1]["content"], gold)) for turns, gold in zip(completions, answers, strict=True)]


def trainer(model: str, data: str, rollouts: int, watch: Watch, folder: str) -> Scripted:
    processor = AutoProcessor.from_pretrained(model)
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATE
    processor.tokenizer.response_template = RESPONSE
    prompts = PromptSet.load("brief")
    made = Scripted(
        model=Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, report_to=[], save_strategy="no", eval_strategy="no", disable_tqdm=True,
            gradient_checkpointing=False, dataloader_pin_memory=False, max_steps=watch.steps,
            num_generations=GROUP, per_device_train_batch_size=rollouts, gradient_accumulation_steps=1, steps_per_generation=1,
            max_completion_length=160, generation_kwargs={"max_new_tokens": TURN_TOKENS, "min_new_tokens": TURN_TOKENS},
            temperature=1.0, loss_type="dapo", epsilon=0.2, beta=0.001, scale_rewards="group", learning_rate=1e-5,
            lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=1.0,
        ),
        train_dataset=datasets.Dataset.from_list([row(sample, prompts) for sample in read_samples(data, DataConfig())]),
        processing_class=processor,
        tools=[search_web_async],
        callbacks=[watch],
    )  # fmt: skip
    made.lengths = []
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--latency", type=float, nargs="+", default=[0.2, 1.0], help="beside instant tools")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    benchmark_trl.BASE = args.base
    watch = Watch(args.latency, args.rounds, args.rollouts)
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(args.model, args.data, args.rollouts, watch, folder)
        made.train()
    sys.stdout.write(json.dumps({"tokens": statistics.mean(made.lengths), "threads": watch.threads, "seconds": watch.seconds}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
