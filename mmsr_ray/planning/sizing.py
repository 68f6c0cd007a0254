"""How many? Searches over simulated runs. Pure.

Promise: every answer was simulated, and so was one less of what it counts, which was too few. More runners never hurt in the model, nor do
more tool actors, so bisection finds the fewest; the split of a fixed number of GPUs is looked for on a grid that gets finer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from mmsr_ray.config import Config
from mmsr_ray.planning.pipeline import PlanError
from mmsr_ray.planning.plan import doubled, step_seconds

MOST_ACTORS = 1024
GRID = 6  # points of a split that are tried in each round


@dataclass(frozen=True, slots=True)
class Size:
    runners: int
    ranks: int
    tool_actors: int
    seconds: float  # of a step

    def of(self, c: Config) -> Config:
        """The config with these numbers."""
        return replace(
            c,
            rollout=replace(c.rollout, num_runners=self.runners, max_runners=0),
            learner=replace(c.learner, world_size=self.ranks),
            tools=replace(c.tools, actors=self.tool_actors),
        )


def for_target(c: Config, seconds: float) -> Size:
    """The fewest runners with which a step takes no longer, then the fewest tool actors. Raises PlanError where none do."""

    def steps_take(runners: int, actors: int) -> float:
        return step_seconds(Size(runners, c.learner.world_size, actors, 0.0).of(c))

    plenty = plenty_of_actors(c)
    most = min(c.plan.most_runners, c.grpo.groups_per_step * (c.grpo.staleness + 1))
    runners = _fewest(most, lambda n: steps_take(n, plenty) <= seconds)
    if runners is None:
        best = Size(most, c.learner.world_size, plenty, 0.0).of(c)
        least = step_seconds(best)
        part = doubled(best, least)[0].part
        raise PlanError(
            f"no number of runners brings a step to {seconds:g} s: with {most} it takes {least:.1f} s, and what holds it up is: {part}; "
            "give it more, or raise plan.target_seconds"
        )
    actors = _fewest(plenty, lambda n: steps_take(runners, n) <= seconds) or plenty
    return Size(runners, c.learner.world_size, actors, steps_take(runners, actors))


def for_gpus(c: Config, gpus: int) -> Size:
    """The split between runners and ranks with the shortest step, and the fewest tool actors within 2 % of it. Raises PlanError."""
    per_runner, per_rank = c.rollout.gpus_per_runner, c.learner.gpus_per_rank
    if c.learner.colocated:
        raise PlanError("plan.gpus asks for a split, and learner.colocated=true has none: runner and rank share each card")
    if per_runner <= 0 or per_rank <= 0:
        raise PlanError("plan.gpus splits GPUs between runners and ranks: set rollout.gpus_per_runner and learner.gpus_per_rank above 0")
    if gpus < per_runner + per_rank:
        raise PlanError(f"plan.gpus={gpus} does not hold one runner and one rank: they need {per_runner + per_rank:g}")
    plenty = plenty_of_actors(c)

    @cache
    def steps_take(ranks: int) -> float:
        return step_seconds(size(ranks).of(c))

    def size(ranks: int) -> Size:
        runners = int((gpus - ranks * per_rank) / per_runner)
        return Size(min(runners, c.grpo.groups_per_step * (c.grpo.staleness + 1)), ranks, plenty, 0.0)

    ranks = _lowest(1, int((gpus - per_runner) / per_rank), steps_take)
    best = size(ranks)
    enough = 1.02 * steps_take(ranks)
    actors = _fewest(plenty, lambda n: step_seconds(replace(best, tool_actors=n).of(c)) <= enough) or plenty
    found = replace(best, tool_actors=actors)
    return replace(found, seconds=step_seconds(found.of(c)))


def plenty_of_actors(c: Config) -> int:
    """So many that their event loops hold nobody up: one for each 32 rollouts at once."""
    at_once = c.grpo.groups_per_step * (c.grpo.staleness + 1) * c.grpo.group_size
    return max(c.tools.actors, min(MOST_ACTORS, -(-at_once // 32)))


def _fewest(most: int, enough: Callable[[int], bool]) -> int | None:
    """The least n up to `most` that is enough; None when `most` is not."""
    high = 1
    while not enough(high):
        if high == most:
            return None
        high = min(most, 2 * high)
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _lowest(low: int, high: int, value: Callable[[int], float]) -> int:
    """Where a function with one valley is lowest, as near as a refined grid tells."""
    while high - low > GRID:
        points = sorted({low + round(i * (high - low) / GRID) for i in range(GRID + 1)})
        at = min(range(len(points)), key=lambda i: value(points[i]))
        low, high = points[max(0, at - 1)], points[min(len(points) - 1, at + 1)]
    return min(range(low, high + 1), key=value)
