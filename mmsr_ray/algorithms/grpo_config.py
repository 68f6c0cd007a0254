"""The RLlib side of the settings: what `Algorithm`, Tune and the rollout actors read.

Invariant: `settings` is the whole typed Config as plain containers; everything else here is derived from it once, in
`from_config`, and nothing reads the environment.
"""

from __future__ import annotations

from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from mmsr_ray.config import Config, to_dict
from mmsr_ray.nodes import resources
from mmsr_ray.rollout.env_runner import SearchEnvRunner

RUNNER_RESTARTS = 1000  # over a run; a runner that cannot start is caught by rollout.start_seconds long before


class GRPOConfig(AlgorithmConfig):
    """AlgorithmConfig of `GRPO`. Built with `GRPOConfig.from_config(config)`."""

    def __init__(self, algo_class: type | None = None) -> None:
        from mmsr_ray.algorithms.grpo import GRPO  # the two classes name each other

        super().__init__(algo_class=algo_class or GRPO)
        # Own settings must exist from here on: Tune carries the config through to_dict and update_from_dict.
        self.settings: dict[str, Any] = {}
        self.runtime: dict[str, Any] = {}  # names of a run's actors, set for its runners
        self.env_runners(env_runner_cls=SearchEnvRunner, create_local_env_runner=False, validate_env_runners_after_construction=False)
        self._dont_auto_sync_env_runner_states = True  # there are no connectors to merge
        self.fault_tolerance(
            restart_failed_env_runners=True, max_num_env_runner_restarts=RUNNER_RESTARTS, delay_between_env_runner_restarts_s=0.0
        )

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The RLlib config of a run: resources and seed from `config`, which travels along whole."""
        made = cls()
        made.settings = to_dict(config)
        made.env_runners(
            num_env_runners=config.rollout.num_runners,
            num_cpus_per_env_runner=config.rollout.cpus_per_runner,  # type: ignore[arg-type]  # fractions are fine
            num_gpus_per_env_runner=config.rollout.gpus_per_runner,
            custom_resources_per_env_runner=resources(config.rollout.node),
        )
        made.learners(
            num_learners=config.learner.world_size,
            num_cpus_per_learner=config.learner.cpus_per_rank,
            num_gpus_per_learner=config.learner.gpus_per_rank,
        )
        made.resources(num_cpus_for_main_process=config.grpo.driver_cpus)  # type: ignore[arg-type]
        made.debugging(seed=config.run.seed)
        return made

    def get_multi_rl_module_spec(self, **kwargs: Any) -> Any:
        raise NotImplementedError("the policy is a transformers model in DeepSpeed ranks, not an RLModule")
