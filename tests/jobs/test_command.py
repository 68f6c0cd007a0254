"""The command line of a job: whose word counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs import command
from mmsr_ray.config import Config


@pytest.mark.parametrize(
    ("file", "arguments", "folder"),
    [
        ("", [], "/made/by/make"),
        ("run: {dir: /shared/runs}", [], "/shared/runs"),  # as the README has it
        ("run: {dir: /shared/runs}", ["run.dir=/said/last"], "/said/last"),
        ("run: {dir: ''}", [], ""),
    ],
)
def test_a_default_gives_way_to_the_file_and_both_to_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, arguments: list[str], folder: str
) -> None:
    """What make says of run.dir is for files that say nothing of it."""
    (tmp_path / "mine.yaml").write_text(f"{file}\nmodel: {{path: m}}\ndata: {{train: a, test: b}}\n")
    seen: list[str] = []

    def job(config: Config) -> Path:
        seen.append(config.run.dir)
        return tmp_path

    monkeypatch.setattr(command, "connect", lambda config: None)
    monkeypatch.setattr(sys, "argv", ["job", "--config", str(tmp_path / "mine.yaml"), "--default", "run.dir=/made/by/make", *arguments])
    assert command.run_job("job", None, job) == 0
    assert seen == [folder]


def test_a_default_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["job", "--default", "run.dri=/runs"])
    assert command.run_job("job", None, lambda config: tmp_path) == command.TO_MEND
