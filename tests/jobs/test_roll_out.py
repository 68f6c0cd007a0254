"""Rollouts of candidates with a real engine against the Atlas web: interrupted, its runner killed, and submitted again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs import roll_out as stage
from jobs import search_balance
from jobs.atlas_stage import world
from jobs.engines import engines
from mmsr_ray.atlas.prepare import world_of
from mmsr_ray.config import Config, load
from mmsr_ray.data.construction.balance import NONE_CORRECT, UNDECIDED
from mmsr_ray.data.construction.candidate import Candidate, read, write
from mmsr_ray.data.construction.journal import Journal
from mmsr_ray.data.schema import DataError
from mmsr_ray.tools.actor import start_tools

pytestmark = pytest.mark.heavy
RECIPE = Path(__file__).parents[2] / "jobs" / "configs" / "atlas.yaml"
QUESTIONS = 10


class Interrupted(Exception):
    pass


class Watched(Journal):
    """Calls `then` once, after the first rollouts are on disk."""

    then: Callable[[], None]
    called = False

    def keep(self, attempts: Iterable[tuple[str, str]]) -> None:
        super().keep(attempts)
        if not self.called:
            self.called = True
            self.then()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 << 20, namespace="mmsr", logging_level=logging.ERROR)
    settings = {
        "run.dir": tmp_path_factory.mktemp("runs"),
        "atlas.train_questions": 8,
        "atlas.test_questions": 4,
        "construction.balance.rollouts": 4,
        "construction.balance.direct": 1,
        "construction.balance.asks": 1,
        "construction.balance.min_survivors": 3,
        "rollout.max_inflight_groups": 2,  # so that an interruption leaves questions open
        "rollout.cpus_per_runner": 0.5,
    }
    with world(load(RECIPE, [f"{key}={value}" for key, value in settings.items()])) as here:
        tools = start_tools(here)
        yield here
        del tools
    ray.shutdown()


@pytest.fixture
def started(config: Config) -> Iterator[Sequence[Any]]:
    with engines(config) as up:
        yield up


def test_no_question_is_rolled_out_twice_whatever_ends(
    config: Config, started: Sequence[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = world_of(config.atlas).collected_samples("train", QUESTIONS)
    candidates = [Candidate(s.uid, image=s.image, question=s.question, answer=s.answers[0]) for s in samples]
    candidates.append(Candidate("cannot be asked", image=b"no picture at all", question="What is this?", answer="x"))
    candidates.append(Candidate("never asked").dropped("no image"))
    runners: list[Any] = []
    entered = 0

    @contextmanager
    def kept_up(_: Config) -> Iterator[Any]:  # an engine takes 20 s to start: the second submission gets the first one's
        nonlocal entered
        entered += 1
        yield runners

    def interrupt() -> None:
        raise Interrupted

    runners.extend(started)
    monkeypatch.setattr(stage, "engines", kept_up)
    source, target, file = tmp_path / "before.parquet", tmp_path / "labels.parquet", tmp_path / "rollouts.sqlite"
    write(source, candidates)
    with Watched(file, stage.settings_of(config)) as journal:
        journal.then = interrupt
        with pytest.raises(Interrupted):
            stage.roll_out(config, lambda: candidates, journal)
        before = _kept(journal)
    assert 0 < len(before) < QUESTIONS

    monkeypatch.setattr(Watched, "then", lambda _: ray.kill(runners[-1], no_restart=False), raising=False)
    monkeypatch.setattr(search_balance, "Journal", Watched)
    found = search_balance.label_stage(config, source, target, file)
    assert (found["questions_asked"], found["undecided"]) == (QUESTIONS + 1 - len(before), 1)
    ended = list(read(target))
    assert [c.key for c in ended] == [c.key for c in candidates]
    assert [c.status for c in ended[-2:]] == [UNDECIDED, "no image"]
    assert {c.status for c in ended[:-2]} <= {"kept", NONE_CORRECT}
    assert before.items() <= {c.key: c.attempts for c in ended}.items(), "nothing was asked again"
    for c in ended[:-2]:
        assert [entry["workflow"] for entry in json.loads(c.attempts)] == ["direct", "on_demand", "on_demand", "on_demand"]

    with Journal(file, stage.settings_of(config)) as journal:
        assert entered == 2
        assert stage.roll_out(config, lambda: candidates[:QUESTIONS], journal).asked == 0
        assert entered == 2, "no engine starts for nothing"
    other = replace(config, model=replace(config.model, min_pixels=config.model.min_pixels + 1))
    with pytest.raises(DataError, match=r"model\.min_pixels was"):
        Journal(file, stage.settings_of(other))


def _kept(journal: Journal) -> dict[str, str]:
    return {key: journal.attempts(key) for key in journal.keys(lambda _: True)}
