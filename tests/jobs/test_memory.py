"""What a job asks of the cluster before it plans its memory; the cluster is made up."""

from __future__ import annotations

import logging

import pytest

from jobs import memory
from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.head import Node
from mmsr_ray.learner.meter import Memory

BASE = ["data.train=none", "data.test=none", "model.path=Qwen/Qwen2.5-VL-7B-Instruct"]
ON_CARDS = ["learner.gpus_per_rank=1", "learner.dtype=bfloat16", "learner.gradient_checkpointing=true", "learner.world_size=8"]


def cluster(monkeypatch: pytest.MonkeyPatch, *, nodes: int, card: float = 0.0, store_gib: float = 100.0, gpus: float = 8.0) -> None:
    has = {"GPU": gpus, "object_store_memory": store_gib * 2**30}
    monkeypatch.setattr(memory, "living_nodes", lambda: [Node(str(number), "10.0.0.1", has) for number in range(nodes)])
    monkeypatch.setattr(memory, "card_gib", lambda: card)


def on_cards(*settings: str) -> Config:
    return load(None, [*BASE, *ON_CARDS, *settings])


def test_a_card_that_is_found_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, nodes=2, card=40)
    with pytest.raises(ConfigError, match="a learner rank needs"):
        memory.check_memory(on_cards())
    cluster(monkeypatch, nodes=2, card=140)
    memory.check_memory(on_cards())


def test_a_card_that_is_named_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, nodes=2, card=140)
    with pytest.raises(ConfigError, match="a learner rank needs"):
        memory.check_memory(on_cards("machine.card_gib=40"))


def test_unknown_cards_are_said_and_refuse_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cluster(monkeypatch, nodes=2)
    with caplog.at_level(logging.WARNING):
        memory.check_memory(on_cards())
    assert "machine.card_gib" in caplog.text


def test_the_memory_of_a_lone_machine_without_cards_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, nodes=1)
    with pytest.raises(ConfigError, match="of this machine's memory"):
        memory.check_memory(load(None, [*BASE, "learner.world_size=64"]))
    cluster(monkeypatch, nodes=2)  # whose nodes share the load is not known
    memory.check_memory(load(None, [*BASE, "learner.world_size=64"]))


def test_a_lone_machine_that_is_smaller_than_the_recipes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    named = ["machine.card_gib=140", "machine.host_gib=1000"]
    meter = type("Meter", (), {"__init__": lambda self, node: None, "now": lambda self: Memory(0, 0, 100 * 2**30)})
    monkeypatch.setattr(memory, "HostMeter", meter)
    cluster(monkeypatch, nodes=2)
    memory.check_memory(on_cards(*named))
    cluster(monkeypatch, nodes=1)
    with pytest.raises(ConfigError, match=r"a node needs \d+ GiB of host memory and has 100"):
        memory.check_memory(on_cards(*named))
    cluster(monkeypatch, nodes=1, gpus=0)  # a head whose nodes with cards have yet to come
    memory.check_memory(on_cards(*named))


def test_a_small_object_store_is_told_where_weights_pass_through_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    named = on_cards("machine.card_gib=140")
    cluster(monkeypatch, nodes=2, store_gib=2)
    with caplog.at_level(logging.WARNING):
        memory.check_memory(named)
    assert "node 10.0.0.1 has 2.0 GiB and two versions of the weights want 38.6" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        memory.check_memory(on_cards("machine.card_gib=140", "learner.lora.rank=16", "learner.lora.sync=adapter"))
        cluster(monkeypatch, nodes=2, store_gib=39)
        memory.check_memory(named)
    assert not caplog.text
