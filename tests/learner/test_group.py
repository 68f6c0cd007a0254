"""The DeepSpeed ranks against a plain torch loop on the same rows."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from mmsr_ray.config import Config, DataConfig, ModelConfig
from mmsr_ray.learner.batch import Row
from mmsr_ray.learner.consolidate import consolidated
from mmsr_ray.learner.durable import NotWritten, read_manifest
from mmsr_ray.learner.group import LearnerError, LearnerGroup
from mmsr_ray.learner.model import load_policy, named_weights
from mmsr_ray.learner.pictures import PatchCache, VisionGeometry
from mmsr_ray.learner.plan import Item, UpdatePlan, plan_update
from mmsr_ray.learner.settings import LearnerConfig, LoRAConfig
from mmsr_ray.learner.step import fit
from mmsr_ray.types import Group, Outcome, Sample, Trajectory
from mmsr_ray.weights.adapters import collect
from tests.learner.conftest import make_policy, make_row

pytestmark = pytest.mark.heavy
Weights = dict[str, torch.Tensor]
STEP_TOLERANCE = 2e-4  # of steps of 1e-3: AdamW divides by the gradient's own size, and a tiny sum depends on its order
MEAN_TOLERANCE = 1e-7
ROWS = [make_row(i, length=30 + 9 * i, pictures=() if i == 3 else ((56, 56, i), (28, 28, 50)), advantage=(-1.0) ** i) for i in range(6)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, processor: Qwen2VLImageProcessor) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_policy().hf.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("template")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    yield
    ray.shutdown()


def settings(base: Path, zero_stage: int) -> Config:
    learner = LearnerConfig(
        world_size=2, cpus_per_rank=0.5, zero_stage=zero_stage, bucket_bytes=100_000, update_seconds=60, start_seconds=120
    )
    return Config(model=ModelConfig(path=str(base), dtype="float32"), data=DataConfig(train="", test=""), learner=learner)


def make_group(rows: list[Row]) -> Group:
    sample = Sample("u", "q", b"", ("a",))
    made = [Trajectory("u", i, "on_demand", "q", (), Outcome.OK, "", "a", row.tokens) for i, row in enumerate(rows)]
    return Group("u", 0, sample, tuple(made))


def items_of(rows: list[Row], advantage: float | None = None) -> list[Item]:
    return [
        Item(i // 2, i % 2, row.advantage if advantage is None else advantage, row.tokens.length, int(row.tokens.loss_mask.sum()))
        for i, row in enumerate(rows)
    ]


def make_plan(loss: str, *, world_size: int = 2, lr: float = 1e-3, minibatches: int = 1, advantage: float | None = None) -> UpdatePlan:
    return plan_update(items_of(ROWS, advantage), world_size=world_size, micro_batch_tokens=120, minibatches=minibatches, loss=loss, lr=lr)


def put_groups() -> list[ray.ObjectRef]:
    return [ray.put(make_group(ROWS[i : i + 2])) for i in (0, 2, 4)]


def weights_of(group: LearnerGroup, version: int = 0) -> dict[str, torch.Tensor]:
    refs = list(group.publish(version))
    assert len(refs) > 1
    return {name: packed.tensor().clone() for bucket in ray.get(refs) for name, packed in bucket.items()}


def torch_only(base: Path, config: Config, steps: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What one process with plain torch makes of the same supervised steps."""
    policy = load_policy(base)
    optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=config.learner.weight_decay)
    rows = [ROWS[i : i + 2] for i in (0, 2, 4)]
    plan = make_plan("sft", world_size=1, advantage=1.0)
    metrics = list(fit(policy, optimizer, iter([(plan, rows)] * steps), PatchCache(VisionGeometry.load(base))))
    return {name: p.detach() for name, p in named_weights(policy).items()}, metrics[-1]


def limit_file_size(rank: Any, size: int) -> None:
    ray.get(rank.__ray_call__.remote(lambda self: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_zero_2_trains_publishes_skips_saves_and_recovers(base: Path, cluster: None, tmp_path: Path) -> None:
    config = settings(base, 2)
    config.learner.micro_batch_tokens = 0
    config.agent.max_total_tokens, config.model.max_pixels, config.model.thumbnail_max_pixels = 300, 784 * 16, 784
    config.grpo.groups_per_step, config.grpo.group_size, config.grpo.minibatches = 3, 4, 1
    group = LearnerGroup(config, str(base))
    group.start()
    refs = put_groups()

    # the largest micro-batch: nothing fits into no memory; with all there is, a rank's whole share of a step does
    config.learner.memory_share = 1e-6
    with pytest.raises(LearnerError, match="find_micro_batch must come"):
        group.plan([], minibatches=1, loss="sft", lr=0.0)
    with pytest.raises(LearnerError, match=r"300 tokens do not fit into memory: set, in this order, learner.gradient_checkpointing=true"):
        group.find_micro_batch()
    config.learner.memory_share = 1.0
    assert group.find_micro_batch() == 16 * 300, "sft.batch_size rows on two ranks"
    plan = group.plan(items_of(ROWS), minibatches=1, loss="sft", lr=0.0)
    assert [len(rank) for rank in plan.minibatches[0].ranks] == [1, 1]
    assert_same(weights_of(group), {name: p.detach() for name, p in named_weights(load_policy(base)).items()})

    # two ranks with two micro-batches each take the same steps as one plain process, though they give their devices away in between
    for _ in range(3):
        metrics = group.update(make_plan("sft", advantage=1.0), refs)
        assert group.leave() == group.come_back() == {}  # there is no GPU to tell of
    expected, expected_metrics = torch_only(base, config, 3)
    assert metrics["loss"] == pytest.approx(expected_metrics["loss"], rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(expected_metrics["grad_norm"], rel=1e-3)
    assert metrics["tokens"] == sum(row.tokens.length for row in ROWS)
    trained = weights_of(group, 1)
    assert_same(trained, expected, 3e-4)

    # grpo over several mini-batches, with the frozen model in the loss
    group.set_reference()
    group.save(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint.partial").exists()
    assert group.check(tmp_path / "checkpoint") == ""
    assert_same(consolidated(tmp_path / "checkpoint", config), trained)
    limit_file_size(group.ranks[1], 100_000)  # the kernel refuses what is beyond, as a full disk or a spent quota would
    with pytest.raises(NotWritten, match=r"was not written: File too large; it needs \d+\.\d MiB and .* are free there"):
        group.save(tmp_path / "checkpoint")
    limit_file_size(group.ranks[1], resource.RLIM_INFINITY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"], "nothing is left of it"
    first = group.update(make_plan("grpo", minibatches=3), refs)
    second = group.update(make_plan("grpo"), refs)
    assert set(first) >= {
        "loss",
        "policy_loss",
        "kl",
        "entropy",
        "clip_fraction",
        "mismatch_abs_mean",
        "mismatch_max",
        "correction_mean",
        "correction_masked",
        "grad_norm",
        "lr",
        "tokens",
    }
    assert first["kl"] > 0
    assert second["kl"] > first["kl"]
    assert first["entropy"] > 0
    assert (first["skipped"], second["clip_fraction"]) == (0.0, 0.0)

    # a step that is not finite changes nothing
    before = weights_of(group, 2)
    metrics = group.update(make_plan("grpo", advantage=float("nan")), refs)
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (1.0, 1.0)
    metrics = group.update(make_plan("grpo", minibatches=2, advantage=float("nan")), refs)
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (2.0, 3.0), "a row goes on from update to update"
    assert_same(weights_of(group, 3), before)

    # the exported folder is the model, side files included
    group.export(tmp_path / "exported")
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "exported")
    assert_same({name: p.detach() for name, p in again.named_parameters()}, before)
    assert (tmp_path / "exported" / "chat_template.jinja").read_text() == "template"
    assert VisionGeometry.load(tmp_path / "exported") == VisionGeometry.load(base)

    # a changed byte is found, whichever rank looks at that file
    for number, name in enumerate(sorted(read_manifest(tmp_path / "checkpoint"))):
        copy = tmp_path / f"changed_{number}"
        shutil.copytree(tmp_path / "checkpoint", copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        assert group.check(copy) == f"{copy} is damaged: {name} has not the checksum of its manifest.json"
        (copy / name).unlink()
        assert group.check(copy) == f"{copy} is cut short: {name} is missing"

    # a dead rank is an error at once, and the group comes back as it was saved, optimiser and reference included
    ray.kill(group.ranks[1])
    with pytest.raises(LearnerError, match="update failed"):
        group.update(make_plan("grpo"), refs)
    group.restart(tmp_path / "checkpoint")
    assert_same(weights_of(group, 4), trained)
    repeated = group.update(make_plan("grpo", minibatches=3), refs)
    assert repeated["kl"] == pytest.approx(first["kl"], rel=1e-3)
    assert repeated["loss"] == pytest.approx(first["loss"], rel=1e-3, abs=1e-6)
    with pytest.raises(LearnerError, match="no learner checkpoint"):
        group.load(tmp_path / "nowhere")
    group.shutdown()
    with pytest.raises(LearnerError, match="call start"):
        group.update(make_plan("grpo"), refs)


def test_zero_3_takes_the_same_steps(base: Path, cluster: None, tmp_path: Path) -> None:
    config = settings(base, 3)
    group = LearnerGroup(config, str(base))
    group.start()
    refs = put_groups()
    for _ in range(2):
        group.update(make_plan("sft", advantage=1.0), refs)
    expected, _ = torch_only(base, config, 2)
    assert_same(weights_of(group), expected, 3e-4)
    group.set_reference()
    metrics = group.update(make_plan("grpo", minibatches=2), refs)
    assert metrics["skipped"] == 0
    before = weights_of(group)
    assert group.update(make_plan("grpo", advantage=float("nan")), refs)["skipped"] == 1.0
    assert_same(weights_of(group), before)
    group.save(tmp_path / "checkpoint")
    group.export(tmp_path / "exported")
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "exported")
    assert_same({name: p.detach() for name, p in again.named_parameters()}, before)
    group.update(make_plan("grpo"), refs)
    group.load(tmp_path / "checkpoint")
    assert_same(weights_of(group), before)
    assert_same(consolidated(tmp_path / "checkpoint", config), before)
    group.shutdown()


def merged_by_an_engine(group: LearnerGroup, start: Weights) -> Weights:
    """What an engine makes of published adapters and of its own weights."""
    adapters = collect(weights_of(group))
    assert len(adapters) == 14
    return {name: adapters[module].merged(t) if (module := name.removesuffix(".weight")) in adapters else t for name, t in start.items()}


def test_adapters_learn_alone_and_are_their_own_reference(base: Path, cluster: None, tmp_path: Path) -> None:
    config = settings(base, 2)
    config.learner.lora, config.learner.bucket_bytes = LoRAConfig(rank=4, alpha=8, sync="adapter"), 10_000
    group = LearnerGroup(config, str(base))
    group.start()
    refs = put_groups()
    start = {name: p.detach() for name, p in named_weights(load_policy(base)).items()}
    assert_same(merged_by_an_engine(group, start), start)
    group.set_reference()
    first = group.update(make_plan("grpo", lr=1e-2), refs)
    second = group.update(make_plan("grpo", lr=1e-2), refs)
    assert first["kl"] == pytest.approx(0.0, abs=1e-7), "the policy is still its own reference"
    assert second["kl"] > 1e-5
    trained = merged_by_an_engine(group, start)
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, start[name])}
    assert changed == {
        name for name in start if name.endswith(tuple(f"{t}.weight" for t in config.learner.lora.targets)) and ".visual." not in name
    }

    group.save(tmp_path / "checkpoint")
    assert_same(consolidated(tmp_path / "checkpoint", config), trained, 1e-6)
    third = group.update(make_plan("grpo", lr=1e-2), refs)
    group.restart(tmp_path / "checkpoint")
    assert_same(merged_by_an_engine(group, start), trained, 1e-6)
    again = group.update(make_plan("grpo", lr=1e-2), refs)
    assert again["kl"] == pytest.approx(third["kl"], rel=1e-3)
    assert again["grad_norm"] == pytest.approx(third["grad_norm"], rel=1e-3)

    group.export(tmp_path / "exported")
    merged = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "exported")
    assert_same({name: p.detach() for name, p in merged.named_parameters()}, merged_by_an_engine(group, start))
    group.shutdown()


class Stages:
    """One rank, built anew for each setting in the same process: it is starting processes that takes the time."""

    def __init__(self, number: int) -> None:
        self._number = number

    def address(self) -> tuple[str, int]:
        from mmsr_ray.learner.rank import LearnerRank

        return LearnerRank(self._number, settings(Path(), 0), "").address()

    def step(self, config: Config, base: str, address: tuple[str, int], plan: UpdatePlan, refs: list[ray.ObjectRef]) -> list[Weights]:
        """Weights at the start, after a rehearsal and after a step, as rank 0 publishes them."""
        from mmsr_ray.learner.rank import LearnerRank

        rank = LearnerRank(self._number, config, base)
        rank.start(*address)
        rank.set_reference()

        def weights() -> Weights:
            return {name: packed.tensor().clone() for bucket in rank.publish(0) for name, packed in bucket.items()}

        seen = [weights()]
        rest = rank.room().own
        assert rank.rehearse(700) > rest > 0
        seen.append(weights())
        assert rank.update(plan, refs)["skipped"] == 0.0
        seen.append(weights())
        assert rank.update(make_plan("grpo"), refs)["kl"] > 0
        assert rank.update(plan_update([], world_size=2, micro_batch_tokens=1), refs)["loss"] == 0.0, "nothing to train"
        return seen


def test_every_stage_takes_the_step_of_plain_adamw_and_a_rehearsal_changes_nothing(base: Path, cluster: None) -> None:
    actor: Any = ray.remote(num_cpus=0.5, runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}})(Stages)
    ranks = [actor.remote(number) for number in range(2)]
    address = ray.get(ranks[0].address.remote(), timeout=120)
    plan, refs = make_plan("sft", advantage=1.0), put_groups()
    start = {name: p.detach() for name, p in named_weights(load_policy(base)).items()}
    for stage, offload in ((0, "none"), (1, "none"), (2, "none"), (2, "optimizer"), (3, "none"), (3, "all")):
        config = settings(base, stage)
        config.learner.offload, config.learner.reference = offload, "host" if offload == "all" else "device"
        config.agent.max_total_tokens, config.model.max_pixels, config.model.thumbnail_max_pixels = 300, 784 * 16, 784
        expected, _ = torch_only(base, config, 1)
        found, _ = ray.get([rank.step.remote(config, str(base), address, plan, refs) for rank in ranks], timeout=120)
        assert_same(found[0], start)
        assert_same(found[1], start)
        assert_same(found[2], expected, STEP_TOLERANCE)
        assert max(float((found[2][name] - tensor).abs().mean()) for name, tensor in expected.items()) < MEAN_TOLERANCE
    for stage, offload in ((1, "none"), (2, "none"), (2, "optimizer"), (3, "none"), (3, "all")):
        config = settings(base, stage)  # but for ZeRO-1 gradients are summed in another dtype than they come in
        config.learner.offload, config.learner.dtype = offload, "bfloat16"
        config.agent.max_total_tokens, config.model.max_pixels, config.model.thumbnail_max_pixels = 300, 784 * 16, 784
        found, _ = ray.get([rank.step.remote(config, str(base), address, plan, refs) for rank in ranks], timeout=120)
        assert_same(found[1], found[0])
        moved = torch.cat([(found[2][name] - found[0][name]).flatten() for name in expected])
        wanted = torch.cat([(expected[name] - start[name]).flatten() for name in expected])
        assert torch.nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.8
    for rank in ranks:
        ray.kill(rank)
