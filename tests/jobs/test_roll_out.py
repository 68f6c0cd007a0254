"""Rollouts of candidates with a real engine against the Atlas web: interrupted, its runner killed, and submitted again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs import roll_out as stage
from jobs.atlas_stage import world
from jobs.engines import answering
from jobs.search_balance import label_stage
from mmsr_ray.atlas.prepare import world_of
from mmsr_ray.config import Config, load
from mmsr_ray.data.construction.attempts import from_json
from mmsr_ray.data.construction.balance import NONE_CORRECT, UNDECIDED, labelled
from mmsr_ray.data.construction.candidate import Candidate, write
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

    then: Any = None

    def keep(self, attempts: Iterable[tuple[str, str]]) -> None:
        super().keep(attempts)
        if self.then is not None:
            then, self.then = self.then, None
            then()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 << 20, namespace="mmsr", logging_level=logging.ERROR)
    settings = {
        "run.dir": tmp_path_factory.mktemp("runs"),
        "atlas.train_questions": 8,
        "atlas.test_questions": 4,
        "construction.balance.rollouts": 4,
        "construction.balance.direct": 1,
        "construction.balance.min_survivors": 3,
        "rollout.max_inflight_groups": 2,  # so that an interruption leaves questions open
        "rollout.cpus_per_runner": 0.5,
    }
    with world(load(RECIPE, [f"{key}={value}" for key, value in settings.items()])) as here:
        tools = start_tools(here)
        yield here
        del tools
    ray.shutdown()


def test_no_question_is_rolled_out_twice_whatever_ends(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = world_of(config.atlas).collected_samples("train", QUESTIONS)
    candidates = [Candidate(s.uid, image=s.image, question=s.question, answer=s.answers[0]) for s in samples]
    candidates.append(Candidate("never asked").dropped("no image"))
    runners: list[Any] = []

    @contextmanager
    def watched(config: Config) -> Iterator[Any]:
        with answering(config) as engines:
            runners.extend(engines)
            yield engines

    def interrupt() -> None:
        raise Interrupted

    monkeypatch.setattr(stage, "answering", watched)
    file, settings = tmp_path / "rollouts.sqlite", stage.settings_of(config)
    with Watched(file, settings) as journal:
        journal.then = interrupt
        with pytest.raises(Interrupted):
            stage.roll_out(config, lambda: candidates, journal)
        before = _kept(journal)
    assert 0 < len(before) < QUESTIONS

    with Watched(file, settings) as journal:
        journal.then = lambda: ray.kill(runners[-1], no_restart=False)
        found = stage.roll_out(config, lambda: candidates, journal)
        assert (found.questions, found.asked, found.undecided) == (QUESTIONS, QUESTIONS - len(before), 0)
        after = _kept(journal)
    assert after.keys() == {s.uid for s in samples}
    assert before.items() <= after.items(), "nothing was asked again"
    for attempts in after.values():
        assert [entry["workflow"] for entry in json.loads(attempts)] == ["direct", "on_demand", "on_demand", "on_demand"]

    with Journal(file, settings) as journal:
        engines = len(runners)
        assert stage.roll_out(config, lambda: candidates, journal).asked == 0
        assert len(runners) == engines, "no engine starts for nothing"
        ended = list(labelled(candidates, journal.attempts, config.construction.balance))
    assert {c.status for c in ended} <= {"kept", NONE_CORRECT, "no image"}
    assert [c.key for c in ended] == [c.key for c in candidates]

    other = replace(config, model=replace(config.model, min_pixels=config.model.min_pixels + 1))
    with pytest.raises(DataError, match=r"model\.min_pixels was"):
        Journal(file, stage.settings_of(other))


def test_a_set_is_not_made_without_what_infrastructure_broke(config: Config, tmp_path: Path) -> None:
    samples = world_of(config.atlas).collected_samples("train", 2)
    candidates = [Candidate(s.uid, image=s.image, question=s.question, answer=s.answers[0]) for s in samples]
    candidates[0] = replace(candidates[0], image=b"no picture at all")
    source, target, file = tmp_path / "before.parquet", tmp_path / "labels.parquet", tmp_path / "rollouts.sqlite"
    write(source, candidates)
    with pytest.raises(DataError, match="1 of 2 questions have too few rollouts"):
        label_stage(config, source, target, file)
    assert not target.exists()
    with Journal(file, stage.settings_of(config)) as journal:
        ended = list(labelled(candidates, journal.attempts, config.construction.balance))
    assert ended[0].status == UNDECIDED
    assert len(from_json(ended[1].attempts)) == 4, "what was rolled out is kept"


def _kept(journal: Journal) -> dict[str, str]:
    return {key: journal.attempts(key) for key in journal.keys(lambda _: True)}
