"""The leaderboard as a page and in the terminal, through the command that a user gives."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mmsr_ray.evaluation.results import read_runs
from mmsr_ray.evaluation.standings import standings
from mmsr_ray.observability.leaderboard import show, write_leaderboard
from tests.evaluation.runs import answers, write_run
from tests.observability.episodes import ATTACK, Tags

GOOD, BAD = [(True, True)] * 30, [(False, False)] * 30


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(
            tmp_path / "ours",
            {("fvqa_test", "on_demand"): answers(GOOD), ("fvqa_test", "direct"): answers(BAD), ("livevqa", "on_demand"): answers(BAD)},
            model="[bold]ours" + ATTACK,
        ),
        write_run(tmp_path / "odd", {("fvqa_test", "rag"): answers(BAD)}, model="odd", overrides=["reward.match=subem"]),
        write_run(tmp_path / "few", {("fvqa_test", "rag"): answers(BAD)}, model="few", keep=5),
    ]


def test_the_page(runs: list[Path], tmp_path: Path) -> None:
    page = write_leaderboard(tmp_path / "out", standings(read_runs(runs))).read_text()
    parsed = Tags(page)
    assert "script" not in parsed.tags and "img" not in parsed.tags and not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "default-src 'none'" in page
    for words in (
        "<b>100.0</b> / 50.0",
        "−100.0",
        "significant",
        "&lt; 0.001",
        "other judge: reward.match",
        "(5 of 30)",
        "[bold]ours&lt;script",
        "<th>in-domain</th><th>out-of-domain</th>",
        "in-domain is fvqa_test, as in the paper",
    ):
        assert words in page, words


def test_the_terminal(runs: list[Path]) -> None:
    out = io.StringIO()
    show(standings(read_runs(runs)), Console(file=out, width=120))
    text = out.getvalue()
    for words in (
        "[bold]ours",
        "100.0 / 50.0*",
        "! odd, rag (odd) on fvqa_test: other judge",
        "points, p < 0.001",
        "tested differences are significant",
        "fvqa_test",
    ):
        assert words in text, text


def test_the_command(runs: list[Path], tmp_path: Path) -> None:
    def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "mmsr_ray.observability.leaderboard", *map(str, words), "--out", str(tmp_path / "out")]
        return subprocess.run(line, capture_output=True, text=True, timeout=60)

    done = command(*runs)
    assert done.returncode == 0 and "odd" in done.stdout and (tmp_path / "out" / "leaderboard.html").is_file(), done.stderr
    refused = command(tmp_path)
    assert refused.returncode == 2 and "summary.json is missing: name folders of runs that have finished" in refused.stderr


def test_no_runs_no_table(tmp_path: Path) -> None:
    assert "Nothing was measured." in write_leaderboard(tmp_path, standings([])).read_text()
