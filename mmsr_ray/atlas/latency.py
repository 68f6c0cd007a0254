"""How long a request to the Atlas web takes. Pure.

Promise: the seconds follow from the seed and from what is asked alone. Two runs that ask the same things wait equally long
for them, in whatever order they ask, so that their times can be compared.
"""

from __future__ import annotations

import hashlib
import random


def seconds_of(asked: bytes, *, seed: int, median: float, tail: float, most: float) -> float:
    """A draw from a log-normal with this median, `tail` the standard deviation of its logarithm, cut at `most`.

    With a tail of 1 a request in twenty takes more than five medians, one in a hundred more than ten. A tail of 0 is the
    median itself.
    """
    if tail == 0 or median == 0:
        return median
    draw = random.Random(f"{seed} {hashlib.sha256(asked).hexdigest()}")
    return min(most, median * draw.lognormvariate(0.0, tail))
