"""What a run needs of each card and each node, before anything is started. Pure arithmetic over the config and the model's shape.

Promise: `plan` names every part of every phase, and `complaints` says of what cannot fit what would. It refuses only what has no
room by its own count; whether a micro-batch fits on the real card is tried at start (`fitting.py`).

    python -m mmsr_ray.learner.memory --config jobs/configs/one_gpu.yaml [key=value ...]

Bytes per parameter that learns, P of them over N ranks, bfloat16 under DeepSpeed 0.19, as measured on a CPU by hand (README):
weights 2 P; master weights and moments 12 P/N, gradients between micro-batches
2 P/N (stage 1: 2 P), as much again while the next one is added, and 8 P/N more in the optimiser's step, of which 2 are the gradients.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.learner import worst_case
from mmsr_ray.learner.footprint import Footprint
from mmsr_ray.learner.model import LOGIT_CHUNK_BYTES
from mmsr_ray.learner.objective import longest_answer, resolve
from mmsr_ray.learner.pictures import VisionGeometry
from mmsr_ray.learner.settings import on_cuda

GIB = 2.0**30
BUCKET_PARAMETERS = 200_000_000  # of DeepSpeed's two gradient buckets, `rank.deepspeed_config`
LIVE_PARAMETERS = 1_000_000_000  # ZeRO-3 gathers at most so many at a time, and steps through as many at a time
RUNTIME = int(1.5 * GIB)  # CUDA context, NCCL and fragmentation of a rank: a guess, to be measured by suite=gpu
ENGINE_RUNTIME = int(3.0 * GIB)  # of an engine: its context, CUDA graphs and the activations of its largest step: a guess
ASLEEP = int(2.5 * GIB)  # what vLLM keeps on the card while it sleeps: a guess
PROCESS = int(2.0 * GIB)  # of host memory, for each actor's Python with torch
FULL = 0.97  # of a card's memory that can be had at all


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Phase:
    """Everything that lies in one place at one time."""

    role: str  # learner | engine | node
    name: str
    items: tuple[Item, ...]

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    @property
    def gib(self) -> float:
        return self.bytes / GIB


@dataclass(frozen=True, slots=True)
class Machine:
    """GiB of one card and of one node's host memory; 0: not known. `cards`: of one node; 0: as many as the run uses."""

    card_gib: float = 0.0
    host_gib: float = 0.0
    cards: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    config: Config
    model: Footprint
    machine: Machine
    card: tuple[Phase, ...]  # each on a card of its own, or in turn
    host: Phase  # of the fullest node

    @property
    def card_gib(self) -> float:
        """The least that a card must have: the fullest phase of the learner."""
        return max(phase.gib for phase in self.card if phase.role == "learner")

    @property
    def cache_tokens(self) -> int:
        """That an engine's cache holds beside its weights; -1 where the card is not known."""
        if not self.machine.card_gib:
            return -1
        rollout = self.config.rollout
        engine = next(phase for phase in self.card if phase.role == "engine")
        fixed = sum(item.bytes for item in engine.items if item.name in ("weights", "runtime"))
        room = self.machine.card_gib * GIB * rollout.gpu_memory_utilization - fixed
        return max(0, int(room // self.model.cache_bytes(rollout.tensor_parallel)))


def plan(config: Config, model: Footprint, machine: Machine) -> Plan:
    """The phases of a run: of cards and nodes with GPUs, of the one memory without."""
    if not on_cuda(config.learner):
        return Plan(config, model, machine, (), _without_cards(config, model))
    card = (*_learner(config, model), _engine(config, model, machine))
    return Plan(config, model, machine, card, _node(config, model, machine))


# ---------------------------------------------------------------------------------------------------- learner


def _states(config: Config, model: Footprint) -> dict[str, int]:
    """Bytes of one rank by kind, wherever they lie."""
    c, n, itemsize = config.learner, config.learner.world_size, _itemsize(config)
    adapters = model.adapters(c.lora.rank, c.lora.targets) if c.lora.rank else 0
    total = model.parameters + adapters
    learning = adapters or model.parameters - (model.vision if c.freeze_vision else 0)
    share = math.ceil(learning / n)
    return {
        "weights": itemsize * (total if c.zero_stage < 3 else math.ceil(total / n)),
        "master weights": 4 * share,
        "moments": 8 * share,
        "gradients": itemsize * (learning if c.zero_stage < 2 else share),
        "gradients of a micro-batch": itemsize * share + (0 if c.zero_stage == 3 else 2 * itemsize * min(BUCKET_PARAMETERS, learning)),
        "gathered": (2 * itemsize * min(LIVE_PARAMETERS, total) if c.zero_stage == 3 else 0),
        "step": (itemsize + 4) * (min(share, LIVE_PARAMETERS) if c.zero_stage == 3 else share),
        "frozen model": itemsize * model.parameters if _frozen_copy(config) else 0,
    }


def _learner(config: Config, model: Footprint) -> list[Phase]:
    c, s = config.learner, _states(config, model)
    on_card = [Item("weights", s["weights"])] if c.offload != "all" else []
    if c.offload == "none":
        on_card += [Item("master weights", s["master weights"]), Item("moments", s["moments"])]
    gradients = [Item("gradients", s["gradients"])] if c.offload == "none" or c.zero_stage < 2 else []
    frozen = Item("frozen model", s["frozen model"])
    shared = [Item("runtime", RUNTIME), *([Item("sleeping engine", ASLEEP)] if c.colocated else [])]
    gathered = [Item("gathered weights and gradients", s["gathered"])] if s["gathered"] else []
    resident = [frozen] if frozen.bytes and not _visits(config) else []
    forward_backward, scoring = _activations(config, model)
    backward = [Item("gradients of a micro-batch", s["gradients of a micro-batch"]), Item("activations and logits", forward_backward)]
    phases = [Phase("learner", "forward and backward", (*on_card, *gradients, *backward, *gathered, *resident, *shared))]
    step = [Item("gradients in float32 and what they are made from", s["step"])] if c.offload == "none" else []
    phases.append(Phase("learner", "optimiser step", (*on_card, *gradients, *step, *gathered, *resident, *shared)))
    if frozen.bytes and _visits(config):
        phases.append(Phase("learner", "scores of the frozen model", (*on_card, frozen, Item("activations and logits", scoring), *shared)))
    return phases


def _activations(config: Config, model: Footprint) -> tuple[int, int]:
    """Of the worst micro-batches that the limits permit (`worst_case.py`), with and without gradient."""
    c = config.learner
    side = VisionGeometry(patch=14, merge=model.merge, temporal_patch=2, mean=(0, 0, 0), std=(1, 1, 1), rescale=1.0)
    limits = worst_case.Limits.of(config, side)
    tokens = max(c.micro_batch_tokens, limits.length)
    pictures = sum(limits.blocks)
    short = pictures + worst_case.MARKS * len(limits.blocks) + worst_case.PROMPT + worst_case.ANSWER
    area = model.merge**2
    long_rows, short_rows = tokens // limits.length, tokens // short
    sampled = min(longest_answer(config.agent), limits.length - pictures)
    kinds = [(long_rows * limits.length, long_rows * pictures * area, long_rows * sampled)]
    kinds.append((short_rows * short, short_rows * pictures * area, short_rows * worst_case.ANSWER))
    itemsize = _itemsize(config)
    peaks = [
        model.activations(
            *kind, itemsize=itemsize, checkpointing=c.gradient_checkpointing, plain_layers=c.plain_layers, chunk=LOGIT_CHUNK_BYTES
        )
        for kind in kinds
    ]
    scoring = [model.scoring(kind[0], kind[1], itemsize=itemsize, chunk=LOGIT_CHUNK_BYTES) for kind in kinds]
    return max(peaks), max(scoring)


def _frozen_copy(config: Config) -> bool:
    return config.learner.lora.rank == 0 and resolve(config.grpo.loss, longest_answer(config.agent)).kl_coef > 0


def _visits(config: Config) -> bool:
    """Whether the frozen model rests in host memory."""
    return config.learner.reference == "host" or config.learner.colocated


def _itemsize(config: Config) -> int:
    return 2 if config.learner.dtype == "bfloat16" else 4


# ---------------------------------------------------------------------------------------------------- engine, node


def _engine(config: Config, model: Footprint, machine: Machine) -> Phase:
    """The cache is what is left of the engine's share; without a known card, the one sequence that vLLM demands."""
    rollout = config.rollout
    weights = _engine_itemsize(config) * math.ceil(model.parameters / rollout.tensor_parallel)
    one = (rollout.max_model_len or config.agent.max_total_tokens) * model.cache_bytes(rollout.tensor_parallel)
    left = int(machine.card_gib * GIB * rollout.gpu_memory_utilization) - weights - ENGINE_RUNTIME
    items = [Item("weights", weights), Item("runtime", ENGINE_RUNTIME), Item("cache", max(one, left))]
    if config.learner.colocated:
        items.append(Item("learner that has left", RUNTIME))
    return Phase("engine", "sampling", tuple(items))


def _node(config: Config, model: Footprint, machine: Machine) -> Phase:
    """The fullest node: as many ranks and runners as it has cards, and the object store with two versions of the weights."""
    c, s = config.learner, _states(config, model)
    cards = machine.cards or (c.world_size if c.colocated else c.world_size + config.rollout.num_runners * config.rollout.tensor_parallel)
    ranks = min(c.world_size, cards)
    runners = min(config.rollout.num_runners, ranks if c.colocated else max(0, cards - ranks))
    whole = _itemsize(config) * model.parameters
    version = _engine_itemsize(config) * model.parameters
    states = s["weights"] + s["master weights"] + s["moments"]
    resting = 0
    if c.offload in ("optimizer", "all"):  # float32 gradients and their sums lie there too
        resting = s["master weights"] + s["moments"] + 2 * s["master weights"] + (s["weights"] if c.offload == "all" else 0)
    if c.colocated:
        resting = max(resting + (s["weights"] if c.offload == "optimizer" else 0), states)
    items = [
        Item(f"states of {_count(ranks, 'rank')}", ranks * resting),
        Item(f"frozen models of {_count(ranks, 'rank')}", ranks * s["frozen model"] if _visits(config) else 0),
        Item("two versions in the object store", 2 * version),
        Item(
            f"weights saved by {_count(runners, 'sleeping engine')}", runners * version if c.colocated and c.lora.sync == "adapter" else 0
        ),
        Item(f"processes of {_count(ranks, 'rank')} and {_count(runners, 'runner')}", (ranks + runners) * PROCESS),
    ]
    reading = Item(f"the model, read whole at start by {_count(ranks, 'rank')}", ranks * whole)
    if reading.bytes > sum(item.bytes for item in items[:4]):  # at start, before states and versions are there
        items = [reading, items[-1]]
    return Phase("node", "host memory", tuple(item for item in items if item.bytes))


def _without_cards(config: Config, model: Footprint) -> Phase:
    """The least that ranks and engines take of host memory: activations, processes and the object store come on top."""
    c, s, rollout = config.learner, _states(config, model), config.rollout
    states = sum(s[name] for name in ("weights", "master weights", "moments", "gradients", "frozen model"))
    engine = _engine_itemsize(config) * model.parameters + int(rollout.kv_cache_gib * GIB)
    items = (
        Item(f"states of {_count(c.world_size, 'rank')}", c.world_size * states),
        Item(_count(rollout.num_runners, "engine"), rollout.num_runners * engine),
    )
    return Phase("node", "host memory", items)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _engine_itemsize(config: Config) -> int:
    return 4 if config.model.dtype == "float32" else 2


# ---------------------------------------------------------------------------------------------------- refusals


def complaints(p: Plan) -> list[str]:
    """One sentence about each thing that cannot fit; [] where all does or the machine is not known."""
    if not p.card:
        return _complaints_without_cards(p)
    return [*_learner_complaints(p), *_engine_complaints(p), *_host_complaints(p)]


def _complaints_without_cards(p: Plan) -> list[str]:
    if not p.machine.host_gib or p.host.gib <= p.machine.host_gib:
        return []
    return [
        f"ranks and engines need at least {p.host.gib:.0f} GiB of this machine's memory and it has {p.machine.host_gib:.0f}: take a smaller "
        "model, fewer ranks (learner.world_size), adapters (learner.lora.rank=16), or machines with GPUs"
    ]


def _learner_complaints(p: Plan) -> list[str]:
    room = p.machine.card_gib * FULL
    worst = max((phase for phase in p.card if phase.role == "learner"), key=lambda phase: phase.bytes)
    if not p.machine.card_gib or worst.gib <= room:
        return []
    said = f"a learner rank needs {worst.gib:.1f} GiB of its card in its phase `{worst.name}`, and {room:.1f} can be had"
    return [f"{said}: {_remedy(p)}"]


def _remedy(p: Plan) -> str:
    """The first change, cheapest first, with which the learner fits; each is tried on the plan."""
    c = p.config.learner
    changes: list[tuple[str, Any]] = []
    if not c.gradient_checkpointing:
        changes.append(("learner.gradient_checkpointing=true", replace(c, gradient_checkpointing=True)))
    if c.plain_layers:
        changes.append(("learner.plain_layers=0", replace(c, plain_layers=0)))
    if c.micro_batch_tokens > p.config.agent.max_total_tokens:
        fewer = p.config.agent.max_total_tokens
        changes.append((f"learner.micro_batch_tokens={fewer}", replace(c, micro_batch_tokens=fewer)))
    if _frozen_copy(p.config) and not _visits(p.config):
        changes.append(("learner.reference=host", replace(c, reference="host")))
    if c.offload == "none" and c.zero_stage > 0:
        changes.append(("learner.offload=optimizer", replace(c, offload="optimizer")))
    if c.zero_stage < 3:
        changes.append(("learner.zero_stage=3 with learner.offload=optimizer", replace(c, zero_stage=3, offload="optimizer")))
    if c.offload != "all":
        changes.append(("learner.zero_stage=3 with learner.offload=all", replace(c, zero_stage=3, offload="all")))
    if c.lora.rank == 0:
        changes.append(("learner.lora.rank=16", replace(c, lora=replace(c.lora, rank=16))))
    tried: list[str] = []
    for said, changed in changes:
        if not _learner_complaints_of(replace(p.config, learner=changed), p):
            return f"{said} would fit"
        tried.append(said)
    return "no single setting helps; take a larger card, more ranks (learner.world_size) or a lower agent.max_total_tokens"


def _learner_complaints_of(config: Config, p: Plan) -> bool:
    return any(phase.gib > p.machine.card_gib * FULL for phase in _learner(config, p.model))


def _engine_complaints(p: Plan) -> list[str]:
    if not p.machine.card_gib:
        return []
    rollout, said = p.config.rollout, []
    longest = rollout.max_model_len or p.config.agent.max_total_tokens
    if p.cache_tokens < longest:
        said.append(
            f"an engine's cache has room for {p.cache_tokens} tokens beside its weights, and one trajectory may have {longest}: raise "
            "rollout.gpu_memory_utilization or rollout.tensor_parallel, or take a larger card"
        )
    engine = next(phase for phase in p.card if phase.role == "engine")
    if engine.gib > p.machine.card_gib * FULL and p.cache_tokens >= longest:
        said.append(
            f"engine and resting learner need {engine.gib:.1f} GiB of a card of {p.machine.card_gib:g}: lower rollout.gpu_memory_utilization"
        )
    return said


def _host_complaints(p: Plan) -> list[str]:
    if not p.machine.host_gib or p.host.gib <= p.machine.host_gib * FULL:
        return []
    worst = max(p.host.items, key=lambda item: item.bytes)
    return [
        f"a node needs {p.host.gib:.0f} GiB of host memory and has {p.machine.host_gib:.0f}, most of it ({worst.bytes / GIB:.0f}) for "
        f"{worst.name}: set grpo.loss.kl_coef=0 or learner.lora.rank=16 if that is the frozen models, spread the ranks over more nodes, or "
        "take nodes with more memory"
    ]


# ---------------------------------------------------------------------------------------------------- in words


def table(p: Plan) -> str:
    """The plan as text, GiB by phase and part."""
    c = p.config.learner
    tokens = max(c.micro_batch_tokens, p.config.agent.max_total_tokens)
    lines = [
        f"{p.model.parameters:,} parameters, {p.model.vision:,} of them in the vision tower",
        f"{_count(c.world_size, 'rank')}, ZeRO stage {c.zero_stage}, offload {c.offload}, micro-batches of {tokens:,} tokens",
    ]
    for phase in (*p.card, p.host):
        where = "of one node" if phase.role == "node" else "of one card"
        lines.append(f"{phase.role}, {phase.name}: {phase.gib:.1f} GiB {where}")
        lines += [f"    {item.bytes / GIB:8.1f}  {item.name}" for item in phase.items]
    if p.card and p.machine.card_gib:
        longest = p.config.rollout.max_model_len or p.config.agent.max_total_tokens
        lines.append(f"cache: {p.cache_tokens:,} tokens, {p.cache_tokens / longest:.1f} trajectories of {longest:,} tokens")
    return "\n".join(lines)


def verdict(p: Plan) -> list[str]:
    """Whether it fits, or what is missing to tell."""
    if said := complaints(p):
        return [f"does not fit: {sentence}" for sentence in said]
    compared, unknown = [], []
    if p.card and p.machine.card_gib:
        compared.append(
            f"a rank needs {p.card_gib:.1f} of the {p.machine.card_gib * FULL:.1f} GiB that a card of {p.machine.card_gib:g} can give"
        )
    elif p.card:
        unknown.append("machine.card_gib")
    if p.machine.host_gib:
        compared.append(f"a node {p.host.gib:.0f} of {p.machine.host_gib:.0f} GiB of its own memory")
    else:
        unknown.append("machine.host_gib")
    lines = [f"fits: {', '.join(compared)}"] if compared else []
    return lines + ([f"not compared with the machine: {' and '.join(unknown)} (GiB) would name it"] if unknown else [])


def summary(p: Plan) -> str:
    """One line, as recipes quote it."""
    if not p.card:
        return f"host {p.host.gib:.0f} GiB at least"
    phases = ", ".join(f"{phase.name} {phase.gib:.1f}" for phase in p.card if phase.role == "learner")
    cache = f"cache {p.cache_tokens:,} tokens; " if p.machine.card_gib else ""
    return f"learner {phases}; {cache}host {p.host.gib:.0f} GiB"


def machine_of(config: Config) -> Machine:
    return Machine(config.machine.card_gib, config.machine.host_gib, config.machine.cards)


def footprint_of(path: str) -> Footprint:
    """Of a model folder, a published size (nothing is downloaded), or another hub id. Raises ConfigError."""
    from transformers import AutoConfig

    from mmsr_ray.learner.shapes import PUBLISHED, SHAPES, shape_config

    config: Mapping[str, Any]
    if path in PUBLISHED:
        config = shape_config(SHAPES[PUBLISHED[path]]).to_dict()
    else:
        try:
            config = AutoConfig.from_pretrained(path).to_dict()
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.path={path}: no config.json could be read there: {error}") from error
    return Footprint.of(config)


def check(config: Config, machine: Machine) -> Plan:
    """The plan of a run. Raises ConfigError where something cannot fit into `machine`."""
    made = plan(config, footprint_of(config.model.path), machine)
    if said := complaints(made):
        raise ConfigError("; ".join(said))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    a = parser.parse_args(arguments)
    try:
        config = load(a.config, ["data.train=none", "data.test=none", *a.settings])
        made = plan(config, footprint_of(config.model.path), machine_of(config))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join([table(made), f"in short, GiB: {summary(made)}", *verdict(made)]) + "\n")
    return 1 if complaints(made) else 0


if __name__ == "__main__":
    sys.exit(main())
