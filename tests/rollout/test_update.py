from __future__ import annotations

import pytest

from mmsr_ray.config import ConfigError, load
from mmsr_ray.rollout.update import UpdateMode

NEEDED = ["model.path=m", "data.train=a", "data.test=b"]


def test_the_mode_is_one_of_two_and_everything_else_is_refused_with_the_choice() -> None:
    assert UpdateMode(load(None, NEEDED).rollout.update) is UpdateMode.KEEP
    assert UpdateMode(load(None, [*NEEDED, "rollout.update=wait"]).rollout.update) is UpdateMode.WAIT
    for wrong in ("abort", "KEEP", "never", ""):
        with pytest.raises(ConfigError, match=r"^rollout\.update='.*choose keep \(turns go on .*\) or wait \(they finish first\)$"):
            load(None, [*NEEDED, f"rollout.update={wrong}"])
