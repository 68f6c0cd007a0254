"""Every record reaches every tracker once and in order, whatever the run, the file and the other trackers do."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmsr_ray.algorithms.record import MetricsFile
from mmsr_ray.observability.trackers import follow
from mmsr_ray.observability.trackers.follow import Place, following
from mmsr_ray.observability.trackers.port import Tracker


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(follow, "PAUSE_SECONDS", (0.02, 0.1))


class Notebook:
    """A tracker that remembers."""

    supersedes = False

    def __init__(self) -> None:
        self.started: list[str | None] = []
        self.told: list[tuple[int, float]] = []
        self.closed: list[bool] = []
        self.settings: Mapping[str, Any] = {}

    def start(self, name: str, settings: Mapping[str, Any], run_id: str | None) -> str:
        self.started.append(run_id)
        self.settings = settings
        return run_id or f"{name}-id"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append((step, values["reward"]))

    def close(self, *, ok: bool) -> None:
        self.closed.append(ok)


class Board(Notebook):
    supersedes = True


class Down(Notebook):
    """Fails as long as `down` is set, at the start and in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.down = True
        self.tries = 0

    def start(self, name: str, settings: Mapping[str, Any], run_id: str | None) -> str:
        self.tries += 1
        if self.down:
            raise ConnectionError("nobody is there\nat all")
        return super().start(name, settings, run_id)


class Hanging(Notebook):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        threading.Event().wait(60)


def record(step: int, reward: float = 0.0) -> dict[str, Any]:
    return {"step": step, "reward": reward or step / 10}


def run(folder: Path, trackers: Mapping[str, Tracker], steps: Callable[[MetricsFile], None], **options: Any) -> None:
    with following(trackers, folder, name="my-run", config={"a": {"b": 1}}, **options):
        steps(MetricsFile(folder / "metrics.jsonl"))


def append(*steps: int, reward: float = 0.0) -> Callable[[MetricsFile], None]:
    def write(file: MetricsFile) -> None:
        for step in steps:
            file.append(record(step, reward))

    return write


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_step_once_and_a_run_that_goes_on(tmp_path: Path) -> None:
    first, again = Notebook(), Notebook()
    run(tmp_path, {"x": first}, append(1, 2, 3))
    assert first.told == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert (first.started, first.closed, first.settings) == ([None], [True], {"a": {"b": 1}})
    run(tmp_path, {"x": again}, append(3, 4, reward=0.9))  # back to a checkpoint after step 2
    assert again.told == [(4, 0.9)]
    assert again.started == ["my-run-id"]


def test_what_supersedes_follows_a_run_that_goes_back(tmp_path: Path) -> None:
    board, notebook = Board(), Notebook()

    def steps(file: MetricsFile) -> None:
        append(1, 2, 3)(file)
        wait_for(lambda: len(board.told) == 3 and len(notebook.told) == 3)
        file.truncate(1)
        append(2, reward=0.8)(file)
        wait_for(lambda: len(board.told) == 4)
        append(3, 4, reward=0.8)(file)

    run(tmp_path, {"board": board, "notebook": notebook}, steps)
    assert board.told == [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.8), (3, 0.8), (4, 0.8)]
    assert notebook.told == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.8)]
    later = Board()
    run(tmp_path, {"board": later}, append(4, 5, reward=0.7))
    assert later.told == [(4, 0.7), (5, 0.7)]


def test_a_finished_run_opens_nothing(tmp_path: Path) -> None:
    run(tmp_path, {"x": Notebook()}, append(1))
    again = Notebook()
    run(tmp_path, {"x": again}, append())
    assert (again.started, again.closed) == ([], [])


def test_what_a_dead_job_left_is_sent_by_the_next(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl").append(record(1))
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 2, "rew')
    notebook = Notebook()
    run(tmp_path, {"x": notebook}, append(2))
    assert notebook.told == [(1, 0.1), (2, 0.2)]


def test_one_that_is_down_is_told_of_once_and_gets_everything_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    down, notebook = Down(), Notebook()

    def steps(file: MetricsFile) -> None:
        append(1, 2)(file)
        wait_for(lambda: down.tries >= 3 and len(notebook.told) == 2)  # the others go on
        down.down = False
        wait_for(lambda: len(down.told) == 2)
        append(3)(file)

    with caplog.at_level(logging.INFO):
        run(tmp_path, {"down": down, "x": notebook}, steps)
    assert down.told == notebook.told == [(1, 0.1), (2, 0.2), (3, 0.3)]
    said = [entry.getMessage() for entry in caplog.records if "tracker down" in entry.getMessage()]
    assert len(said) == 2
    assert "fails (nobody is there): the run goes on without it" in said[0]
    assert "answers again" in said[1]


def test_one_that_stays_down_costs_the_run_nothing(tmp_path: Path) -> None:
    down = Down()
    run(tmp_path, {"down": down}, append(1, 2))
    assert (down.told, down.closed) == ([], [])
    later = Notebook()
    run(tmp_path, {"down": later}, append())
    assert later.told == [(1, 0.1), (2, 0.2)]


def test_one_that_hangs_holds_the_end_for_its_deadline_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notebook, began = Notebook(), time.monotonic()
    run(tmp_path, {"hanging": Hanging(), "x": notebook}, append(1), end_seconds=0.5)
    assert time.monotonic() - began < 20
    assert notebook.told == [(1, 0.1)]
    assert "tracker hanging has not finished within 0.5 s: it has the records up to step 0" in caplog.text


def test_an_error_of_the_run_is_passed_on_and_told(tmp_path: Path) -> None:
    notebook = Notebook()

    def break_down(file: MetricsFile) -> None:
        append(1)(file)
        raise RuntimeError("the run broke")

    with pytest.raises(RuntimeError, match="the run broke"):
        run(tmp_path, {"x": notebook}, break_down)
    assert (notebook.told, notebook.closed) == ([(1, 0.1)], [False])


def test_the_place_is_on_disk_after_each_step(tmp_path: Path) -> None:
    run(tmp_path, {"x": Notebook()}, append(1, 2))
    assert Place(**json.loads((tmp_path / "trackers" / "x.json").read_text())) == Place("my-run-id", 2)
