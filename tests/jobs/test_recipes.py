"""The recipes for GPUs: they are valid, they fit the cards they name by the planner's count, and they quote the planner."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsr_ray.config import load
from mmsr_ray.learner.memory import complaints, footprint_of, machine_of, summary
from mmsr_ray.learner.objective import longest_answer, resolve
from mmsr_ray.learner.phases import FULL, plan

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
RECIPES = [name + kind for name in ("one_gpu", "eight_gpu", "paper", "sketch_32b") for kind in ("", "_lora")]
DATA = ["data.train=none", "data.test=none"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_card_and_quotes_the_planner(name: str) -> None:
    file = CONFIGS / f"{name}.yaml"
    config = load(file, DATA)
    made = plan(config, footprint_of(config.model.path), machine_of(config))
    assert config.machine.card_gib > 0 and config.machine.host_gib > 0
    assert complaints(made) == []
    assert f"#   GiB: {summary(made)}\n" in file.read_text()
    assert "NEVER RUN" in file.read_text()
    assert (config.learner.lora.rank > 0) == name.endswith("_lora")


def test_an_evaluation_and_a_supervised_run_on_cards_have_the_time_and_the_limits_that_training_has() -> None:
    training = load(CONFIGS / "eight_gpu.yaml", DATA)
    evaluation, supervised = load(CONFIGS / "evaluate_hub.yaml"), load(CONFIGS / "sft_paper.yaml", ["sft.demonstrations=none"])
    assert evaluation.rollout.start_seconds == training.rollout.start_seconds
    assert supervised.learner.start_seconds == training.learner.start_seconds
    for service in ("image_search", "text_search", "reader", "summariser"):
        there, here = getattr(training.tools, service), getattr(evaluation.tools, service)
        assert (here.concurrency, here.timeout_seconds) == (there.concurrency, there.timeout_seconds), service
    assert (evaluation.tools.actors, evaluation.tools.deadline_seconds) == (training.tools.actors, training.tools.deadline_seconds)
    assert evaluation.agent.deadline_seconds == training.agent.deadline_seconds


def test_the_papers_recipe_is_the_papers() -> None:
    config = load(CONFIGS / "paper.yaml", DATA)
    assert (config.learner.world_size, config.machine.cards) == (32, 8)
    assert (config.grpo.groups_per_step, config.grpo.group_size, config.grpo.lr) == (512, 8, 2e-6)
    assert config.grpo.groups_per_step / config.grpo.minibatches == 128
    objective = resolve(config.grpo.loss, longest_answer(config.agent))
    assert (objective.kl_coef, objective.clip_low, objective.clip_high) == (0.001, 0.2, 0.2)
    assert (config.agent.max_prompt_tokens, config.agent.max_turn_tokens, config.agent.max_total_tokens) == (4096, 2048, 4096 + 8192)
    assert (config.model.min_pixels, config.model.max_pixels) == (512 * 512, 672 * 672 * 2)


def test_what_the_recipes_say_of_other_cards_holds() -> None:
    config = load(CONFIGS / "one_gpu.yaml", [*DATA, "learner.offload=none", "machine.card_gib=140"])
    assert not complaints(plan(config, footprint_of(config.model.path), machine_of(config)))
    config = load(CONFIGS / "one_gpu.yaml", [*DATA, "learner.offload=none"])
    made = plan(config, footprint_of(config.model.path), machine_of(config))
    assert f"{made.card_gib:.1f} of the {made.machine.card_gib * FULL:.1f} GiB" in (CONFIGS / "one_gpu.yaml").read_text()
