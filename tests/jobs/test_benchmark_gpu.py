"""The suite's rows from what its parts measured, and what it says of parts that cannot run. The parts themselves: README of learner."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from jobs import benchmark, benchmark_gpu
from jobs import benchmark_gpu_parts as parts
from jobs.benchmark_transports import NotAvailable
from mmsr_ray.atlas.policy import build_policy
from mmsr_ray.atlas.prepare import world_of
from mmsr_ray.config import Config, load
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.learner.numerics import Differences
from mmsr_ray.learner.phases import Machine
from mmsr_ray.learner.shapes import SHAPES, shape_config
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.types import Generation, Picture, Sampling


def speed(mfu: float | None) -> dict[str, Any]:
    packed = {"tokens_per_second": 200.0, "mfu": mfu, "peak_memory_gib": None if mfu is None else 40.0}
    return {"size": "7b", "kernel": "varlen", "fused": False, "packed": packed, "padded": packed | {"tokens_per_second": 100.0}}


def test_speed_has_rows_for_what_was_measured() -> None:
    assert [row["ratio"] for row in benchmark_gpu.speed_rows(speed(None))] == [2.0]
    assert [row["ratio"] for row in benchmark_gpu.speed_rows(speed(0.36))] == [2.0, 0.8, 1.0]
    with pytest.raises(NotAvailable, match="needs a GPU"):
        benchmark_gpu.speed_rows({"not_available": "needs a GPU"})


def test_a_part_that_cannot_run_or_fails_says_why_and_stops_nothing() -> None:
    def absent() -> list[dict[str, Any]]:
        raise NotAvailable("needs a GPU")

    def broken() -> list[dict[str, Any]]:
        raise RuntimeError("CUDA error")

    assert benchmark_gpu.attempt("a", absent) == [{"name": "a", "not_available": "needs a GPU"}]
    assert "CUDA error" in benchmark_gpu.attempt("b", broken)[0]["not_available"]
    assert benchmark_gpu.attempt("c", lambda: [{"name": "c"}]) == [{"name": "c"}]


def test_without_a_gpu_a_real_size_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ((row,),) = benchmark_gpu.gpu(Config(), "7b")
    assert "no GPU" in row["not_available"]


RECORDS = [
    {
        "seconds": {"total": 4.0, "rollout": 2.0, "learn": 1.0},
        "turns": {"engines_leave": 0.5},
        "device_gib": {"sampling_used": 60.0 + i / 100},
    }
    for i in range(20)
]


def test_a_step_is_taken_apart() -> None:
    rows = parts.step_rows(RECORDS, "Qwen2.5-VL-3B shape")
    assert [(row["value"], row["reference_value"]) for row in rows] == [(4.0, 2.0), (1.0, 4.0), (2.0, 4.0), (0.5, 4.0)]
    assert "engines_leave" in rows[-1]["name"]


def test_what_an_engine_lost_in_its_sleep_shows_in_its_log_probs() -> None:
    records = [{"mismatch_abs_mean": mean, "mismatch_max": most} for mean, most in ((0.01, 0.2), (0.02, 6.0), (0.01, 0.1))]
    mean, most = parts.agreement_rows(records, "Qwen2.5-VL-3B shape")
    assert (mean["value"], mean["reference_value"]) == (0.02, 0.01)
    assert (most["value"], most["reference_value"]) == (6.0, 0.2)


def test_memory_grows_or_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 80 * 2**30

    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: Card)
    readings = [{"all processes": 1000.0 + 2 * step, "engines": 500.0} for step in range(1, 21)]
    both, engines, most, after = parts.memory_rows(RECORDS, readings, "Qwen2.5-VL-3B shape")
    assert (both["value"], both["reference_value"]) == (1040.0, 1020.0)
    assert (engines["ratio"], most["reference_value"]) == (1.0, 80.0)
    assert (most["value"], after["value"], after["reference_value"]) == (60.19, 60.19, 60.09)
    missing = parts.memory_rows([{"seconds": {}, "turns": {}}], readings, "tiny shape")[-1]
    assert "no GPU" in missing["not_available"]


@pytest.mark.parametrize(
    ("size", "card_gib", "host_gib", "how"),
    [
        ("3B", 79.1, 200.0, ", optimiser in host memory"),  # an H100
        ("3B", 139.8, 128.0, ""),  # an H200
        ("7B", 79.1, 128.0, ", adapters of rank 16"),
        ("7B", 79.1, 500.0, ", optimiser in host memory"),
        ("0.5B", 79.1, 128.0, ""),
    ],
)
def test_the_colocated_part_learns_as_its_card_permits(tmp_path: Path, size: str, card_gib: float, host_gib: float, how: str) -> None:
    """As the suite itself sizes it; all weights of the 7B model on one card of 80 GB would end in its allocator."""
    shape_config(SHAPES[size.lower()]).save_pretrained(tmp_path)
    base = load(benchmark.ROOT / "jobs" / "configs" / "atlas.yaml", [*benchmark_gpu.SETTINGS, f"model.path={tmp_path}", "data.train=none"])
    learner = replace(base.learner, gpus_per_rank=0.5, micro_batch_tokens=8192, colocated=True)
    agent = replace(base.agent, max_prompt_tokens=4096, max_turn_tokens=512, max_total_tokens=8192)
    model = replace(base.model, min_pixels=262_144, max_pixels=903_168, thumbnail_max_pixels=90_000)
    here = replace(base, learner=learner, agent=agent, model=model, rollout=replace(base.rollout, gpus_per_runner=0.5))
    found, said = parts.that_fits(here, Machine(card_gib, host_gib, cards=1))
    assert said == how
    assert (found.learner.offload == "optimizer", found.learner.lora.rank) == ("host" in how, 16 * ("adapters" in how))
    with pytest.raises(NotAvailable, match=r"not even adapters fit: .*of its card"):
        parts.that_fits(here, Machine(1.0, host_gib, cards=1))


def test_numerics_stand_beside_what_batching_does() -> None:
    differences = Differences(100, 0.01, 0.05, 0.2)
    itself = {"packed_against_padded": asdict(differences), "alone_against_together": asdict(Differences(100, 0.005, 0.025, 0.1))}
    rows = parts.numerics_rows({"engine": differences, "itself": itself}, "7b", "bfloat16")
    assert [row["ratio"] for row in rows[:3]] == [2.0, 2.0, 2.0] and len(rows) == 9


def test_the_report_keeps_what_is_not_available_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*benchmark_gpu.speed_rows(speed(None)), {"name": "NCCL", "not_available": "not built"}]
    written = json.loads(benchmark.write("gpu", rows, tmp_path).read_text())
    benchmark.report(rows)
    assert [row["name"] for row in written["not_available"]] == ["NCCL"] and len(written["rows"]) == 1
    assert {"cpu", "cores"} <= set(written["machine"])
    assert "NCCL: not available: not built" in capsys.readouterr().out


class Parrot:
    """An engine as far as the numerics need one: says the same tokens every time, with log-probs of its own making."""

    def __init__(self, config: Config, store_name: str | None, namespace: str) -> None:
        self.codec = load_codec(config)

    async def start(self) -> None: ...

    def stop(self) -> None: ...

    async def generate(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        assert prompt_ids.count(self.codec.image_pad_id) == len(pictures) > 0
        ids = [*self.codec.encode_turn("so it is")]
        return Generation(ids, [-1.0] * len(ids), [0] * len(ids), stopped=True)


def test_transcripts_of_the_numerics_hold_pictures_in_every_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts around the engine for real: transcripts, sealing, the learner's scores in bfloat16, rows."""
    build_policy(tmp_path / "policy", 0)
    write_fvqa(tmp_path / "train.parquet", world_of(Config().atlas).samples("train", 4))
    names = [f"model.path={tmp_path / 'policy'}", f"data.train={tmp_path / 'train.parquet'}", "data.test=none"]
    config = load(benchmark.ROOT / "jobs" / "configs" / "atlas.yaml", [*names, "model.dtype=bfloat16"])
    monkeypatch.setattr(parts, "VLLMEngine", Parrot)
    sealed = parts._sampled(config)
    assert [len(tokens.pictures) for tokens in sealed] == [1 + parts.THUMBNAILS * (parts.TURNS - 1)] * parts.TRANSCRIPTS
    found = parts._scored(config, sealed)
    assert found["engine"].mean > 0.5, "the parrot's log-probs are not the policy's"
    assert found["itself"]["packed_against_padded"]["max"] < 0.1
    rows = parts.numerics_rows(found, "tiny", "bfloat16")
    assert rows[0]["value"] == pytest.approx(found["engine"].mean, abs=1e-3)
