"""The seam between jobs and the made-up world: nothing else of the product knows Atlas."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef

import mmsr_ray.agent
import mmsr_ray.atlas
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.algorithms.demonstrations import items_of
from mmsr_ray.atlas import oracle
from mmsr_ray.atlas.prepare import cache_namespace, demonstrations, point_at, prepare, start_web, world_of, world_settings
from mmsr_ray.atlas.truth import label_accuracy, true_need
from mmsr_ray.config import Config, ConfigError
from mmsr_ray.data.construction.attempts import Attempt, from_json
from mmsr_ray.data.construction.balance import label
from mmsr_ray.data.construction.balance_settings import BalanceConfig
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.mixture import mixture
from mmsr_ray.data.reader import read_samples
from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.trajectories import write_trajectories
from mmsr_ray.head import living_nodes
from mmsr_ray.learner.plan import Item
from mmsr_ray.rewards.score import score
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.rollout.scoring import AFTER_WARMUP
from mmsr_ray.tools.addresses import Reach
from mmsr_ray.tools.taped import needs_live
from mmsr_ray.types import Group, Need, Outcome, Sample, Trajectory

DRAWS = 20  # mixtures that a rule of balancing is judged by
NODE = "node"  # as atlas.host: the address of the node that the job runs on
NOWHERE = "http://atlas.invalid"  # of the tools of a replay: nobody may answer there, and nobody is asked


@contextmanager
def world(config: Config) -> Iterator[Config]:
    """Inside, the files that the config names are there and its tools point at a running web; a replay of a tape has none.

    Without Atlas: as it is.
    """
    if not config.atlas.enabled:
        yield config
        return
    prepare(config)
    if not needs_live(config.tools):
        yield replace(config, tools=point_at(config.tools, NOWHERE))
        return
    web = start_web(replace(config.atlas, host=web_host(config)))
    try:
        tools = point_at(config.tools, web.base)
        cache = replace(tools.cache, namespace=tools.cache.namespace or cache_namespace(config.atlas))
        yield replace(config, tools=replace(tools, cache=cache))
    finally:
        web.stop()


def web_host(config: Config) -> str:
    """The address that the web listens on. Raises ConfigError where tools that run on other nodes could not reach it, or may not, and HeadAway."""
    here = ray.util.get_node_ip_address()
    others = {node.address for node in living_nodes()} - {here} if ray.is_initialized() else set()
    host = here if config.atlas.host == NODE else config.atlas.host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ConfigError(f"atlas.host={host!r} is no address: write one, or {NODE}") from None
    if loopback:
        if others:
            raise ConfigError(
                f"atlas.host={host} is this node alone, and the cluster has others ({', '.join(sorted(others))}): set atlas.host=node, "
                "and tools.private_hosts to the network of the nodes"
            )
        return host
    if not Reach.parse(config.tools.private_hosts).allows(host):
        raise ConfigError(f"atlas.host is {host}, which tools.private_hosts does not allow: add that address, or its network, there")
    return host


def make_demonstrations(config: Config) -> list[tuple[ObjectRef, list[Item]]]:
    """`atlas.demonstrations` groups, made by tasks in parallel; they stay in the object store."""

    def make(start: int, count: int) -> tuple[list[list[Item]], *tuple[Group, ...]]:
        groups = demonstrations(config, start, count)
        return ([items_of(group) for group in groups], *groups)

    share = math.ceil(config.atlas.demonstrations / (os.cpu_count() or 1))  # a task's process takes seconds to import its world
    made = []
    for start in range(0, config.atlas.demonstrations, share):
        count = min(share, config.atlas.demonstrations - start)
        made.append(ray.remote(make).options(num_cpus=1, num_returns=count + 1).remote(start, count))
    pairs = []
    for items, *groups in made:
        pairs += zip(groups, ray.get(items, timeout=config.learner.start_seconds), strict=True)
    return pairs


def check_labels(config: Config, candidates: Iterable[Candidate]) -> dict[str, Any]:
    """Labels of balancing against what Atlas knows: of all questions that got one, of those in the set (`_in_set`), and what other
    rules would have made of the same rollouts (`balance_rules`).
    """
    here = world_of(config.atlas)
    labelled: list[tuple[Need, Need]] = []
    in_set: list[tuple[Need, Need]] = []
    truths: dict[str, Need] = {}
    attempts: dict[str, list[Attempt]] = {}
    for candidate in candidates:
        if (truth := true_need(here, candidate.concept, candidate.question)) is None:
            continue
        if candidate.attempts:
            truths[candidate.key], attempts[candidate.key] = truth, from_json(candidate.attempts)
        if candidate.need:
            labelled.append((Need(candidate.need), truth))
            if candidate.kept:
                in_set.append(labelled[-1])
    balance = config.construction.balance
    rules = {"as configured": balance, "the paper's": replace(balance, min_support=1, min_success=0.0)}
    rules["two right rollouts"] = replace(balance, min_support=2, min_success=0.0)
    return (
        label_accuracy(labelled)
        | {f"{name}_in_set": value for name, value in label_accuracy(in_set).items()}
        | {"balance_rules": {name: _rule(rule, attempts, truths) for name, rule in rules.items()} if attempts else {}}
    )


def _rule(rule: BalanceConfig, attempts: Mapping[str, Sequence[Attempt]], truths: Mapping[str, Need]) -> dict[str, Any]:
    """What a rule of balancing makes of these rollouts; numbers of the set are means over DRAWS mixtures."""
    needs = {key: need for key, seen in attempts.items() if (need := label(seen, rule).need)}
    right = {key for key, need in needs.items() if need is truths[key]}
    found = {"labelled": len(needs), "accuracy": len(right) / len(needs) if needs else None}
    try:
        sets = [mixture(needs, rule, seed).chosen for seed in range(DRAWS)]
    except DataError:  # a kind of question is missing
        return found | {"questions": 0, "accuracy_in_set": None}
    questions = sum(map(len, sets))
    return found | {
        "questions": questions / DRAWS,
        "accuracy_in_set": sum(len(chosen & right) for chosen in sets) / questions if questions else None,
    }


def write_taught(config: Config, path: Path) -> dict[str, int]:
    """Have `atlas.teacher` answer every training question, its answers scored by `config.reward`, and write them as trajectories.

    Returns how many there are by what became of them: correct, wrong, broken.
    """

    def answer(samples: list[Sample]) -> list[tuple[Sample, Trajectory]]:
        teacher = oracle.Teacher(world_of(config.atlas), config.atlas.teacher)
        played = oracle.answers(teacher, samples, load_codec(config), PromptSet.load(config.agent.prompts), config.agent)
        return [(sample, scored(trajectory, sample, config)) for sample, trajectory in played]

    samples = read_samples(config.data.train, config.data)
    share = math.ceil(len(samples) / (os.cpu_count() or 1))
    parts = [ray.remote(answer).options(num_cpus=1).remote(samples[at : at + share]) for at in range(0, len(samples), share)]
    pairs = [pair for part in ray.get(parts, timeout=config.learner.start_seconds) for pair in part]
    write_trajectories(path, pairs, split="train")
    rewards = [trajectory.reward for _, trajectory in pairs]
    correct = sum(reward is not None and reward.correct for reward in rewards)
    broken = sum(reward is None for reward in rewards)
    return {"correct": correct, "wrong": len(pairs) - correct - broken, "broken": broken}


def scored(trajectory: Trajectory, sample: Sample, config: Config) -> Trajectory:
    if trajectory.outcome is Outcome.INFRA_ERROR:
        return trajectory
    return replace(trajectory, reward=score(trajectory, sample, config.reward, config.agent.allowed_paths, AFTER_WARMUP))


def demonstrations_version(config: Config) -> str:
    """Changes whenever the demonstrations may: the world's settings and code, the prompts, the agent's limits and code."""
    sources = [file for package in (mmsr_ray.atlas, mmsr_ray.agent) for file in sorted(Path(package.__path__[0]).glob("*.py"))]
    values: dict[str, Any] = {
        "atlas": world_settings(config.atlas),
        "agent": asdict(config.agent),
        "prompts": PromptSet.load(config.agent.prompts).texts(),
        "code": hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest(),
    }
    return json.dumps(values, sort_keys=True)
