"""What is optimised: presets named after papers, and the few independent settings that they stand for. Pure.

Promise: `resolve` is the only reader of `LossConfig`; an explicit setting beats the preset's, and settings that do not
go together are refused at start (`complaint`), never ignored.

Sources, cited below by their letters:
G  GRPO, arXiv 2402.03300, equations 3 (objective) and 4 (k3)        S  GSPO, arXiv 2507.18071, equations 5-7
D  Dr. GRPO, arXiv 2503.20783                                        R  RLOO, arXiv 2402.14740
A  DAPO, arXiv 2503.14476, equations 8, 11 (sampling) and 12         C  CISPO, arXiv 2506.13585 (MiniMax-M1), section 3.1
T  truncated importance sampling, Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"
I  IcePop, arXiv 2510.18855 (Ring-1T)                                U  dual clip, arXiv 1912.09729
K  J. Schulman, "Approximating KL divergence", 2020                  V  unbiased KL, arXiv 2512.02556 (DeepSeek-V3.2)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsr_ray.config import AgentConfig


@dataclass
class LossConfig:
    """A preset and what differs from it: a setting that is null has the preset's value."""

    preset: str = "grpo"  # grpo | dr_grpo | dapo | gspo | rloo | cispo
    baseline: str | None = None  # what a reward is compared with: mean (of its group) | leave_one_out (mean of the others)
    normalise: str | None = None  # the difference divided by: std (of its group) | none
    ratio: str | None = None  # probability ratio to the old policy, of a: token | sequence (geometric mean) | trajectory (product)
    clip: str | None = None  # surrogate (of PPO) | weight (of CISPO: bounded and detached, no token loses its gradient)
    clip_low: float | None = None  # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float | None = None
    dual_clip: float | None = None  # with a negative advantage the ratio counts this much at most, above 1; 0: off
    aggregate: str | None = None  # mean over: token | sequence (within each answer, then over answers) | constant (Dr. GRPO)
    constant_length: int | None = None  # divisor of `constant`; 0: the most tokens that an answer can have
    correction: str | None = None  # of the engine's log-probs and of staleness: none | truncate (TIS) | mask (IcePop)
    correction_low: float | None = None  # exp(old - rollout) below it is masked; truncate has no lower bound
    correction_high: float | None = None  # above it: truncated (2 by default) or masked (5 by default)
    correction_level: str | None = None  # token | sequence | trajectory; null here and in the presets: that of `ratio`
    kl_kind: str | None = None  # k1 | k2 | k3
    kl_coef: float | None = None  # 0: no KL term, and no reference model in memory
    kl_gradient: str | None = None  # direct (of the estimate as it stands) | unbiased (of the KL divergence itself)
    entropy_coef: float | None = None


class Baseline(StrEnum):
    MEAN = "mean"
    LEAVE_ONE_OUT = "leave_one_out"


class Normalise(StrEnum):
    STD = "std"
    NONE = "none"


class Level(StrEnum):
    """What one probability ratio is of."""

    TOKEN = "token"
    SEQUENCE = "sequence"  # geometric mean over the answer's tokens
    TRAJECTORY = "trajectory"  # product over the answer's tokens


class Clip(StrEnum):
    SURROGATE = "surrogate"
    WEIGHT = "weight"


class Aggregate(StrEnum):
    TOKEN = "token"
    SEQUENCE = "sequence"
    CONSTANT = "constant"


class Correction(StrEnum):
    NONE = "none"
    TRUNCATE = "truncate"
    MASK = "mask"


class KL(StrEnum):
    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


class KLGradient(StrEnum):
    DIRECT = "direct"
    UNBIASED = "unbiased"


@dataclass(frozen=True, slots=True)
class Objective:
    """Settings of one run's loss, complete and possible. The default is the preset grpo."""

    baseline: Baseline = Baseline.MEAN
    normalise: Normalise = Normalise.STD
    ratio: Level = Level.TOKEN
    clip: Clip = Clip.SURROGATE
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0  # U
    aggregate: Aggregate = Aggregate.TOKEN  # the original's code; G's equation has `sequence`
    constant_length: int = 0
    correction: Correction = Correction.TRUNCATE  # T
    correction_low: float = 0.5  # I
    correction_high: float = 2.0
    correction_level: Level = Level.TOKEN
    kl_kind: KL = KL.K3  # G
    kl_coef: float = 0.001
    kl_gradient: KLGradient = KLGradient.DIRECT
    entropy_coef: float = 0.0


# what differs from Objective's defaults; none of the papers but G and R has a KL term
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"normalise": "none", "aggregate": "constant", "kl_coef": 0.0},  # D: both normalisations are biases
    "dapo": {"clip_high": 0.28, "kl_coef": 0.0},  # A: clip-higher, token mean; its sampling is grpo.filter_groups
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "aggregate": "sequence", "kl_coef": 0.0},  # S: section 5.1
    # R: REINFORCE over whole answers; ratio and clip are 1 on fresh samples and matter from the second mini-batch on
    "rloo": {
        "baseline": "leave_one_out",
        "normalise": "none",
        "ratio": "trajectory",
        "aggregate": "sequence",
        "kl_gradient": "unbiased",
    },
    # C: no lower bound; the upper one, 5, is ScaleRL's (arXiv 2510.13786)
    "cispo": {"clip": "weight", "clip_low": 1.0, "clip_high": 4.0, "kl_coef": 0.0},
}

ICEPOP_HIGH = 5.0  # I

_KINDS: dict[str, type[StrEnum]] = {
    "baseline": Baseline,
    "normalise": Normalise,
    "ratio": Level,
    "clip": Clip,
    "aggregate": Aggregate,
    "correction": Correction,
    "correction_level": Level,
    "kl_kind": KL,
    "kl_gradient": KLGradient,
}


def resolve(config: LossConfig, longest: int) -> Objective:
    """The preset with the explicit settings over it. `longest`: the most tokens that an answer can have (`longest_answer`).

    Raises ValueError with `complaint`'s sentence.
    """
    if said := complaint(config):
        raise ValueError(said)
    made = _typed(config)
    made["constant_length"] = made.get("constant_length") or longest
    return Objective(**made)


def complaint(config: LossConfig) -> str:
    """One sentence about settings that cannot be or do not go together; "" when all is well."""
    if config.preset not in PRESETS:
        return f"grpo.loss.preset={config.preset!r}: choose {_or(PRESETS)}"
    for name, kind in _KINDS.items():
        value = getattr(config, name)
        if value is not None and value not in list(kind):
            return f"grpo.loss.{name}={value!r}: choose {_or(kind)}"
    return next((f"grpo.loss.{sentence}" for wrong, sentence in _rules(Objective(**_typed(config))) if wrong), "")


def _rules(o: Objective) -> list[tuple[bool, str]]:
    return [
        (not 0 <= o.clip_low <= 1, f"clip_low={o.clip_low:g}: choose a value between 0 and 1 (1: no lower bound)"),
        (not o.clip_high >= 0, f"clip_high={o.clip_high:g}: choose 0 or more"),
        (o.dual_clip != 0 and not o.dual_clip > 1, f"dual_clip={o.dual_clip:g}: choose a value above 1, or 0 to turn it off"),
        (o.dual_clip != 0 and o.clip is Clip.WEIGHT, "dual_clip bounds clip=surrogate, clip=weight is bounded already: set dual_clip=0"),
        (o.constant_length < 0, "constant_length: choose 0 (the most tokens an answer can have) or more"),
        (not o.correction_high >= 1, f"correction_high={o.correction_high:g}: choose 1 or more, for fresh samples lie around 1"),
        (not 0 <= o.correction_low <= 1, f"correction_low={o.correction_low:g}: choose a value between 0 and 1"),
        (
            o.correction is not Correction.NONE and o.correction_level is Level.TOKEN and o.ratio is not Level.TOKEN,
            f"correction_level=token weighs single tokens, ratio={o.ratio} has one ratio for a whole answer: "
            "set correction_level to sequence or trajectory",
        ),
        (not o.kl_coef >= 0, f"kl_coef={o.kl_coef:g}: choose 0 (no KL term) or more"),
        (
            o.kl_coef > 0 and o.kl_kind is KL.K1 and o.kl_gradient is KLGradient.DIRECT,
            "kl_kind=k1 has a gradient of its own that is zero on average: set kl_gradient=unbiased, or choose k2 or k3",
        ),
    ]


def _typed(config: LossConfig) -> dict[str, Any]:
    """Settings that are not Objective's defaults, by name. Raises ValueError for an unknown word."""
    explicit = {f.name: value for f in fields(Objective) if (value := getattr(config, f.name)) is not None}
    merged = PRESETS[config.preset] | explicit
    if "ratio" in merged:
        merged = {"correction_level": merged["ratio"]} | merged
    if merged.get("correction") == Correction.MASK:
        merged = {"correction_high": ICEPOP_HIGH} | merged
    return {name: _KINDS[name](value) if name in _KINDS else value for name, value in merged.items()}


def longest_answer(agent: AgentConfig) -> int:
    """The most tokens that one episode can sample."""
    return min(agent.max_turns * agent.max_turn_tokens, agent.max_total_tokens - 1)


def filters_groups(setting: bool | None, config: LossConfig) -> bool:
    """Whether groups of constant correctness are dropped: as set, or by the preset (A, equation 11)."""
    return config.preset == "dapo" if setting is None else setting


def _or(words: Any) -> str:
    words = [str(word) for word in words]
    return f"{', '.join(words[:-1])} or {words[-1]}"
