"""The suite `learner` on a small load: its rows, and that both sides of a comparison do the same work."""

from __future__ import annotations

import pytest

from jobs import benchmark_learner
from mmsr_ray.config import Config, DataConfig, ModelConfig


def test_every_row_compares_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_learner, "ROWS", 8)
    monkeypatch.setattr(benchmark_learner, "PASSES", 1)
    rows = benchmark_learner.learner(Config(model=ModelConfig(path="none"), data=DataConfig(train="", test="")))
    assert len({r["name"] for r in rows}) == len(rows) == 2 * len(benchmark_learner.MIXES) + 2
    for r in rows:
        assert r["unit"] == "tokens/s"
        assert 0.05 < r["ratio"] < 20
        assert r["command"] == "python jobs/benchmark.py suite=learner"


def test_the_load_is_what_the_rows_say() -> None:
    lengths = {name: [r.tokens.length for r in benchmark_learner._rows_of_lengths(mix, 0)] for name, mix in benchmark_learner.MIXES.items()}
    equal, spread, tail = lengths.values()
    assert set(equal) == {160}
    assert 80 <= min(spread) < max(spread) < 240
    assert sorted(tail)[len(tail) // 2] < 100 < 300 < max(tail) <= 1500
    pictures = [len(r.tokens.pictures) for r in benchmark_learner._rows_with_thumbnails(0)]
    assert set(pictures) == {1, 11}
    assert 0.3 < pictures.count(11) / len(pictures) < 0.7
