"""The parts of a training run and how they start: weight store, data feeder, rollout runners, learner ranks.

Invariant: `start` either returns all of them running or stops what it started and raises. Ranks and runners are pinned to
bundles of the trial's placement group, so that neither can take the other's place; store and feeder sit on the node of the
Algorithm, so that no other node takes them along when it is lost. Elastic runners are asked for last, so that they never
take the room of what must be there.
"""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mmsr_ray.algorithms.feed import Feed
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.runners import RunnerGroup
from mmsr_ray.config import Config
from mmsr_ray.data.feeder import start_feeder
from mmsr_ray.learner.group import LearnerError, LearnerGroup
from mmsr_ray.learner.objective import longest_answer, resolve
from mmsr_ray.nodes import bundle_of
from mmsr_ray.weights.store import NO_VERSION, publish, start_store, store_name

logger = logging.getLogger(__name__)

NAME_SECONDS = 0.1  # between attempts to take a name that is being freed
EXTRA_CALLS = 16  # of a runner, beside its groups: pings, syncs, statistics


@dataclass(slots=True)
class Parts:
    """Everything that a training run talks to."""

    store: ActorHandle
    start_store: Callable[[], ActorHandle]  # a new one under the old name, where runners look for it
    feed: Feed
    runners: RunnerGroup
    learners: LearnerGroup

    def publish(self, version: int, opened: Callable[[], object], timeout: float) -> None:
        """Make the learner's weights current in the store; one that died is replaced. `opened` is called when readers may ask for them.

        Raises LearnerError, and RayError where the store does not answer.
        """
        buckets = self.learners.publish(version)
        taken: list[ObjectRef] = []

        def passed_on() -> Iterator[ObjectRef]:
            for bucket in buckets:
                taken.append(bucket)
                yield bucket

        try:
            publish(self.store, version, passed_on(), timeout, opened)
        except ActorDiedError:
            self._replace_store(timeout)
            publish(self.store, version, itertools.chain(taken, buckets), timeout)

    def newest_in_store(self, timeout: float) -> int:
        """The version that a runner would pull now. A store that died is replaced, and holds none (NO_VERSION)."""
        try:
            return int(ray.get(cast(Any, self.store).latest.remote(), timeout=timeout))
        except ActorDiedError:
            self._replace_store(timeout)
            return NO_VERSION

    def _replace_store(self, timeout: float) -> None:
        logger.error("the weight store died: a new one takes its place")
        ray.kill(self.store)  # one that was lost with its node keeps its name until then
        self.store = self._under_the_same_name(timeout)

    def let_engines_in(self, allowed: bool, timeout: float) -> None:
        """Whether engines may start. A store that is dead lets nobody in, nor does a new one, until it is told to."""
        try:
            ray.get(self.store.let_engines_in.remote(allowed), timeout=timeout)
        except ActorDiedError:
            if allowed:
                raise
            logger.exception("the weight store died: no engine starts until it is replaced")

    def _under_the_same_name(self, timeout: float) -> ActorHandle:
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self.start_store()
            except ValueError:  # Ray frees the name in its own time
                if time.monotonic() > deadline:
                    raise
                time.sleep(NAME_SECONDS)

    def stop(self) -> None:
        self.runners.stop()
        self.learners.shutdown()
        for actor in (self.feed.actor, self.store):
            ray.kill(actor)


def bundles(config: Config) -> PlacementGroupFactory:
    """One bundle for the Algorithm, one per runner, one per learner rank, packed as far as they fit.

    In colocated mode a runner and a rank have one bundle together, and so one card.
    """
    rollout, learner = config.rollout, config.learner
    runner = bundle_of(rollout.cpus_per_runner, rollout.gpus_per_runner, rollout.node)
    rank = bundle_of(learner.cpus_per_rank, learner.gpus_per_rank, learner.node)
    if learner.colocated:
        shared: dict[str, float] = dict(Counter(runner) + Counter(rank))
        others = [shared] * learner.world_size
    else:
        others = [*[runner] * rollout.num_runners, *[rank] * learner.world_size]
    return PlacementGroupFactory([bundle_of(config.grpo.driver_cpus, 0, config.grpo.node), *others], strategy="PACK")


def start(config: Config, rllib: GRPOConfig, *, logdir: str | None, trial: str | None) -> Parts:
    """Start all parts, engines and ranks at the same time; the learner's weights become the KL reference.

    In colocated mode engines start later, when it is first their turn (`turns.Colocated`).
    Raises RunnersLost, LearnerError or DataError when one does not come up within its deadline.
    """
    # The name is new each time: a trial that Tune restarts may find its predecessor's store still there.
    name = f"{store_name(config.run.name)}-{uuid.uuid4().hex[:8]}"
    new_store = partial(start_store, name, config.run.namespace, engines_let_in=not config.learner.colocated)
    feed = Feed(lambda state: start_feeder(config.data.train, config.data, seed=config.run.seed, state=state), config.run.seed)
    runners = start_runners(config, rllib, store=name, logdir=logdir, trial=trial)
    learners = LearnerGroup(config, config.model.path, rank_placement(config))
    parts = Parts(new_store(), new_store, feed, runners, learners)
    try:
        if config.learner.colocated:
            start_learners(config, learners)
            learners.find_micro_batch()  # the cards are the learner's alone until it leaves them
            return parts
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner-start") as pool:
            learning = pool.submit(start_learners, config, learners)
            runners.wait_until_up()
            learning.result()
        learners.find_micro_batch()  # now that the engines hold the memory that they will hold
        runners.grow(max(config.rollout.max_runners - config.rollout.num_runners, 0))
    except BaseException:
        parts.stop()
        raise
    return parts


def start_runners(
    config: Config, rllib: GRPOConfig, *, store: str | None, logdir: str | None = None, trial: str | None = None
) -> RunnerGroup:
    """Rollout runners that pull weights from the named store; None for the weights of the model folder. Does not wait."""
    own = rllib.copy(copy_frozen=False)
    own.runtime = {"store": store}
    return RunnerGroup(
        config=own,
        max_concurrency=config.rollout.max_inflight_groups + EXTRA_CALLS,
        start_seconds=config.rollout.start_seconds,
        logdir=logdir,
        tune_trial_id=trial,
    )


def start_learners(config: Config, learners: LearnerGroup) -> None:
    """Start the ranks on the starting model, which is the KL reference too until a checkpoint is loaded."""
    learners.restart()
    if resolve(config.grpo.loss, longest_answer(config.agent)).kl_coef > 0:
        learners.set_reference()


def restart_learners(config: Config, learners: LearnerGroup) -> None:
    """As `start_learners`, with a second attempt: a rank may be put on a node that is gone while Ray has yet to notice. Raises LearnerError."""
    try:
        start_learners(config, learners)
    except LearnerError:
        logger.exception("the learner did not start again: once more")
        start_learners(config, learners)


def rank_placement(config: Config) -> Callable[[int], dict[str, Any]] | None:
    """Rank r into bundle 1 + runners + r of the trial, or into runner r's, 1 + r, to share its card; anywhere outside a trial."""
    group = ray.util.get_current_placement_group()
    if group is None:
        return None
    first = 1 if config.learner.colocated else 1 + config.rollout.num_runners
    return lambda rank: {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=first + rank)}
