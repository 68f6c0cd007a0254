"""The README.md of an exported model: what it is, how it was trained, what was measured, how to use it. Pure.

Promise: only what is known is said, and nothing of the machine: no paths, no hosts. The license is the user's to choose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

from mmsr_ray.config import Config
from mmsr_ray.evaluation.summary import config_hash
from mmsr_ray.learner.objective import longest_answer, resolve

TAGS = ["mmsr-ray", "reinforcement-learning", "grpo", "multimodal-search", "visual-question-answering", "vllm"]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_DATASET = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Card:
    """What a card is made of. `title` is the name of the model, `step` the training step of its weights, where it is known."""

    title: str
    config: Config
    step: int | None = None
    rows: Sequence[Row] = field(default=())
    base_model: str = ""
    datasets: Sequence[str] = field(default=())
    license: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)


def hub_id(model: str) -> str:
    """`model` where it may be the id of a model on a hub, else "": a folder says nothing to others."""
    return model if HUB_ID.fullmatch(model) else ""


def hub_dataset(path: str) -> str:
    """The id in an address like hf://datasets/owner/name/train.parquet, else ""."""
    found = HUB_DATASET.match(path)
    return found.group(1) if found else ""


def write(card: Card) -> str:
    """The text of README.md, front matter first."""
    data = ModelCardData(
        base_model=card.base_model or None,
        datasets=list(card.datasets) or None,
        license=card.license or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=TAGS,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {card.title}", _what(card), _how(card), _measured(card), _use(card), _license(card)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(card: Card) -> str:
    base = f"[{card.base_model}](https://huggingface.co/{card.base_model})" if card.base_model else "a Qwen2.5-VL model"
    return (
        f"{base[0].upper() + base[1:]} that was trained by reinforcement *when* to search the web, *what* to search for, and how to reason "
        "over what comes back, with [MMSearch-R1](https://arxiv.org/abs/2506.20670)'s method: an image search, a text search, and a small "
        "penalty on searching."
    )


def _how(card: Card) -> str:
    c = card.config
    loss = resolve(c.grpo.loss, longest_answer(c.agent))
    settings = {
        "algorithm": f"{c.grpo.loss.preset}: baseline {loss.baseline}, divided by {loss.normalise}, ratio of a {loss.ratio}",
        "steps": f"{c.grpo.steps}" + (f"; these weights are of step {card.step}" if card.step not in (None, c.grpo.steps) else ""),
        "batch": f"{c.grpo.groups_per_step} prompts x {c.grpo.group_size} rollouts, {c.grpo.minibatches} optimiser steps",
        "staleness of rollouts": f"at most {c.grpo.staleness} versions",
        "learning rate": f"{c.grpo.lr:g}, {c.grpo.lr_schedule}",
        "KL to the starting model": f"{loss.kl_coef:g}",
        "reward": f"match {c.reward.match}, search penalty {c.reward.search_penalty:g}{' per call' if c.reward.per_call else ''}",
        "searches allowed": f"{c.agent.image_search_limit} by image, {c.agent.text_search_limit} by text, {c.agent.search_limit} together",
        "supervised warm start": f"{c.sft.steps} steps" if c.sft.enabled else "none",
        "seed": f"{c.run.seed}",
        "config hash": f"`{config_hash(c)}`",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    return f"## How it was trained\n\nWith mmsr-ray: rollouts on vLLM, updates on DeepSpeed, all of it on Ray.\n\n| | |\n|---|---|\n{table}"


def _measured(card: Card) -> str:
    if not card.rows:
        return "## Measured\n\nNo evaluation of this run is recorded."
    lines = [
        f"| {row['name']} | {row['questions']} | {_percent(row['accuracy'])}{_interval(row)} | {_percent(row['search_ratio_calls'])} "
        f"| {_percent(row['search_precision'])} | {_percent(row['search_recall'])} |"
        for row in card.rows
    ]
    head = "| Row | questions | accuracy (95 % interval) | searches / allowed | precision | recall |\n|---|---|---|---|---|---|"
    where = f"\n\nMeasured on: {card.machine['cpu']}, {card.machine['cores']} cores" if card.machine else ""
    where += f", {', '.join(card.machine['gpus'])}" if card.machine.get("gpus") else ""
    return f"## Measured\n\nOn the run's held-out questions, greedy.\n\n{head}\n" + "\n".join(lines) + where


def _interval(row: Row) -> str:
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    return "" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _use(card: Card) -> str:
    return f"""## Use

It answers in turns: reasons, asks for a search with `<search><img></search>` or `<text_search>…</text_search>`, reads what comes
back, and ends with `<answer>…</answer>`. Something has to search for it; mmsr-ray does, with the prompts it was trained on:

```yaml
model: {{path: {card.title}}}
agent: {{prompts: {card.config.agent.prompts if "/" not in card.config.agent.prompts else "…"}}}
```

The weights alone load like any Qwen2.5-VL:

```python
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

model = Qwen2_5_VLForConditionalGeneration.from_pretrained("{card.title}")
processor = AutoProcessor.from_pretrained("{card.title}")
```

```sh
vllm serve {card.title}
```"""


def _license(card: Card) -> str:
    return "" if card.license else "## License\n\nNot chosen yet. It has to be one that the base model and the data allow."
