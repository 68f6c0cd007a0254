"""What a job asks of the cluster before it plans its memory; the cluster is made up."""

from __future__ import annotations

import logging

import pytest

from jobs import memory
from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.head import Node

BASE = ["data.train=none", "data.test=none", "model.path=Qwen/Qwen2.5-VL-7B-Instruct"]
ON_CARDS = ["learner.gpus_per_rank=1", "learner.dtype=bfloat16", "learner.gradient_checkpointing=true", "learner.world_size=8"]


def cluster(monkeypatch: pytest.MonkeyPatch, *, nodes: int, card: float = 0.0) -> None:
    monkeypatch.setattr(memory, "living_nodes", lambda: [Node(str(number), "10.0.0.1", {}) for number in range(nodes)])
    monkeypatch.setattr(memory, "_card_gib", lambda: card)


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
