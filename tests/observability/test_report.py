"""The report is whole without scripts, shows what the files hold, escapes what it did not write, and says what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mmsr_ray.config import load
from mmsr_ray.evaluation.summary import write_summary
from mmsr_ray.evaluation.trajectories import read_trajectories, write_trajectories
from mmsr_ray.observability.browse import write_browser
from mmsr_ray.observability.curves import column, curves, smooth
from mmsr_ray.observability.pictures import data_uri
from mmsr_ray.observability.report import choose, newest_episodes, write_report
from mmsr_ray.types import Need
from tests.observability.episodes import ATTACK, Tags, episode, png, searching


def record(step: int) -> dict[str, object]:
    return {
        "step": step,
        "reward": 0.01 * step,
        "accuracy": 0.4,
        "by_need": {"image_required": 1.0},
        "length_mean": 160.0,
        "seconds": {"rollout": 2.4, "generate": 1.2, "tools": 0.9, "idle": 0.3, "learn": 1.0, "sync": 0.1, "total": 3.5},
        "kl": None,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    rows = [
        {"name": "on demand" + ATTACK, "split": "test", "questions": 96, "accuracy": 0.71, "accuracy_low": 0.6, "accuracy_high": 0.8,
         "search_ratio_calls": 0.42, "search_ratio_responses": 0.7, "searches_per_question": 0.84, "search_precision": None, "search_recall": 0.9,
         "needed_search_ratio": 0.4, "by_need": {"mix_required": {"accuracy": 0.5, "searches_per_question": 1.9}},
         "paths": {"none": {"share": 0.31, "accuracy": 0.9}, "image": {"share": 0.0, "accuracy": None},
                   "text": {"share": 0.0, "accuracy": None}, "both": {"share": 0.69, "accuracy": 0.62}}}
    ]  # fmt: skip
    config = load(None, ["run.name=my-run", "model.path=m", "data.train=a", "data.test=b"])
    write_summary(folder, config=config, seconds={"warm start": 360.0, "train": 900.0}, rows=rows)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in range(1, 61)))
    pairs = [searching("q0"), episode("q1", Need.SEARCH_FREE, False, picture=b"no picture"), episode("q2", Need.IMAGE, True)]
    write_trajectories(folder / "trajectories" / "after_on_demand.parquet", pairs, split="test")
    write_trajectories(folder / "trajectories" / "step_000060.parquet", [episode("train", Need.TEXT, True)], split="train", step=60)
    return folder


def test_report_is_inert_and_complete(run: Path) -> None:
    page = write_report(run).read_text()
    parsed = Tags(page)
    assert "script" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert {value for name, value in parsed.attributes if name == "href" and value and not value.startswith("#")} == {
        "https://ada.example/a"
    }
    assert all((value or "").startswith("data:image/") for name, value in parsed.attributes if name == "src")
    assert page.count("<article") == 3
    assert parsed.tags.count("svg") == 4
    assert len(re.findall(r'<img src="data:image/png', page)) == 3  # two questions' pictures and one thumbnail
    for words in (
        "71.0 %",
        "60.0 % to 80.0 %",
        "15 min 00 s",
        "Where a step&#39;s time goes",
        "The picture cannot be shown",
        "timeout: 10 s",
        "50.0 %",
        "31.0 %",
    ):
        assert words in page
    assert "Who is train?" not in page  # the evaluation is shown, not a training step


TOOLS = {
    "steps": 7,
    "stopped": "budget",
    "budget_usd": 2.0,
    "spent_usd": 1.98,
    "kinds": {"image_search": "serpapi_lens"},
    "calls": [
        {"tool": "image", "calls": 800, "cached": 700, "partial": 8, "failures": {"timeout": 3}, "seconds": {"p50": 0.01, "p95": 1.2, "p99": None}}
    ],
    "providers": [
        {"service": "image_search", "wanted": 800, "cache_hits": 600, "joined": 100, "requests": 110, "failures": {"rate_limited": 10},
         "breaker_opened": 1, "seconds": {"p50": 0.9, "p95": 2.0, "p99": 3.0}, "cost_usd": 1.0}
    ],
    "saving": {"searches": {"image searches": {"asked": 800, "paid": 100}}, "saved_usd": 7.0},
}  # fmt: skip


def test_what_the_tools_did_and_cost(run: Path) -> None:
    assert "Search tools" not in write_report(run).read_text()
    (run / "tools.json").write_text(json.dumps(TOOLS))
    page = write_report(run).read_text()
    for words in (
        "Of 800 image searches 100 reached the service",
        "that saved 7.00 USD",
        "<b>1.98 USD</b> of a budget of 2.00 USD",
        "pauses after step 7",
        "87.5 %",
        "10 rate limited",
        "serpapi_lens",
        "3 timeout",
    ):
        assert words in page


def test_curves_of_the_tools() -> None:
    free = {"calls": 12.0, "searches_asked": 12.0, "searches_paid": 3.0, "seconds": {"text_p50": 0.4}, "cost_usd": 0.0, "saved_usd": 0.0}
    titles = [curve.title for curve in curves([{**record(step), "tools": free} for step in (1, 2)])]
    assert "Tool calls" in titles and "Seconds of a tool call" in titles
    assert "Cost of the tools" not in titles, "nothing has a price"
    paid = {**free, "cost_usd": 0.03}
    assert "Cost of the tools" in [curve.title for curve in curves([{**record(1), "tools": paid}])]


def test_an_unfinished_run_has_a_report_too(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text()
    for words in ("has not finished", "No training step", "No episodes were kept"):
        assert words in page


def test_training_episodes_where_nothing_was_evaluated(tmp_path: Path) -> None:
    for step in (9, 10):
        write_trajectories(
            tmp_path / "trajectories" / f"step_{step:06d}.parquet", [episode(f"s{step}", Need.TEXT, True)], split="train", step=step
        )
    source = newest_episodes(tmp_path / "trajectories")
    assert source is not None
    assert [e.uid for e in read_trajectories(source)] == ["s10"]


def test_chosen_episodes_differ(tmp_path: Path) -> None:
    pairs = [episode(f"f{i}", Need.SEARCH_FREE, True) for i in range(20)] + [episode("m", Need.MIX, False), episode("t", Need.TEXT, True)]
    write_trajectories(tmp_path / "e.parquet", pairs, split="test")
    shown = [e.uid for e in choose(read_trajectories(tmp_path / "e.parquet"), 4)]
    assert set(shown) == {"f0", "m", "t", "f1"}


def test_large_pictures_shrink_and_foreign_bytes_are_refused() -> None:
    small = data_uri(png((1, 2, 3), 1000), side=100)
    assert small is not None
    assert len(small) < 2_000
    assert data_uri(b"<svg onload=alert(1)>") is None
    assert data_uri(png((1, 2, 3))[:60]) is not None  # small ones pass unread: the browser shows what it can
    assert data_uri(None) is None


def test_curves_take_the_page_colour_and_leave_out_what_is_not_there() -> None:
    drawn = {curve.title: curve.svg for curve in curves([record(step) for step in range(1, 4)])}  # type: ignore[arg-type]
    assert "Reward and accuracy" in drawn
    assert "Distance and spread of the policy" not in drawn
    assert all("currentColor" in svg and "#010203" not in svg and svg.startswith("<svg") for svg in drawn.values())
    assert curves([]) == []


def test_steps_that_were_evaluated_make_a_curve_of_their_own() -> None:
    evaluation = {"on_demand": {"accuracy": 0.5, "search_ratio_calls": 0.25}, "best_accuracy": 0.5, "best_step": 2}
    records = [record(1), {**record(2), "evaluation": evaluation}, record(3), {**record(4), "evaluation": {"failed": 1.0}}]
    assert [curve.title for curve in curves(records)][:2] == ["Reward and accuracy", "Evaluated while training"]
    assert "Evaluated while training" not in [curve.title for curve in curves(records[2:])]


def test_the_parts_of_a_step_are_those_that_its_record_has() -> None:
    def labels(seconds: dict[str, float]) -> list[str]:
        drawn = {curve.title: curve.svg for curve in curves([{**record(1), "seconds": seconds}])}
        return [
            word
            for word in ("generate", "tools", "idle", "learn", "sync", "rollout", "other")
            if f">{word}<" in drawn["Where a step's time goes"]
        ]

    parts = {"generate": 1.2, "tools": 0.9, "idle": 0.3, "learn": 1.0, "sync": 0.1}
    assert labels({**parts, "total": 3.5}) == list(parts)
    assert labels({**parts, "total": 5.0}) == [*parts, "other"]
    assert labels({"rollout": 2.0, "learn": 1.0, "sync": 0.1, "generate": 0.4, "total": 3.5}) == ["learn", "sync", "rollout", "other"]


def test_the_browser_is_linked_where_it_is(run: Path) -> None:
    assert "browse/" not in write_report(run).read_text()
    write_browser(run)
    assert ("href", "browse/index.html") in Tags(write_report(run).read_text()).attributes


def test_smoothing_and_columns() -> None:
    assert smooth([1.0, None, 3.0, 5.0], 2) == [1.0, None, 2.0, 4.0]
    assert column([{"a": {"b": 1}}, {"a": None}, {}], "a", "b") == [1.0, None, None]
