"""Worker groups against what a run asks: what can never be, in sentences. Pure.

Promise: where `never` says nothing, all bundles find a place at the same time once every group has its largest size; where it
says something, they never do, and the group or the setting is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmsr_ray.algorithms.placement import Resources, amounts, fit
from mmsr_ray.config import Config
from mmsr_ray.nodes import bundle_of, resources


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Nodes of one kind, of which an autoscaler keeps `least` to `most`."""

    name: str
    resources: Mapping[str, float]
    least: int
    most: int


def never(asked: Sequence[Resources], groups: Sequence[WorkerGroup], config: Config) -> str:
    """Why a run cannot be on these groups, however long it waits; "" when it can."""
    return next(_reasons(asked, groups, config), "")


def _reasons(asked: Sequence[Resources], groups: Sequence[WorkerGroup], config: Config) -> Iterator[str]:
    for group in groups:
        if group.least > group.most:
            yield (
                f"worker group {group.name} can never scale: its least size ({group.least}) is above its largest ({group.most}); "
                "lower minReplicas or raise maxReplicas"
            )
    if wants_gpus(config) and not any(group.resources.get("GPU") for group in groups):
        yield f"no worker group has GPUs, and {wants_gpus(config)}; add a group with nvidia.com/gpu limits, or set them to 0"
    for bundle in _kinds(asked):
        if not any(group.most > 0 and fit([bundle], [group.resources]).enough for group in groups):
            yield f"{no_node(bundle, config)}; the groups' nodes have {'; '.join(map(_said, groups)) or 'nothing'}"
    room = fit(asked, [group.resources for group in groups for _ in range(group.most)])
    if not room.enough:
        sizes = ", ".join(f"{group.name} {group.most}" for group in groups)
        yield f"the run does not fit on the groups at their largest ({sizes}): {room}; raise maxReplicas, or lower what the settings ask"


def wants_gpus(config: Config) -> str:
    """The settings that ask for GPUs; "" when none does."""
    asked = {"rollout.gpus_per_runner": config.rollout.gpus_per_runner, "learner.gpus_per_rank": config.learner.gpus_per_rank}
    return " and ".join(f"{name}={amount:g}" for name, amount in asked.items() if amount)


def idle_cards(nodes: Sequence[Resources], config: Config) -> str:
    """Where a cluster has GPUs and the run asks for none: vLLM's build for GPUs would take a card that Ray thinks free. "" where it does not."""
    if wants_gpus(config) or not any(node.get("GPU") for node in nodes):
        return ""
    return (
        "this cluster has GPUs and the run asks for none (rollout.gpus_per_runner=0, learner.gpus_per_rank=0): start from one of the recipes, "
        "such as base: jobs/configs/one_gpu.yaml, or set both"
    )


def no_node(bundle: Resources, config: Config) -> str:
    """A bundle that no node can hold, with the settings it comes from."""
    said = f"no node can ever hold {_amounts(bundle)}"
    settings = [name for name, made in _origins(config).items() if made == dict(bundle)]
    return f"{said}, which {', '.join(settings)} ask for on one node" if settings else said


def _origins(config: Config) -> dict[str, dict[str, float]]:
    """The settings behind each kind of bundle. In colocated mode a runner and a rank are one."""
    rollout, learner, grpo = config.rollout, config.learner, config.grpo
    runner = bundle_of(rollout.cpus_per_runner, rollout.gpus_per_runner, rollout.node)
    rank = bundle_of(learner.cpus_per_rank, learner.gpus_per_rank, learner.node)
    named = {
        "rollout.cpus_per_runner, rollout.gpus_per_runner and rollout.node": runner,
        "learner.cpus_per_rank, learner.gpus_per_rank and learner.node": rank,
        "grpo.driver_cpus and grpo.node": bundle_of(grpo.driver_cpus, 0, grpo.node),
        "tools.node": resources(config.tools.node),
    }
    if learner.colocated:
        both = {name: runner.get(name, 0) + rank.get(name, 0) for name in runner | rank}
        named["rollout.*_per_runner and learner.*_per_rank (learner.colocated)"] = both
    return named


def _kinds(asked: Sequence[Resources]) -> list[Resources]:
    return [dict(kind) for kind in dict.fromkeys(tuple(sorted(bundle.items())) for bundle in asked) if kind]


def _said(group: WorkerGroup) -> str:
    shown = {name: amount for name, amount in group.resources.items() if "memory" not in name}
    return f"{group.name}: {_amounts(shown)}"


def _amounts(bundle: Resources) -> str:
    return amounts((name, round(amount * 10_000)) for name, amount in bundle.items())
