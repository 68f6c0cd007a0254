from __future__ import annotations

import pytest

from mmsr_ray.config import AgentConfig, Config, ConfigError, DataConfig, ModelConfig, from_dict, load, to_dict
from mmsr_ray.learner.objective import PRESETS, LossConfig, Objective, complaint, filters_groups, longest_answer, resolve

REQUIRED = ["model.path=m", "data.train=t", "data.test=t"]


def loaded(*overrides: str) -> Objective:
    return resolve(load(None, [*REQUIRED, *(f"grpo.loss.{item}" for item in overrides)]).grpo.loss, longest=99)


def test_the_presets_are_what_their_papers_say() -> None:
    assert loaded() == Objective(constant_length=99)
    dapo, gspo, cispo = loaded("preset=dapo"), loaded("preset=gspo"), loaded("preset=cispo")
    assert (dapo.clip_low, dapo.clip_high, dapo.aggregate, dapo.kl_coef) == (0.2, 0.28, "token", 0.0)
    assert (gspo.ratio, gspo.correction_level, gspo.aggregate, gspo.clip_low, gspo.clip_high) == (*["sequence"] * 3, 3e-4, 4e-4)
    assert (cispo.clip, cispo.clip_low, cispo.clip_high) == ("weight", 1.0, 4.0)
    dr, rloo = loaded("preset=dr_grpo"), loaded("preset=rloo")
    assert (dr.normalise, dr.aggregate, dr.constant_length) == ("none", "constant", 99)
    assert (rloo.baseline, rloo.normalise, rloo.ratio) == ("leave_one_out", "none", "trajectory")


def test_an_explicit_setting_beats_the_preset_in_yaml_and_on_the_command_line(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("grpo: {loss: {preset: gspo, clip_high: 0.1, kl_coef: 0.01}}\n")
    made = resolve(load(file, [*REQUIRED, "grpo.loss.clip_low=0.05", "grpo.loss.kl_coef=null"]).grpo.loss, longest=9)
    assert (made.ratio, made.clip_low, made.clip_high, made.kl_coef) == ("sequence", 0.05, 0.1, 0.0)
    # set to what the preset has not, even to a falsy value
    assert loaded("kl_coef=0", "correction=none").kl_coef == 0
    assert loaded("preset=dr_grpo", "constant_length=7").constant_length == 7
    assert loaded("correction=mask").correction_high == 5.0
    assert loaded("correction=mask", "correction_high=3").correction_high == 3.0
    assert loaded("ratio=trajectory").correction_level == "trajectory"
    assert loaded("ratio=trajectory", "correction_level=sequence").correction_level == "sequence"


def test_what_is_left_to_the_preset_stays_so_on_the_way_to_the_actors() -> None:
    config = load(None, [*REQUIRED, "grpo.loss.preset=dapo", "grpo.loss.entropy_coef=0.01"])
    assert from_dict(to_dict(config)).grpo.loss == config.grpo.loss == LossConfig(preset="dapo", entropy_coef=0.01)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["preset=ppo"], "preset='ppo': choose grpo, dr_grpo, dapo, gspo, rloo or cispo"),
        (["ratio=word"], "ratio='word': choose token, sequence or trajectory"),
        (["correction=off"], "choose none, truncate or mask"),  # YAML reads off as a truth value
        (["clip_low=1.5"], "between 0 and 1"),
        (["clip_high=nan"], "0 or more"),
        (["dual_clip=0.5"], "above 1"),
        (["preset=cispo", "dual_clip=3"], "set dual_clip=0"),
        (["preset=gspo", "correction_level=token"], "set correction_level to sequence or trajectory"),
        (["correction_high=0.5"], "1 or more"),
        (["kl_coef=-1"], "0 \\(no KL term\\) or more"),
        (["kl_kind=k1"], "set kl_gradient=unbiased"),
        (["constant_length=-1"], "constant_length"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^grpo.loss.*{said}"):
        loaded(*settings)


def test_a_complaint_is_raised_where_nothing_was_validated() -> None:
    assert not any(complaint(LossConfig(preset=preset)) for preset in PRESETS)
    with pytest.raises(ValueError, match="choose"):
        resolve(LossConfig(preset="gspo", clip="hard"), longest=1)


def test_a_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="clip_low"):
        loaded("clip_low=wide")


def test_longest_answer() -> None:
    assert longest_answer(AgentConfig(max_turns=3, max_turn_tokens=100, max_prompt_tokens=50, max_total_tokens=1000)) == 300
    assert longest_answer(AgentConfig(max_turns=3, max_turn_tokens=2048, max_prompt_tokens=50, max_total_tokens=1000)) == 999


def test_dapo_filters_groups_unless_told_otherwise() -> None:
    config = Config(model=ModelConfig(path="m"), data=DataConfig(train="", test=""))
    assert config.grpo.filter_groups is None
    assert [filters_groups(None, LossConfig(preset=preset)) for preset in ("grpo", "dapo")] == [False, True]
    assert [filters_groups(False, LossConfig(preset="dapo")), filters_groups(True, LossConfig())] == [False, True]
