"""Every part of every phase of a run: what lies on a card and on a node, and when. Pure arithmetic over the config and the model's shape.

Bytes per parameter that learns, P of them over N ranks, bfloat16 under DeepSpeed 0.19, as measured on a CPU by hand (README):
weights 2 P; master weights and moments 12 P/N, sums of gradients in float32 4 P/N, with which the optimiser steps. In stage 1 gradients are
2 P, in bfloat16, and the step makes float32 ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmsr_ray.config import Config
from mmsr_ray.learner import worst_case
from mmsr_ray.learner.footprint import Footprint
from mmsr_ray.learner.model import LOGIT_CHUNK_BYTES
from mmsr_ray.learner.objective import longest_answer, resolve
from mmsr_ray.learner.pictures import VisionGeometry
from mmsr_ray.learner.settings import on_cuda
from mmsr_ray.learner.zero import BUCKET_PARAMETERS

GIB = 2.0**30
LIVE_PARAMETERS = 1_000_000_000  # ZeRO-3 gathers at most so many at a time, and steps through as many at a time
RUNTIME = int(1.5 * GIB)  # CUDA context, NCCL and fragmentation of a rank: a guess, to be measured by suite=gpu
ENGINE_RUNTIME = int(3.0 * GIB)  # of an engine: its context, CUDA graphs and the activations of its largest step: a guess
ASLEEP = int(2.5 * GIB)  # what vLLM keeps on the card while it sleeps: a guess
LOCKED_AT_MOST = 2  # times the bytes of many page-locked pieces, whose sizes nobody here knows (`locked`): of a 7B's tensors nearly so
START = "start"  # the phase of a rank before its model is cut up
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
    card = (*learner_phases(config, model), _engine(config, model, machine))
    return Plan(config, model, machine, card, _node(config, model, machine))


# ---------------------------------------------------------------------------------------------------- learner


def _states(config: Config, model: Footprint) -> dict[str, int]:
    """Bytes of one rank by kind, wherever they lie."""
    c, n, itemsize = config.learner, config.learner.world_size, itemsize_of(config)
    adapters = model.adapters(c.lora.rank, c.lora.targets) if c.lora.rank else 0
    total = model.parameters + adapters
    learning = adapters or model.parameters - (model.vision if c.freeze_vision else 0)
    share = math.ceil(learning / n)
    largest = min(share, model.vocabulary * model.hidden)
    buckets = 2 * itemsize * min(BUCKET_PARAMETERS, learning)
    summed = c.zero_stage == 2 and itemsize < 4  # in float32, as micro-batches come
    return {
        "whole": itemsize * total,
        "weights": itemsize * (total if c.zero_stage < 3 else math.ceil(total / n)),
        "master weights": 4 * share,
        "moments": 8 * share,
        "gradients": itemsize * learning if c.zero_stage < 2 else 4 * share,
        "gradients of a micro-batch": (0 if summed else itemsize * share) + (0 if c.zero_stage == 3 else buckets),
        "gathered": (2 * itemsize * min(LIVE_PARAMETERS, total) if c.zero_stage == 3 else 0),
        "step": 8 * largest if summed else (itemsize + 4) * (min(share, LIVE_PARAMETERS) if c.zero_stage == 3 else share),
        "frozen model": itemsize * model.parameters if frozen_copy(config) else 0,
    }


def learner_phases(config: Config, model: Footprint) -> list[Phase]:
    c, s = config.learner, _states(config, model)
    on_card = [Item("weights", s["weights"])] if c.offload != "all" else []
    if c.offload == "none":
        on_card += [Item("master weights", s["master weights"]), Item("moments", s["moments"])]
    gradients = [Item("gradients", s["gradients"])] if c.offload == "none" or c.zero_stage < 3 else []
    frozen = Item("frozen model", s["frozen model"])
    shared = [Item("runtime", RUNTIME), *([Item("sleeping engine", ASLEEP)] if c.colocated else [])]
    gathered = [Item("gathered weights and gradients", s["gathered"])] if s["gathered"] else []
    resident = [frozen] if frozen.bytes and not frozen_visits(config) else []
    forward_backward, scoring = _activations(config, model)
    backward = [Item("gradients of a micro-batch", s["gradients of a micro-batch"]), Item("activations and logits", forward_backward)]
    phases = [Phase("learner", "forward and backward", (*on_card, *gradients, *backward, *gathered, *resident, *shared))]
    step = [Item("gradients in other dtypes, for their norm or for the step", s["step"])] if c.offload == "none" else []
    phases.append(Phase("learner", "optimiser step", (*on_card, *gradients, *step, *gathered, *resident, *shared)))
    if frozen.bytes and frozen_visits(config):
        phases.append(Phase("learner", "scores of the frozen model", (*on_card, frozen, Item("activations and logits", scoring), *shared)))
    if c.zero_stage == 3:  # DeepSpeed moves a model to the card before it cuts it up
        phases.append(Phase("learner", START, (Item("weights, still whole", s["whole"]), Item("runtime", RUNTIME))))
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
    itemsize = itemsize_of(config)
    peaks = [
        model.activations(
            *kind,
            itemsize=itemsize,
            checkpointing=c.gradient_checkpointing,
            plain_layers=c.plain_layers,
            fused=c.fused,
            chunk=LOGIT_CHUNK_BYTES,
        )
        for kind in kinds
    ]
    scoring = [model.scoring(kind[0], kind[1], itemsize=itemsize, chunk=LOGIT_CHUNK_BYTES) for kind in kinds]
    return max(peaks), max(scoring)


def frozen_copy(config: Config) -> bool:
    return config.learner.lora.rank == 0 and resolve(config.grpo.loss, longest_answer(config.agent)).kl_coef > 0


def frozen_visits(config: Config) -> bool:
    """Whether the frozen model rests in host memory and comes to the card to score."""
    return config.learner.reference == "host" or config.learner.colocated


def itemsize_of(config: Config) -> int:
    """Bytes of a weight in the dtype that the learner computes in."""
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
    whole = itemsize_of(config) * model.parameters
    version = version_bytes(config, model)
    weights, master = locked(s["weights"]), locked(s["master weights"])
    states = weights + master + 2 * locked(s["moments"] // 2)
    resting = 0
    if c.offload in ("optimizer", "all"):  # float32 gradients and their sums lie there too
        resting = master + s["moments"] + 2 * master + (s["weights"] if c.offload == "all" else 0)
    if c.colocated:
        resting = max(resting + (weights if c.offload == "optimizer" else 0), states)
    items = [
        Item(f"states of {count(ranks, 'rank')}", ranks * resting),
        Item(f"frozen models of {count(ranks, 'rank')}", ranks * s["frozen model"] if frozen_visits(config) else 0),
        Item("two versions in the object store", 2 * version),
        Item(
            f"weights saved by {count(runners, 'sleeping engine')}",
            LOCKED_AT_MOST * runners * version if c.colocated and c.lora.sync == "adapter" else 0,
        ),
        Item(f"processes of {count(ranks, 'rank')} and {count(runners, 'runner')}", (ranks + runners) * PROCESS),
    ]
    reading = Item(f"the model, read whole at start by {count(ranks, 'rank')}", ranks * whole)
    if reading.bytes > sum(item.bytes for item in items[:4]):  # at start, before states and versions are there
        items = [reading, items[-1]]
    return Phase("node", "host memory", tuple(item for item in items if item.bytes))


def _without_cards(config: Config, model: Footprint) -> Phase:
    """The least that ranks and engines take of host memory: activations, processes and the object store come on top."""
    c, s, rollout = config.learner, _states(config, model), config.rollout
    states = sum(s[name] for name in ("weights", "master weights", "moments", "gradients", "frozen model"))
    engine = _engine_itemsize(config) * model.parameters + int(rollout.kv_cache_gib * GIB)
    items = (
        Item(f"states of {count(c.world_size, 'rank')}", c.world_size * states),
        Item(count(rollout.num_runners, "engine"), rollout.num_runners * engine),
    )
    return Phase("node", "host memory", items)


def version_bytes(config: Config, model: Footprint) -> int:
    """What one version of all weights takes in an engine and in the object store."""
    return _engine_itemsize(config) * model.parameters


def locked(size: int) -> int:
    """Bytes that torch takes for a piece of page-locked host memory: the next power of two (CachingHostAllocator)."""
    return 1 << (size - 1).bit_length() if size else 0


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _engine_itemsize(config: Config) -> int:
    return 4 if config.model.dtype == "float32" else 2
