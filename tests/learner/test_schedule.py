from __future__ import annotations

import pytest

from mmsr_ray.learner.schedule import learning_rate


def test_sigmoid_is_the_originals() -> None:
    def lr(step: int) -> float:
        return learning_rate(step, base=2e-6, schedule="sigmoid", steps=100)

    assert lr(0) == pytest.approx(2e-6, rel=1e-3)
    assert lr(45) == pytest.approx(2e-6 * (0.95 / 2 + 0.05))
    assert lr(1000) == pytest.approx(2e-6 * 0.05)
    assert lr(10**9) == pytest.approx(2e-6 * 0.05)
    assert all(lr(step) >= lr(step + 1) for step in range(100))


def test_cosine_with_warmup() -> None:
    rates = [learning_rate(step, base=1.0, schedule="cosine", steps=20, warmup_steps=4) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[12] == pytest.approx(0.5)
    assert rates[20] == pytest.approx(0.0)


def test_constant_and_unknown() -> None:
    assert learning_rate(7, base=0.3, schedule="constant", steps=1) == 0.3
    with pytest.raises(ValueError, match="choose"):
        learning_rate(0, base=1.0, schedule="linear", steps=1)
