"""A real runner with a real engine in a Ray actor: generation, weights, groups, death. One engine for all tests."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from safetensors.torch import load_file

from mmsr_ray.config import Config, load, to_dict
from mmsr_ray.learner.settings import LoRAConfig
from mmsr_ray.rollout.activity import Reading, State
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.rollout.update import UpdateMode
from mmsr_ray.tools.tape import TapeMiss
from mmsr_ray.types import Generation, Group, GroupSummary, Outcome, Sample, Sampling, SealedTokens, Ticket, ToolFailure
from mmsr_ray.weights import shared
from mmsr_ray.weights.adapters import Adapter
from mmsr_ray.weights.collective import Group as Collective
from mmsr_ray.weights.collective import Invitation, Meeting, open_store
from mmsr_ray.weights.publisher import buckets
from mmsr_ray.weights.store import UnknownVersion, publish, pull, start_store, store_name
from tests.rollout import scripted
from tests.rollout.scripted import GREEDY, ScriptedRunner, png

pytestmark = pytest.mark.heavy

WAIT = 200.0
LOGPROB_TOLERANCE = 5e-5  # natural log, float32 on both sides; the difference is the order of summation


def told(sampled: Generation | SealedTokens) -> list[float]:
    """Log-probs, which must be there."""
    assert sampled.logprobs is not None
    return list(sampled.logprobs)


class Run:
    """A store, a runner and the means to publish changed weights."""

    def __init__(self, config: Config, model: Path) -> None:
        self.config = config
        self.weights = load_file(model / "model.safetensors")
        self.store: Any = start_store(store_name(config.run.name), config.run.namespace)
        self.version = -1
        rllib = AlgorithmConfig()
        rllib.settings = to_dict(config)  # type: ignore[attr-defined]
        self.runner = (
            ray.remote(ScriptedRunner).options(num_cpus=1, max_restarts=2, max_concurrency=100).remote(config=rllib, worker_index=1)
        )
        self._owned: list[list[ray.ObjectRef]] = []

    def publish(self, scale: float = 1.0) -> int:
        """The model folder's weights, scaled, as the next version."""
        return self.publish_tensors(_scaled(self.weights, scale))

    def publish_tensors(self, tensors: dict[str, torch.Tensor]) -> int:
        self.version += 1
        refs = [ray.put(bucket) for bucket in buckets(tensors.items(), None, 1 << 20)]
        self._owned = [*self._owned[-1:], refs]
        ray.get(self.store.publish.remote(self.version, refs), timeout=WAIT)
        return self.version

    def sync(self, scale: float = 1.0) -> dict[str, float]:
        return ray.get(self.runner.sync_weights.remote(self.publish(scale)), timeout=WAIT)

    def sync_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        ray.get(self.runner.sync_weights.remote(self.publish_tensors(tensors)), timeout=WAIT)

    def on_runner(self, function: Callable[..., Any], *args: Any) -> Any:
        return ray.get(self.runner.apply.remote(function, *args), timeout=WAIT)

    def on_restarted(self, function: Callable[..., Any]) -> Any:
        """On a runner that died; while Ray is restarting it, calls fail."""
        deadline = time.monotonic() + WAIT
        while True:
            try:
                return self.on_runner(function)
            except RayActorError:
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def stats(self) -> dict[str, float]:
        return ray.get(self.runner.stats.remote(), timeout=WAIT)

    def activity(self) -> Reading:
        return ray.get(self.runner.activity.remote(), timeout=WAIT)

    def greedy(self, text: str = "what is this?", *pictures: int) -> Generation:
        return self.on_runner(scripted.generate, text, pictures, GREEDY)


def _scaled(weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The language model's layers and its embedding, which is the head too, times `scale`."""
    return {name: t * scale if "layers" in name or "embed_tokens" in name else t for name, t in weights.items()}


def _adapters(weights: dict[str, torch.Tensor], kinds: tuple[str, ...], size: float) -> dict[str, Adapter]:
    """Random adapters on the language model's layers of these names."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, weight in weights.items():
        if name.endswith(tuple(f"{kind}.weight" for kind in kinds)) and "visual" not in name:
            a, b = torch.randn(4, weight.shape[1], generator=generator), torch.randn(weight.shape[0], 4, generator=generator)
            made[name.removesuffix(".weight")] = Adapter(a, size * b, 0.5)
    return made


def _named(adapters: dict[str, Adapter]) -> dict[str, torch.Tensor]:
    return {name: tensor for module, adapter in adapters.items() for name, tensor in adapter.named(module)}


def _merged(weights: dict[str, torch.Tensor], adapters: dict[str, Adapter]) -> dict[str, torch.Tensor]:
    own = {f"{module}.weight": adapter for module, adapter in adapters.items()}
    return {name: own[name].merged(weight) if name in own else weight for name, weight in weights.items()}


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    config = load(
        None,
        [
            f"model.path={scripted.as_on_the_hub(tiny_model, tmp_path_factory.mktemp('hub'))}",
            *("model.dtype=float32", "model.min_pixels=3136", "model.max_pixels=3136", "model.thumbnail_max_pixels=3136"),
            *("data.train=none", "data.test=none", "run.name=rollout-test", "run.namespace=rollout-test"),
            *("agent.prompts=brief", "agent.max_prompt_tokens=256", "agent.max_total_tokens=512", "agent.max_turn_tokens=16"),
            *("rollout.enforce_eager=true", "rollout.infra_retries=1"),
            *("learner.colocated=true", "learner.world_size=1"),  # changes nothing until the engine is asked to leave its device
        ],
    )
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, namespace="rollout-test", logging_level=logging.ERROR)
    try:
        started = Run(config, tiny_model)
        started.publish()
        ray.get(started.runner.ping.remote(), timeout=WAIT)
        yield started
        ray.get(started.runner.stop.remote(), timeout=30)
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample("u1", "what is this?", png(3), ("a thing",))


# ---------------------------------------------------------------------------------------------------- weights


def test_the_newest_version_is_pulled_before_the_first_prompt(run: Run) -> None:
    assert ray.get(run.runner.version.remote(), timeout=WAIT) == 0
    assert set(run.greedy("what is this?", 1).versions) == {0}


def test_an_update_changes_outputs_and_the_old_weights_restore_them_bit_for_bit(run: Run) -> None:
    before = run.greedy("what is this?", 1, 2)
    run.sync(1.3)
    changed = run.greedy("what is this?", 1, 2)
    run.sync()
    restored = run.greedy("what is this?", 1, 2)
    assert changed.logprobs != before.logprobs
    assert (restored.token_ids, restored.logprobs) == (before.token_ids, before.logprobs)
    assert set(restored.versions) == {run.version}


@pytest.mark.parametrize("kinds", [("q_proj", "down_proj"), LoRAConfig().targets])
def test_adapters_make_the_weights_that_they_make_merged(run: Run, kinds: list[str]) -> None:
    """q_proj alone is the hard case: the engine has one layer for q, k and v, which it can only reload whole."""
    before = run.greedy("what is this?", 1, 2)
    adapters = _adapters(run.weights, tuple(kinds), 0.05)
    named = _named(adapters)
    run.sync_tensors(named)
    sent_alone = run.greedy("what is this?", 1, 2)
    run.sync_tensors(_merged(run.weights, adapters))
    sent_merged = run.greedy("what is this?", 1, 2)
    run.sync_tensors(_named({module: adapter._replace(scale=0.0) for module, adapter in adapters.items()}))
    untrained = run.greedy("what is this?", 1, 2)
    assert sent_alone.token_ids == sent_merged.token_ids
    np.testing.assert_allclose(told(sent_alone), told(sent_merged), atol=1e-6)
    assert np.abs(np.array(told(sent_alone)) - told(before)).max() > 1e-3
    assert (untrained.token_ids, untrained.logprobs) == (before.token_ids, before.logprobs)
    assert sum(t.nbytes for t in named.values()) < sum(t.nbytes for t in run.weights.values()) / 4


def test_no_cache_survives_an_update(run: Run) -> None:
    """A prompt that the engine has in its prefix, picture and encoder caches gives what it gives without them."""
    run.sync(1.5)
    unseen = run.greedy("a prompt that no cache has seen under these weights " * 3, 7)
    run.sync()
    run.greedy("a prompt that no cache has seen under these weights " * 3, 7)
    run.sync(1.5)
    again = run.greedy("a prompt that no cache has seen under these weights " * 3, 7)
    cached = run.greedy("a prompt that no cache has seen under these weights " * 3, 7)
    run.sync()
    assert (again.token_ids, again.logprobs) == (unseen.token_ids, unseen.logprobs)
    assert cached.token_ids == again.token_ids
    np.testing.assert_allclose(told(cached), told(again), atol=1e-5)


def test_a_request_in_flight_goes_on_under_the_new_weights(run: Run) -> None:
    calls = [run.runner.apply.remote(scripted.generate, "go on", (i,), Sampling(max_tokens=400)) for i in range(16)]
    time.sleep(0.2)
    run.sync(1.1)
    generations: list[Generation] = ray.get(calls, timeout=WAIT)
    run.sync()
    old, new = run.version - 2, run.version - 1
    assert any(set(g.versions) == {old, new} for g in generations)  # an untrained policy may end a turn at once
    for g in generations:
        assert g.versions == sorted(g.versions) and set(g.versions) <= {old, new}
        assert len(g.versions) == len(g.token_ids) == len(told(g))


def test_a_request_whose_picture_the_prefix_cache_covers_goes_on_too(run: Run) -> None:
    """Its picture is encoded anew under the new weights, although the cache had it when the request came."""
    text = "go on and on " * 12
    run.greedy(text, 1)  # from here on it is in the cache
    calls = [run.runner.apply.remote(scripted.generate, text, (1,), Sampling(max_tokens=400)) for _ in range(16)]
    _until(lambda: run.on_runner(scripted.unfinished) > 0)
    run.sync(1.1)
    generations: list[Generation] = ray.get(calls, timeout=WAIT)
    run.sync()
    assert any(len(set(g.versions)) == 2 for g in generations)


def test_an_engine_that_left_its_device_comes_back_with_the_weights_asked_for(run: Run) -> None:
    before = run.greedy("what is this?", 1)
    frozen = run.runner.apply.remote(scripted.generate, "go on", (2,), Sampling(temperature=2.0, max_tokens=400))
    ray.get([run.runner.leave_device.remote() for _ in range(2)], timeout=WAIT)  # the second time it has left
    waiting = run.runner.apply.remote(scripted.generate, "what is this?", (1,), GREEDY)
    assert ray.wait([waiting], timeout=1.0)[0] == []
    ray.get(run.runner.sync_weights.remote(run.version), timeout=WAIT)  # the version it had: it does not hold it any more
    after, kept = ray.get([waiting, frozen], timeout=WAIT)
    assert (after.token_ids, after.logprobs) == (before.token_ids, before.logprobs)
    assert len(kept.token_ids) == len(told(kept)) > 0
    ray.get(run.runner.leave_device.remote(), timeout=WAIT)
    run.sync(1.2)
    assert set(run.greedy("what is this?", 1).versions) == {run.version}
    run.sync()


def test_a_version_is_loaded_while_it_is_published_and_one_given_up_is_told(run: Run) -> None:
    before = run.greedy("what is this?", 1)
    made = [ray.put(bucket) for bucket in buckets(run.weights.items(), torch.float32, 1 << 20)]
    assert len(made) > 1
    calls: list[ray.ObjectRef] = []

    def slowly() -> Iterator[ray.ObjectRef]:
        calls.append(run.runner.sync_weights.remote(run.version + 1))
        yield made[0]
        assert ray.wait(calls, timeout=0.5)[0] == []
        yield from made[1:]

    publish(run.store, run.version + 1, slowly(), WAIT)
    run.version += 1
    run._owned = [*run._owned[-1:], made]
    ray.get(calls, timeout=WAIT)
    after = run.greedy("what is this?", 1)
    assert (after.token_ids, after.logprobs, set(after.versions)) == (before.token_ids, before.logprobs, {run.version})

    def breaks() -> Iterator[ray.ObjectRef]:
        yield made[0]
        raise ZeroDivisionError

    bucket = run.store.bucket.remote(run.version, 0, WAIT)
    with pytest.raises(ZeroDivisionError):
        publish(run.store, run.version + 1, breaks(), WAIT)
    assert ray.get(bucket, timeout=WAIT)
    with pytest.raises(UnknownVersion):
        list(pull(run.store, run.version + 1, WAIT))
    assert ray.get(run.store.latest.remote(), timeout=WAIT) == run.version


@pytest.mark.parametrize("half_way", [False, True])
def test_a_version_that_the_learner_sends_and_one_that_breaks_off_are_both_whole(run: Run, half_way: bool) -> None:
    run.sync(1.1)
    other = run.greedy("what is this?", 1)
    run.sync()
    before = run.greedy("what is this?", 1)
    run.publish(1.1)  # what is sent is in the store as well
    host = ray.util.get_node_ip_address()
    store = open_store(host, WAIT)
    meeting = Meeting(f"{half_way}", host, store.port, 2, WAIT)
    call = run.runner.sync_weights.remote(run.version, Invitation(meeting, 1, "first"))
    group = Collective(meeting, 0, torch.device("cpu"), host=host, store=store)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for number, named in enumerate(_scaled(run.weights, 1.1).items()):
            if half_way and number == len(run.weights) // 2:
                raise ZeroDivisionError
            yield named

    if half_way:
        with pytest.raises(ZeroDivisionError):
            group.send("first", tensors(), None)
    else:
        group.send("first", tensors(), None)
    ray.get(call, timeout=WAIT)
    after = run.greedy("what is this?", 1)
    assert (after.token_ids, after.logprobs) == (other.token_ids, other.logprobs) != (before.token_ids, before.logprobs)
    group.close()
    run.sync()  # by the store again


def test_an_engine_that_left_loads_the_learners_own_memory(run: Run) -> None:
    before = run.greedy("what is this?", 1)
    ray.get(run.runner.leave_device.remote(), timeout=WAIT)
    weights = {name: weight.clone() for name, weight in _scaled(run.weights, 1.1).items()}
    version = run.version + 1
    ray.get(run.runner.load_weights.remote(version, shared.offer(weights.items())), timeout=WAIT)
    for weight in weights.values():
        weight.zero_()  # the learner's next step
    ray.get(run.runner.sync_weights.remote(version), timeout=WAIT)  # which is in no store
    after = run.greedy("what is this?", 1)
    assert set(after.versions) == {version}
    assert after.logprobs != before.logprobs
    run.version = version
    run.sync(1.1)
    again = run.greedy("what is this?", 1)
    assert (again.token_ids, again.logprobs) == (after.token_ids, after.logprobs)
    run.sync()


def test_turns_finish_first_where_the_update_waits_for_them(run: Run) -> None:
    run.on_runner(scripted.set_update, UpdateMode.WAIT)
    try:
        before = run.activity()
        calls = [run.runner.apply.remote(scripted.generate, "finish", (i,), Sampling(max_tokens=400)) for i in range(16)]
        _until(lambda: run.on_runner(scripted.unfinished) > 0)
        seconds = run.sync(1.1)
        spent = {state: value - before[state] for state, value in run.activity().items()}
        late = run.greedy()
        generations: list[Generation] = ray.get(calls, timeout=WAIT)
    finally:
        run.on_runner(scripted.set_update, UpdateMode.KEEP)
    run.sync()
    old, new = run.version - 2, run.version - 1
    assert {tuple(set(g.versions)) for g in generations} <= {(old,), (new,)}, "no turn is of two versions"
    assert (old,) in {tuple(set(g.versions)) for g in generations}
    assert set(late.versions) == {new}
    assert spent[State.SYNC] >= seconds["total"] - 0.01


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_updates_are_quick_and_leave_nothing_in_the_object_store(run: Run) -> None:
    run.sync()
    used = _objects_in_store()
    seconds = [run.sync()["total"] for _ in range(30)]
    assert _objects_in_store() <= used
    print(f"sync: median {1000 * statistics.median(seconds):.0f} ms, worst {1000 * max(seconds):.0f} ms")
    assert min(seconds) < 0.15  # the rest is whoever else uses the machine


def _objects_in_store() -> int:
    """Objects in shared memory, after references had a moment to settle."""
    from ray._private.internal_api import memory_summary

    time.sleep(1.0)
    (line,) = [
        line
        for line in memory_summary(ray.get_runtime_context().gcs_address, stats_only=True).splitlines()
        if "Plasma memory usage" in line
    ]
    return int(line.split(",")[1].split()[0])


# ---------------------------------------------------------------------------------------------------- generation


def test_greedy_is_greedy_and_pictures_matter(run: Run) -> None:
    first, second, other = run.greedy("what is this?", 1), run.greedy("what is this?", 1), run.greedy("what is this?", 2)
    assert first.token_ids == second.token_ids
    np.testing.assert_allclose(told(first), told(second), atol=1e-5)  # the second time from the caches
    assert first.logprobs != other.logprobs


def test_who_learns_nothing_asks_for_no_log_probs(run: Run) -> None:
    without = run.on_runner(scripted.generate, "what is this?", (1,), replace(GREEDY, logprobs=False))
    assert without.logprobs is None
    assert without.token_ids == run.greedy("what is this?", 1).token_ids


def test_vision_tokens_are_never_sampled_and_turns_end_with_the_end_token(run: Run) -> None:
    codec = load_codec(run.config)
    hot = Sampling(temperature=2.0, max_tokens=200)  # an untrained policy: all but uniform over some 900 tokens
    calls = [run.runner.apply.remote(scripted.generate, "anything", (i,), hot) for i in range(32)]
    generations: list[Generation] = ray.get(calls, timeout=WAIT)
    sampled = [token for g in generations for token in g.token_ids]
    assert not set(sampled) & set(codec.banned_ids)
    assert len(set(sampled)) > 500
    for g in generations:
        assert g.stopped == (g.token_ids[-1] == codec.end_id)
        assert codec.end_id not in g.token_ids[:-1]
        assert g.stopped or len(g.token_ids) == 200
    assert any(g.stopped for g in generations)


def test_a_cancelled_turn_leaves_the_engine(run: Run) -> None:
    assert run.on_runner(scripted.cancelled, 5) == 0
    assert run.greedy().token_ids


@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (0.7, 1.0), (1.0, 1.2)])
def test_logprobs_agree_with_transformers(run: Run, tiny_model: Path, temperature: float, scale: float) -> None:
    """Also after an update: no part of the engine keeps old weights, the head that is tied to the embedding included."""
    run.sync(scale)
    sealed: SealedTokens = run.on_runner(scripted.three_turns, Sampling(temperature, 16))
    run.sync()
    assert len(sealed.pictures) == 4
    expected = _transformers_logprobs(sealed, tiny_model, load_codec(run.config), temperature, scale)
    difference = np.abs(expected - told(sealed))[sealed.loss_mask]
    print(f"vLLM against transformers: at most {difference.max():.1e}, mean {difference.mean():.1e}")
    assert difference.max() < LOGPROB_TOLERANCE


def _transformers_logprobs(sealed: SealedTokens, model: Path, codec: Any, temperature: float, scale: float) -> np.ndarray:
    """Log-prob of every token given those before it, vision tokens excluded; float32 [L]."""
    import io

    from PIL import Image
    from transformers import AutoImageProcessor, Qwen2_5_VLForConditionalGeneration

    hf = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    hf.load_state_dict(_scaled(hf.state_dict(), scale))
    images = [Image.open(io.BytesIO(picture.data)) for picture in sealed.pictures]
    pixels = AutoImageProcessor.from_pretrained(model)(images=images, return_tensors="pt", do_resize=False)
    assert pixels["image_grid_thw"].tolist() == sealed.grids.tolist()
    ids = torch.from_numpy(sealed.ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = hf(input_ids=ids, **pixels, mm_token_type_ids=(ids == codec.image_pad_id).int()).logits[0].float()
    logits[:, list(codec.banned_ids)] = -torch.inf
    scored = (logits / temperature).log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return np.concatenate([[0.0], scored.numpy()]).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- groups


def _group(run: Run, sample: Sample, n: int = 4) -> tuple[GroupSummary, Group]:
    ticket = Ticket(sample.uid, 2, 0, [ray.put(sample)])
    refs = run.runner.sample_group.options(num_returns=2).remote(ticket, n, 1)
    return tuple(ray.get(refs, timeout=WAIT))  # type: ignore[return-value]


def test_a_group_is_scored_sealed_and_summarised(run: Run, sample: Sample) -> None:
    summary, group = _group(run, sample)
    assert (group.uid, group.epoch, group.sample) == ("u1", 2, sample)
    assert [t.index for t in group.trajectories] == [s.index for s in summary.trajectories] == [0, 1, 2, 3]
    assert len({tuple(t.tokens.ids) for t in group.trajectories}) > 1
    for trajectory, told in zip(group.trajectories, summary.trajectories, strict=True):
        assert trajectory.reward is not None
        assert told.reward == trajectory.reward.total
        assert told.sampled_tokens == trajectory.tokens.loss_mask.sum() > 0
        assert told.version_min == told.version_max == run.version
        assert told.generate_seconds > 0
    assert "dropped" not in summary.metrics
    assert run.activity()[State.GENERATE] > 0


def test_rollouts_follow_from_what_they_are_whatever_runs_beside_them(run: Run, sample: Sample) -> None:
    """Also with more tokens waiting than vLLM's own step would take: a seed and a split prompt are the end of its CPU engine."""

    def play(uids: list[str], n: int = 4) -> dict[str, list[tuple[Any, ...]]]:
        tickets = [Ticket(uid, 1, 0, [ray.put(replace(sample, uid=uid, question=f"what is {uid}? " * 12))]) for uid in uids]
        refs = [run.runner.sample_group.options(num_returns=2).remote(ticket, n, 1)[1] for ticket in tickets]
        groups: list[Group] = ray.get(refs, timeout=WAIT)
        return {g.uid: [(t.index, t.tokens.ids.tolist(), told(t.tokens)) for t in g.trajectories] for g in groups}

    alone = play(["u3"])
    crowd = play([f"u{i}" for i in range(48)])
    assert crowd["u3"] == alone["u3"]
    assert play(["u3"], n=2)["u3"] == alone["u3"][:2]
    assert len({tuple(ids) for _, ids, _ in alone["u3"]}) == 4


def test_a_replay_that_misses_is_no_lost_rollout(run: Run, sample: Sample) -> None:
    run.on_runner(scripted.tools_fail, ToolFailure.TAPE_MISS)
    try:
        with pytest.raises(TapeMiss, match="scripted tape_miss"):
            ray.get(run.runner.evaluate_sample.options(num_returns=2).remote(sample, "rag"), timeout=WAIT)
    finally:
        run.on_runner(scripted.tools_fail, None)


def test_infrastructure_errors_are_retried_then_dropped(run: Run, sample: Sample) -> None:
    before = run.stats()
    run.on_runner(scripted.fail_generations, 2)
    summary, _ = _group(run, sample)
    assert len(summary.trajectories) == 4
    run.on_runner(scripted.fail_generations, -1)
    summary, group = _group(run, sample)
    run.on_runner(scripted.fail_generations, 0)
    assert (summary.trajectories, group.trajectories) == ((), ())
    assert summary.metrics["dropped"] == 1.0
    after = run.stats()
    assert after["infra_retries"] - before.get("infra_retries", 0) == 2 + 4
    assert after["infra_errors"] - before.get("infra_errors", 0) == 4


@pytest.mark.parametrize("workflow", ["on_demand", "direct", "rag"])
def test_evaluation_is_greedy(run: Run, sample: Sample, workflow: str) -> None:
    calls = [run.runner.evaluate_sample.options(num_returns=2).remote(sample, workflow) for _ in range(2)]
    (told, first), (_, second) = [ray.get(refs, timeout=WAIT) for refs in calls]
    assert first.outcome is not Outcome.INFRA_ERROR
    assert first.workflow == workflow
    assert first.tokens.ids.tolist() == second.tokens.ids.tolist()
    assert told.uid == "u1"
    assert first.reward is not None


def test_a_picture_that_cannot_be_read_drops_the_group_and_nothing_else(run: Run) -> None:
    summary, _ = _group(run, Sample("bad", "what is this?", b"no picture", ("x",)))
    assert summary.trajectories == ()
    assert run.greedy("still there", 1).token_ids


# ---------------------------------------------------------------------------------------------------- death


def test_a_dead_engine_restarts_the_runner_with_the_newest_weights(run: Run, sample: Sample) -> None:
    """Here adapters, so that they are also what a fresh engine is sent first."""
    run.sync()
    adapters = _named(_adapters(run.weights, ("o_proj", "up_proj"), 0.05))
    run.sync_tensors(adapters)
    before = run.greedy("what is this?", 1)
    ray.get(run.store.let_engines_in.remote(False), timeout=WAIT)  # a learner has the device, and so it stays for a while
    pids = run.on_runner(scripted.kill_engine)
    doomed = run.runner.sample_group.options(num_returns=2).remote(Ticket("u1", 0, 0, [sample]), 2, 1)
    with pytest.raises(RayActorError):  # callers see a dead actor, not bad data
        ray.get(doomed, timeout=30)
    latest = run.publish_tensors(adapters)  # published while the runner is down
    assert run.on_restarted(scripted.waits_for_its_turn)
    ray.get(run.store.let_engines_in.remote(True), timeout=WAIT)
    assert ray.get(run.runner.ping.remote(), timeout=WAIT) == "pong"
    assert ray.get(run.runner.version.remote(), timeout=WAIT) == latest
    assert run.greedy("what is this?", 1).logprobs == before.logprobs
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert not alive
