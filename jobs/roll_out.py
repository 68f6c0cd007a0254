"""Rolls out every candidate k times with the model of the config: the Ray side of search balancing (spec §5.3 step 7).

Promise: a question's rollouts are on disk the moment they have all ended, and are never paid for again. One whose rollouts
infrastructure broke is asked again, here and in the next submission, and stays undecided until enough of them are there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ray.actor import ActorHandle

from jobs.engines import engines
from jobs.evaluate_model import model_files
from mmsr_ray.config import Config, to_dict
from mmsr_ray.data.construction.attempts import from_json, to_json
from mmsr_ray.data.construction.balance import UNDECIDED, label
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.journal import Journal
from mmsr_ray.differences import under
from mmsr_ray.evaluation.run import Call, Ended, Question, ask, fetch
from mmsr_ray.types import Sample, Ticket

logger = logging.getLogger(__name__)

TELL_SECONDS = 10.0
GRACE_SECONDS = 60.0  # beyond the runner's own deadline of a group
AFTER_WARMUP = 1 << 30  # the training step that rollouts are scored at; correctness does not depend on it
_OF_BALANCE = ("construction.balance.rollouts", "construction.balance.direct")
FOLLOWS_FROM = ("model", "agent", "reward", "rollout.temperature", "rollout.seeded", "run.seed", *_OF_BALANCE)
"""Settings that rollouts follow from, beside the kinds of the services."""

Candidates = Callable[[], Iterable[Candidate]]
Asked = Generator[list[Ended], None, None]


@dataclass(frozen=True)
class RolledOut:
    """Of one submission. `undecided` questions have too few rollouts still."""

    questions: int
    asked: int
    undecided: int
    seconds: float


def settings_of(config: Config) -> dict[str, Any]:
    """What a `Journal` belongs to."""
    flat = dict(_flat(to_dict(config)))
    chosen = {key: value for key, value in flat.items() if under(key, FOLLOWS_FROM)}
    services = {key: value for key, value in flat.items() if key.startswith("tools.") and key.rpartition(".")[2] in ("kind", "model")}
    return chosen | services | {"model_files": model_files(config.model.path)}


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def roll_out(config: Config, candidates: Candidates, journal: Journal) -> RolledOut:
    """Ask what has too few rollouts in `journal`. `candidates()` starts reading them anew; dropped ones are not asked.

    Needs a running Ray and the tools of the run (`start_tools`); engines start only if there is something to ask.
    Raises NoRoom, NoEngine, DataError, and BudgetSpent when the money of the tools ends it; what ended by then is kept.
    """
    began = time.monotonic()
    balance = config.construction.balance

    def decided(attempts: str) -> bool:
        return label(from_json(attempts), balance).reason != UNDECIDED

    def still_open() -> Iterator[Candidate]:
        done = journal.keys(decided)
        return (candidate for candidate in candidates() if candidate.kept and candidate.key not in done)

    questions = sum(candidate.kept for candidate in candidates())
    asked = 0
    if next(still_open(), None) is not None:
        with engines(config) as runners:  # tools.model, where there is one, writes questions
            logger.info("%d engines up for %d questions, %d rollouts each", len(runners), questions, balance.rollouts)
            for _ in range(balance.asks):
                seconds = began + balance.deadline_seconds - time.monotonic()
                with closing(_ask(config, runners, still_open(), seconds)) as landings:
                    asked += _keep(landings, journal)
                if next(still_open(), None) is None:
                    break
    undecided = sum(1 for _ in still_open())
    if undecided:
        logger.warning("%d of %d questions have too few rollouts that infrastructure left: submit again to ask them", undecided, questions)
    return RolledOut(questions, asked, undecided, time.monotonic() - began)


def _ask(config: Config, runners: Sequence[ActorHandle], candidates: Iterable[Candidate], seconds: float) -> Asked:
    """Groups of rollouts as they end, in any order."""
    balance = config.construction.balance

    def group(question: Question) -> tuple[Ticket, int, int, int]:
        # Always of epoch 0: rollouts that broke are the same ones when they are asked again.
        ticket = Ticket(question.sample.uid, 0, 0, [question.sample])
        return ticket, balance.rollouts, AFTER_WARMUP, balance.direct

    return ask(
        runners,
        (Question(_sample(candidate), "on_demand") for candidate in candidates),
        inflight_per_runner=min(config.rollout.max_inflight_groups, config.rollout.max_num_seqs),
        sample_seconds=config.rollout.group_deadline_seconds + GRACE_SECONDS,
        deadline_seconds=seconds,
        call=Call("sample_group", group),
    )


def _sample(candidate: Candidate) -> Sample:
    return Sample(
        uid=candidate.key,
        question=candidate.question,
        image=candidate.image,
        answers=candidate.answers,
        source=candidate.source,
        image_url=candidate.image_url or None,
    )


def _keep(landings: Iterable[list[Ended]], journal: Journal) -> int:
    """Rollouts go to disk as they come; returns how many questions were asked. One whose group is lost stays open."""
    count, told = 0, time.monotonic()
    for landed in landings:
        groups = fetch([ended.held for ended in landed])
        journal.keep([(e.question.sample.uid, to_json(group.trajectories)) for e, group in zip(landed, groups, strict=True) if group])
        count += len(landed)
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            logger.info("%d questions rolled out", count)
    return count
