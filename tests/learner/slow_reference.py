"""The losses as the papers write them: loops over answers and tokens in plain Python, gradients derived by hand.

Nothing here is shared with the code under test but the words of its settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LIMIT = 20.0


@dataclass
class Answer:
    """One answer of a mini-batch; a list entry is a token."""

    advantage: float
    now: list[float]  # log-probs of the policy being trained
    old: list[float]
    rollout: list[float]
    reference: list[float]


@dataclass
class Settings:
    ratio: str = "token"
    clip: str = "surrogate"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    aggregate: str = "token"
    constant_length: int = 10
    correction: str = "none"
    correction_low: float = 0.5
    correction_high: float = 2.0
    correction_level: str = "token"
    kl_kind: str = "k3"
    kl_coef: float = 0.0
    kl_gradient: str = "direct"


def ratios(upper: list[float], lower: list[float], level: str) -> tuple[list[float], list[list[float]]]:
    """Each token's ratio, and d log ratio[t] / d upper[u] as rows of t."""
    n = len(upper)
    logs = [u - v for u, v in zip(upper, lower, strict=True)]
    if level == "token":
        return [math.exp(x) for x in logs], [[float(t == u) for u in range(n)] for t in range(n)]
    if level == "sequence":  # GSPO, equation 7
        return [math.exp(sum(logs) / n)] * n, [[1 / n] * n for _ in range(n)]
    return [math.exp(sum(logs))] * n, [[1.0] * n for _ in range(n)]


def surrogate(r: float, a: float, logp: float, s: Settings) -> tuple[float, float, float]:
    """Value of one token's surrogate, its derivative by log r, and its derivative by its own log-prob."""
    low, high = 1 - s.clip_low, 1 + s.clip_high
    clipped = min(max(r, low), high)
    if s.clip == "weight":
        return clipped * a * logp, 0.0, clipped * a
    value, slope = (r * a, r * a) if r * a <= clipped * a else (clipped * a, 0.0)
    if s.dual_clip and a < 0 and value < s.dual_clip * a:
        value, slope = s.dual_clip * a, 0.0
    return value, slope, 0.0


def weight_of(answer: Answer, s: Settings) -> list[float]:
    if s.correction == "none":
        return [1.0] * len(answer.now)
    found, _ = ratios(answer.old, answer.rollout, s.correction_level)
    if s.correction == "truncate":
        return [min(w, s.correction_high) for w in found]
    return [w if s.correction_low <= w <= s.correction_high else 0.0 for w in found]


def kl(now: float, reference: float, old: float, s: Settings) -> tuple[float, float]:
    """Value and derivative by `now`."""
    d = reference - now
    value = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[s.kl_kind]
    if s.kl_gradient == "unbiased":
        return value, math.exp(now - old) * (now - reference)
    return value, {"k1": 1.0, "k2": -d, "k3": 1 - math.exp(d)}[s.kl_kind]


def loss_and_gradient(answers: list[Answer], s: Settings) -> tuple[float, list[list[float]]]:
    tokens = sum(len(answer.now) for answer in answers)
    loss, gradients = 0.0, []
    for answer in answers:
        n = len(answer.now)
        share = {"token": 1 / tokens, "sequence": 1 / (len(answers) * n), "constant": 1 / (len(answers) * s.constant_length)}[s.aggregate]
        gradient = [0.0] * n
        found, slopes = ratios(answer.now, answer.old, s.ratio)
        weights = weight_of(answer, s)
        for t in range(n):
            value, by_log_ratio, by_logp = surrogate(found[t], answer.advantage, answer.now[t], s)
            loss -= share * weights[t] * value
            gradient[t] -= share * weights[t] * by_logp
            for u in range(n):
                gradient[u] -= share * weights[t] * by_log_ratio * slopes[t][u]
            distance, slope = kl(answer.now[t], answer.reference[t], answer.old[t], s)
            loss += s.kl_coef * share * distance
            gradient[t] += s.kl_coef * share * slope
        gradients.append(gradient)
    return loss, gradients
