"""The plan of memory: what it counts, refuses and advises."""

from __future__ import annotations

import pytest

from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.learner.memory import check, complaints, footprint_of, main, table, verdict
from mmsr_ray.learner.phases import GIB, Machine, Plan, locked, plan

SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"
BASE = ["data.train=none", "data.test=none", f"model.path={SEVEN}"]
ON_A_CARD = ["learner.gpus_per_rank=1", "rollout.gpus_per_runner=1", "learner.dtype=bfloat16", "learner.gradient_checkpointing=true"]


def config(*settings: str) -> Config:
    return load(None, [*BASE, *ON_A_CARD, *settings])


def planned(*settings: str, card: float = 0.0, host: float = 0.0) -> Plan:
    c = config(*settings)
    return plan(c, footprint_of(c.model.path), Machine(card, host))


def part(p: Plan, phase: str, name: str) -> float:
    return sum(item.bytes for found in p.card if found.name == phase for item in found.items if item.name == name) / GIB


def test_states_shrink_with_ranks_as_zero_says() -> None:
    one, four = planned("learner.world_size=1"), planned("learner.world_size=4")
    three = planned("learner.world_size=4", "learner.zero_stage=3")
    assert part(one, "optimiser step", "moments") == pytest.approx(8 * 8_292_166_656 / GIB)
    assert part(four, "optimiser step", "moments") == pytest.approx(part(one, "optimiser step", "moments") / 4)
    assert part(four, "optimiser step", "weights") == part(one, "optimiser step", "weights")
    assert part(three, "optimiser step", "weights") == pytest.approx(part(one, "optimiser step", "weights") / 4)
    assert part(planned("learner.lora.rank=16"), "optimiser step", "moments") < 0.2


def test_zero_3_starts_with_the_whole_model_on_each_card() -> None:
    p = planned("learner.world_size=16", "learner.zero_stage=3", "learner.offload=all")
    assert part(p, "start", "weights, still whole") == pytest.approx(2 * 8_292_166_656 / GIB)
    assert part(p, "forward and backward", "weights") == 0


def test_page_locked_memory_comes_in_powers_of_two() -> None:
    assert [locked(size) for size in (0, 1, 4096, 4097, 15 << 30)] == [0, 1, 4096, 8192, 16 << 30]


def test_more_of_anything_needs_more_memory() -> None:
    least = planned("learner.micro_batch_tokens=12288").card_gib
    assert planned("learner.micro_batch_tokens=49152").card_gib > least
    assert planned("learner.micro_batch_tokens=12288", "learner.plain_layers=14").card_gib > least
    assert planned("learner.micro_batch_tokens=12288", "learner.dtype=float32").card_gib > least
    assert planned("learner.micro_batch_tokens=12288", "grpo.loss.kl_coef=0").card_gib < least


def test_what_is_advised_can_be_set() -> None:
    """On a shared card ZeRO-3 cannot move adapters' frozen weights unless all is in host memory (`colocation.py`)."""
    shared = ["learner.colocated=true", "learner.gpus_per_rank=0.5", "rollout.gpus_per_runner=0.5", "rollout.num_runners=8"]
    adapters = ["model.path=Qwen/Qwen2.5-VL-32B-Instruct", "learner.world_size=8", "learner.lora.rank=16"]
    said = complaints(planned(*shared, *adapters, card=75))[0]
    assert said.endswith("learner.zero_stage=3 with learner.offload=all would fit")


@pytest.mark.parametrize(
    "settings", [[], ["learner.zero_stage=1"], ["learner.plain_layers=20", "learner.world_size=8"], ["learner.world_size=4"]]
)
def test_what_is_advised_fits(settings: list[str]) -> None:
    """A refusal names settings; with those, and nothing else changed, the learner is accepted."""
    (said,) = complaints(planned(*settings, card=60))
    assert said.startswith("a learner rank needs") and said.endswith(" would fit")
    advised = [word for word in said.split(": ")[-1].split() if "=" in word]
    assert advised and not complaints(planned(*settings, *advised, card=60))


def test_what_nothing_helps_is_said() -> None:
    (said, *_) = complaints(planned(card=12))
    assert "no single setting helps" in said and "larger card" in said


def test_a_model_that_zero_3_cannot_start_with_needs_another_card() -> None:
    large = ["model.path=Qwen/Qwen2.5-VL-72B-Instruct", "learner.world_size=64", "learner.zero_stage=3", "learner.offload=all"]
    said = complaints(planned(*large, "grpo.loss.kl_coef=0", card=80))[0]
    assert "in its phase `start`" in said and said.endswith("take a larger card")


def test_an_engine_without_room_for_one_trajectory_is_refused() -> None:
    said = complaints(planned("learner.offload=optimizer", "learner.reference=host", "learner.lora.rank=8", card=47, host=900))
    assert not said
    said = complaints(planned("rollout.gpu_memory_utilization=0.3", "learner.lora.rank=8", card=60))
    assert len(said) == 1 and "rollout.gpu_memory_utilization" in said[0] and "12288" in said[0]


def test_a_node_without_room_is_refused() -> None:
    (said,) = complaints(planned("learner.world_size=8", "learner.reference=host", card=140, host=128))
    assert "frozen models" in said and "host memory" in said


def test_an_unknown_machine_refuses_nothing_and_a_known_one_at_start() -> None:
    assert complaints(planned()) == []
    assert verdict(planned()) == ["not compared with the machine: machine.card_gib and machine.host_gib (GiB) would name it"]
    with pytest.raises(ConfigError, match="a learner rank needs"):
        check(config(), Machine(card_gib=40))


def test_without_cards_host_memory_counts() -> None:
    c = load(None, BASE)
    with pytest.raises(ConfigError, match=r"at least .* this machine's memory"):
        check(c, Machine(host_gib=24))
    assert not complaints(plan(c, footprint_of(c.model.path), Machine(host_gib=4000)))


def test_the_table_names_every_part_and_the_command_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    shown = table(planned("learner.world_size=2", card=80))
    for name in ("8,292,166,656 parameters", "master weights", "activations and logits", "cache", "frozen model", "object store"):
        assert name in shown
    assert main([*BASE[2:], *ON_A_CARD, "machine.card_gib=40"]) == 1
    assert "does not fit: a learner rank" in capsys.readouterr().out
    assert main([*BASE[2:], *ON_A_CARD, "machine.card_gib=140"]) == 0
    assert "fits: a rank needs" in capsys.readouterr().out
    assert main(["model.path=nowhere/at/all/really"]) == 2
