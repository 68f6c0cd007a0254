"""GRPO as an RLlib Algorithm: rollouts by SearchEnvRunners, updates by DeepSpeed ranks, weights through the object store.

Invariants
- This process holds references and summaries only; tokens and pictures go from runners to learner ranks directly.
- A step trains `groups_per_step` groups, none sampled by weights older than `staleness` versions.
- A runner, tool actor, data feeder or weight store that dies is replaced while training goes on.
- One Algorithm writes to the run folder: one that was cut off and replaced finds that out before it writes (ownership).
- The weight version only grows. After a learner failure everything goes back to the last checkpoint together (learner,
  data cursor, step), under a new version, so each prompt is trained once in the history that counts.

RLlib's own setup (module specs, connectors, LearnerGroup) is replaced; its step(), callbacks, metrics, fault tolerance,
Checkpointable and Tune are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_METRICS_LOGGER
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils import force_list
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME, TIMERS
from ray.tune import PlacementGroupFactory

from mmsr_ray.algorithms import checkpoints, nonfinite, parts
from mmsr_ray.algorithms.advantages import group_advantages
from mmsr_ray.algorithms.during import DuringTraining
from mmsr_ray.algorithms.exported import Exported
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.keeping import Keeper
from mmsr_ray.algorithms.ledger import Entry, Ledger
from mmsr_ray.algorithms.liveness import Watch
from mmsr_ray.algorithms.ownership import Ownership
from mmsr_ray.algorithms.record import MetricsFile, response_record, rollout_record, staleness_of
from mmsr_ray.algorithms.sampling import Sampler
from mmsr_ray.algorithms.spending import Spending
from mmsr_ray.algorithms.timing import StepClock
from mmsr_ray.algorithms.turns import turns
from mmsr_ray.config import from_dict, to_dict
from mmsr_ray.evaluation.rows import measure_rows
from mmsr_ray.learner.durable import NotWritten
from mmsr_ray.learner.group import LearnerError
from mmsr_ray.learner.objective import longest_answer, resolve
from mmsr_ray.learner.plan import Item
from mmsr_ray.learner.schedule import learning_rate
from mmsr_ray.tools.errors import BudgetSpent
from mmsr_ray.types import GroupSummary

logger = logging.getLogger(__name__)

PUMP_SECONDS = 0.02  # how often the driver looks at the learner while rollouts go on: so late it notices that it is done


class GRPO(Algorithm):
    """One training iteration is one training step: a rollout batch and its optimiser steps."""

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        return GRPOConfig()

    @classmethod
    def default_resource_request(cls, config: AlgorithmConfig | dict[str, Any]) -> PlacementGroupFactory:
        settings = config.settings if isinstance(config, GRPOConfig) else config["settings"]
        return parts.bundles(from_dict(settings))

    # ------------------------------------------------------------------------------------------------ setup

    def setup(self, config: AlgorithmConfig) -> None:
        """Start every part, freeze the KL reference, publish the first weights. Does not call RLlib's setup."""
        self._blank_rllib_fields()
        assert isinstance(self.config, GRPOConfig)
        self.c = from_dict(self.config.settings)
        self.objective = resolve(self.c.grpo.loss, longest_answer(self.c.agent))
        logger.info("objective: %s", self.objective)
        self.folder = Path(self.c.run.dir, self.c.run.name).absolute()
        self.metrics_file = MetricsFile(self.folder / "metrics.jsonl")
        self.owner = Ownership(self.folder)
        self.owner.take()
        self.finished_steps = 0
        self.version = 0
        self._failed_in_a_row = 0
        self._stopped = ""  # why, once losses that are not finite have ended the run
        self._seconds_per_step: list[float] = []
        self.keeper = Keeper(self.folder / "trajectories")
        self.spending = Spending(self.c, self.folder)
        self.parts = parts.start(self.c, self.config, logdir=self.logdir, trial=self.trial_id)
        self.env_runner_group = self.parts.runners
        self.turns = turns(self.c, self.parts)
        self.during = DuringTraining(self.c, self.folder, self._export)
        self.ledger = Ledger(self.c.grpo.groups_per_step, self.c.grpo.staleness, self.c.grpo.loss_limit, self.c.grpo.steps)
        self.sampler = Sampler(self.c, self.parts.runners, self.parts.feed, self.ledger, self._tend)
        self._watch = Watch()
        self._last_state = self._small_state(learner=None)
        self._publish()
        self.exported = Exported(self.c)
        self._set_up_metrics()
        make_callback(
            "on_algorithm_init",
            self.callbacks,
            list(force_list(self.config.callbacks_on_algorithm_init)),
            kwargs={"algorithm": self, "metrics_logger": self.metrics},
        )

    def _blank_rllib_fields(self) -> None:
        """What Algorithm's other methods expect its own setup to have set."""
        assert self.config is not None
        absent = ("env_to_module_connector", "module_to_env_connector", "spaces", "offline_data", "evaluation_dataset")
        absent += ("_aggregator_actor_manager", "eval_env_runner_group", "offline_eval_runner_group", "learner_group")
        vars(self).update(dict.fromkeys(absent), evaluation_config=self.config, reward_estimators={})
        self.callbacks = [make() for make in force_list(self.config.callbacks_class)]

    # ------------------------------------------------------------------------------------------------ one step

    def training_step(self) -> None:
        """Collect, learn, publish, log. Raises when a part is dead beyond repair or a deadline passes."""
        if self._stopped:
            raise nonfinite.NonFiniteError(self._stopped)
        try:
            self._train_once()
        except BudgetSpent as spent:
            self._stop_for_money(spent)

    def _train_once(self) -> None:
        """Raises BudgetSpent where the tools' money does not pay for it; then nothing is trained."""
        if self.finished_steps >= self.c.grpo.steps:  # resumed after the money ended in the last evaluation
            self._log_progress(out_of_money=False)
            self._finish_if_last()
            return
        if self.finished_steps == 0 and self.c.evaluation.before_training:
            self._measure("before RL")
        self.spending.before_step()
        clock = StepClock(self.parts.runners.activity, self.parts.runners.lasting())
        deadline = time.monotonic() + self.c.grpo.step_seconds
        self.sampler.reset_step()
        try:
            self.turns.to_engines(self.version)
            with self.metrics.log_time((TIMERS, "rollout")):
                batch = self.sampler.collect(deadline)
        except LearnerError as error:
            self._rewind(error)
            self._train_once()
            return
        clock.collected()
        self.owner.check()  # one that was cut off learns it here, before it asks anything of others
        groups = [entry.result.summary for entry in batch]
        stale = staleness_of(groups, self.version, self.c.grpo.staleness)
        try:
            self.turns.to_learner()
            with self.metrics.log_time((TIMERS, "learn")):
                learned = self._learn(batch, groups)
            clock.learned()
            with self.metrics.log_time((TIMERS, "sync")):
                self.version += 1
                self._publish()
            clock.synced()
        except (LearnerError, RayError) as error:
            self._rewind(error)
            self._train_once()
            return
        self.ledger.trained(batch)
        self.finished_steps += 1
        self._failed_in_a_row = 0
        self._stopped = nonfinite.verdict(learned, self.finished_steps, [entry.result.group for entry in batch], self.folder)
        self._log(batch, groups, learned, clock, stale)
        if self._stopped:
            logger.critical("training stops: %s", self._stopped)
            return
        self._finish_if_last()

    def _learn(self, batch: Sequence[Entry], groups: Sequence[GroupSummary]) -> dict[str, float]:
        """One update of the learner; with staleness the runners are kept busy meanwhile."""
        rate = learning_rate(
            self.finished_steps,
            base=self.c.grpo.lr,
            schedule=self.c.grpo.lr_schedule,
            steps=self.c.grpo.steps,
            warmup_steps=self.c.grpo.lr_warmup_steps,
            decay_ratio=self.c.grpo.lr_decay_ratio,
            decay_at=self.c.grpo.lr_decay_at,
        )
        plan = self.parts.learners.plan(self._items(groups), minibatches=self.c.grpo.minibatches, loss="grpo", lr=rate)
        references = [entry.result.group for entry in batch]
        if self.c.grpo.staleness == 0:
            return {"lr": rate, **self.parts.learners.update(plan, references)}
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner") as pool:
            update = pool.submit(self.parts.learners.update, plan, references)
            while not update.done():
                self.sampler.pump(timeout=PUMP_SECONDS)
            return {"lr": rate, **update.result()}

    def _items(self, groups: Sequence[GroupSummary]) -> list[Item]:
        items = []
        for number, group in enumerate(groups):
            rewards = [t.reward for t in group.trajectories]
            advantages = group_advantages(rewards, baseline=self.objective.baseline, normalise=self.objective.normalise)
            for index, (row, advantage) in enumerate(zip(group.trajectories, advantages, strict=True)):
                items.append(Item(number, index, float(advantage), row.length, row.sampled_tokens, row.pictures, row.patches))
        return items

    # ------------------------------------------------------------------------------------------------ weights and health

    def _publish(self) -> None:
        """Publish the learner's weights as `self.version` and bring every healthy runner to it."""
        self.turns.publish(self.version)

    def _tend(self) -> None:
        """While groups are waited for, so the learner idles: a store that died is filled anew, a rank that died is known at once. Raises LearnerError."""
        ranks = {f"learner rank {number}": rank for number, rank in enumerate(self.parts.learners.ranks)}
        self.exported.now(self.ledger.stages(), len(self.parts.runners.healthy()))
        lost = self._watch.lost({"the weight store": self.parts.store, **ranks})
        if dead := [name for name in lost if name in ranks]:
            raise LearnerError(f"{' and '.join(dead)} died")
        if lost:
            self._publish()

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """RLlib's hook before each step; between hooks the sampler does the same."""
        try:
            return self.parts.runners.revive()
        except LearnerError as error:  # it was to publish for one that starts over
            self._rewind(error)
            return []

    def _rewind(self, error: Exception) -> None:
        """The learner failed: restart it whole and take everything back to the last checkpoint. Raises on the second failure in a row."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row > 1:
            raise error
        logger.error("the learner failed at step %d (%s): back to step %d", self.finished_steps + 1, error, self._last_state["step"])
        self.turns.for_new_learner()
        parts.restart_learners(self.c, self.parts.learners)
        self._take_state(self._load(self._last_state))

    # ------------------------------------------------------------------------------------------------ logging

    def _log(self, batch: Sequence[Entry], groups: Sequence[GroupSummary], learned: dict[str, float], clock: StepClock, stale: int) -> None:
        seconds, overlap = clock.record()
        record = {"step": self.finished_steps, "version": self.version}
        record |= rollout_record(groups, search_limit=self.c.agent.search_limit) | learned
        record |= self.turns.record() | self.ledger.reset_counts() | self.spending.after_step(self.finished_steps)
        record |= {
            "staleness_max": stale,
            "infra_errors": self.sampler.infra_errors,
            "runners": len(self.parts.runners.healthy()),
            "tokens_per_second": record["sampled_tokens"] / seconds["total"],
            "seconds": seconds,
            "response_seconds": response_record(groups),
            "seconds_left": self._seconds_left(seconds["total"]),
        }
        if self.c.grpo.staleness > 0:
            record["overlap"] = overlap
        if self.during.due(self.finished_steps):
            with self.exported.evaluating():
                record["evaluation"] = self.during.record(self.finished_steps, self.version, self._actors)
            record["seconds"]["evaluation"] = record["evaluation"].pop("seconds")
            self.spending.look()  # what an evaluation asks for is no step's
        self.owner.check()
        self.metrics_file.append(record)
        self._log_to_rllib(record)
        self.exported.step(record)
        self.keeper.keep([entry.result.group for entry in batch[: self.c.grpo.groups_kept]], self.finished_steps)
        self._alarm(record)

    def _log_to_rllib(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, (int, float)):
                self.metrics.log_value((LEARNER_RESULTS, name), value, window=1)
        for name in ("reward", "accuracy", "search_ratio_responses"):
            self.metrics.log_value((ENV_RUNNER_RESULTS, name), record[name], window=1)
        self.metrics.log_value((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), record["trajectories"], reduce="lifetime_sum")
        self._log_progress(out_of_money=False)

    def _log_progress(self, *, out_of_money: bool) -> None:
        """What ends the trial (jobs.reinforce)."""
        self.metrics.log_value("finished_steps", self.finished_steps, window=1)
        self.metrics.log_value("budget_spent", float(out_of_money), window=1)
        self.metrics.log_value("stopped", 0.0, window=1)
        self.metrics.log_value("stopped", float(bool(self._stopped)), window=1)

    def _stop_for_money(self, spent: BudgetSpent) -> None:
        """End cleanly: every prompt that is not trained stays charged, so that the trial's last checkpoint hands it out again."""
        logger.error("training pauses after step %d: %s", self.finished_steps, spent)
        self.spending.stop(self.finished_steps)
        self._log_progress(out_of_money=True)

    def _seconds_left(self, last: float) -> float:
        self._seconds_per_step = [*self._seconds_per_step[-9:], last]
        return (self.c.grpo.steps - self.finished_steps) * sum(self._seconds_per_step) / len(self._seconds_per_step)

    def _alarm(self, record: dict[str, Any]) -> None:
        rate = record["infra_errors"] / max(record["infra_errors"] + record["trajectories"], 1)
        if rate > self.c.rollout.infra_alarm_rate:
            logger.error(
                "ALARM: %.0f%% of the rollouts of step %d were lost to tools or engine (rollout.infra_alarm_rate=%.0f%%)",
                100 * rate,
                record["step"],
                100 * self.c.rollout.infra_alarm_rate,
            )
        self.metrics.log_value("infra_error_rate", rate, window=1)

    def _finish_if_last(self) -> None:
        if self.finished_steps >= self.c.grpo.steps:
            self._export(self.folder / "model")
            self._measure("after RL")

    def _export(self, folder: Path, extra: dict[str, bytes] | None = None) -> None:
        self.owner.check()
        with self.turns.borrowed(self.version):
            self.parts.learners.export(folder, extra)

    def _measure(self, label: str) -> list[dict[str, Any]]:
        """Rows of the current weights over the test questions, on the runners that train: no engine is started for it."""
        with self.exported.evaluating():
            rows = measure_rows(self.c, self._actors(), label, self.folder)
        self.spending.look()  # what an evaluation asks for is no step's
        return rows

    def _actors(self) -> list[ActorHandle]:
        """For an evaluation, in which nobody looks after the runners: whoever starts over meanwhile does so by itself."""
        self.turns.fill_store()
        self.parts.runners.settle()
        return [self.parts.runners.actor(i) for i in self.parts.runners.lasting()]

    # ------------------------------------------------------------------------------------------------ checkpoint

    def _small_state(self, learner: str | None) -> dict[str, Any]:
        """Everything but the learner, which lies in its own folder `learner` (None: still the starting model)."""
        return {
            "step": self.finished_steps,
            "version": self.version,
            "learner": learner,
            "settings": to_dict(self.c),
            "feeder": self.parts.feed.state(self.ledger.charged_keys()),
            "spending": self.spending.recent,
            COMPONENT_METRICS_LOGGER: self.metrics.get_state(),
        }

    def _take_state(self, state: dict[str, Any]) -> None:
        """Go on from `state` under a version that no runner has seen yet. The learner must hold its weights already."""
        self.owner.check()
        checkpoints.give_up_unfinished(self.folder / "checkpoints")
        self.sampler.abandon()
        self.parts.feed.restore(state["feeder"], timeout=self.c.grpo.sync_seconds)
        self.finished_steps = self._iteration = state["step"]
        self.version = max(self.version + 1, state["version"])
        self.spending.recent = state.get("spending", [])  # checkpoints of before the tools had prices have none
        self.ledger.restart(self.version, self.c.grpo.steps - self.finished_steps)
        self.metrics_file.truncate(state["step"])
        self.during.went_back(state["step"])
        self._last_state = state
        self._publish()
        self.exported.at(self.finished_steps)

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        return []  # the ranks write their own folder; nothing of theirs passes through here

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Writes a checkpoint to the run folder and returns the state that points to it.

        Where the disk does not take it, the last state stays the newest, and training goes on. Raises NotWritten after the last step.
        """
        target = checkpoints.folder_of(self.folder / "checkpoints", self.finished_steps)
        state = self._small_state(str(target))
        self.owner.check()
        try:
            with self.turns.borrowed(self.version):
                checkpoints.save(self.parts.learners, target, state, keep=self.c.grpo.keep_checkpoints)
        except NotWritten as error:
            if self.finished_steps >= self.c.grpo.steps:
                raise
            logger.error("%s. Training goes on; the last checkpoint stays that of step %d", error, self._last_state["step"])
            return self._last_state
        self._last_state = state
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError for a checkpoint of another run, or when neither it nor one before it is whole."""
        checkpoints.same_run(state, to_dict(self.c))
        state = self._load(state)
        self.metrics.set_state(state[COMPONENT_METRICS_LOGGER])
        self._take_state(state)

    def _load(self, state: dict[str, Any]) -> dict[str, Any]:
        """Bring the learner to `state`, or to the whole one before it; returns that."""
        self.turns.to_learner()
        state = checkpoints.usable(state, self.parts.learners.check)
        if state["learner"] is not None:
            self.parts.learners.load(state["learner"])
        return state

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        Checkpointable.restore_from_path(self, path, *args, **kwargs)  # Algorithm's own would sync connectors

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """RLlib's hook, called every `evaluation_interval` iterations where that is set; evaluation.every_steps needs it not."""
        rows = self._measure(f"after step {self.finished_steps}")
        return {ENV_RUNNER_RESULTS: {row["name"]: row["accuracy"] for row in rows}}

    def cleanup(self) -> None:
        if "exported" in self.__dict__:
            self.exported.stop()
        if "parts" in self.__dict__:  # setup may have failed before
            self.keeper.finish()
            self.spending.look()
            self.parts.stop()
