"""Whether a run fits its cards and nodes, before anything is started, and what would where it does not.

Promise: `complaints` says of what cannot fit what would. It refuses only what has no room by the count of `phases.py`; whether a
micro-batch fits on the real card is tried at start (`fitting.py`).

    python -m mmsr_ray.learner.memory --config jobs/configs/one_gpu.yaml [key=value ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.learner import colocation
from mmsr_ray.learner.footprint import Footprint
from mmsr_ray.learner.phases import FULL, GIB, START, Machine, Plan, count, frozen_copy, frozen_visits, learner_phases, plan

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
    if worst.name == START:
        return [f"{said}: DeepSpeed moves the whole model to each card before it cuts it up, so no setting helps; take a larger card"]
    return [f"{said}: {_remedy(p)}"]


def _remedy(p: Plan) -> str:
    """The first change, cheapest first, that can be made and with which the learner fits; each is tried on the plan."""
    c = p.config.learner
    changes: list[tuple[str, Any]] = []
    if not c.gradient_checkpointing:
        changes.append(("learner.gradient_checkpointing=true", replace(c, gradient_checkpointing=True)))
    if not c.fused:
        changes.append(("learner.fused=true", replace(c, fused=True)))
    if c.plain_layers:
        changes.append(("learner.plain_layers=0", replace(c, plain_layers=0)))
    if c.micro_batch_tokens > p.config.agent.max_total_tokens:
        fewer = p.config.agent.max_total_tokens
        changes.append((f"learner.micro_batch_tokens={fewer}", replace(c, micro_batch_tokens=fewer)))
    if frozen_copy(p.config) and not frozen_visits(p.config):
        changes.append(("learner.reference=host", replace(c, reference="host")))
    if c.offload == "none" and c.zero_stage > 0:
        changes.append(("learner.offload=optimizer", replace(c, offload="optimizer")))
    if c.zero_stage < 3:
        changes.append(("learner.zero_stage=3 with learner.offload=optimizer", replace(c, zero_stage=3, offload="optimizer")))
    if c.offload != "all":
        changes.append(("learner.zero_stage=3 with learner.offload=all", replace(c, zero_stage=3, offload="all")))
    if c.lora.rank == 0:
        changes.append(("learner.lora.rank=16", replace(c, lora=replace(c.lora, rank=16))))
    for said, changed in changes:
        refused = colocation.complaint(changed, p.config.rollout, p.config.grpo.staleness)
        if not refused and not _learner_complaints_of(replace(p.config, learner=changed), p):
            return f"{said} would fit"
    return "no single setting helps; take a larger card, more ranks (learner.world_size) or a lower agent.max_total_tokens"


def _learner_complaints_of(config: Config, p: Plan) -> bool:
    return any(phase.gib > p.machine.card_gib * FULL for phase in learner_phases(config, p.model))


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
        f"{count(c.world_size, 'rank')}, ZeRO stage {c.zero_stage}, offload {c.offload}, micro-batches of {tokens:,} tokens",
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
