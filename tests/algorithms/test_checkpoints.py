"""Checkpoint folders: kept by count, taken only whole, told apart from another run's. The learner's part is two files here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from mmsr_ray.algorithms import checkpoints
from mmsr_ray.algorithms.checkpoints import CheckpointError, folder_of, read_settings, read_state, same_run, usable
from mmsr_ray.algorithms.compatible import changes, refusal
from mmsr_ray.config import load, to_dict
from mmsr_ray.learner.durable import FolderWriter, NotWritten, complaint, replace_folder, write_manifest

SETTINGS = to_dict(load(None, ["model.path=m", "data.train=a", "data.test=b"]))


class Learners:
    """Writes as the ranks do."""

    def __init__(self, size: int = 1000) -> None:
        self.size = size

    def save(self, folder: Path, extra: dict[str, bytes]) -> None:
        writer = FolderWriter(Path(f"{folder}.partial"))
        writer.make_folder(folder.with_name(folder.name + ".partial"))
        for name, content in {"shard_0.pt": bytes(self.size), **extra}.items():
            writer.write(Path(f"{folder}.partial", name), content)
        write_manifest(Path(f"{folder}.partial"), writer.report.files)
        replace_folder(Path(f"{folder}.partial"), folder)


def state_of(folder: Path, step: int) -> dict[str, Any]:
    return {"step": step, "learner": str(folder_of(folder, step)), "settings": SETTINGS, "feeder": {"epoch": step}}


def save(folder: Path, step: int, keep: int = 2, size: int = 1000) -> dict[str, Any]:
    state = state_of(folder, step)
    checkpoints.save(Learners(size), folder_of(folder, step), state, keep=keep)  # type: ignore[arg-type]
    return state


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept_and_what_a_kill_left_is_cleared(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step_00000002.partial").mkdir()
    for step in (2, 3, 4, 5):
        save(tmp_path, step)
    assert names(tmp_path) == ["step_00000003", "step_00000004", "step_00000005"]
    assert read_state(tmp_path / "step_00000004") == state_of(tmp_path, 4)
    assert read_settings(tmp_path / "step_00000004") == SETTINGS


def test_a_whole_checkpoint_is_taken_as_it_is(tmp_path: Path) -> None:
    state = save(tmp_path, 3)
    assert usable(state, complaint) is state
    start = {"step": 0, "learner": None}
    assert usable(start, lambda folder: "never asked") is start


def test_a_checkpoint_cut_short_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        newest = save(tmp_path, step)
    (tmp_path / "step_00000003" / "shard_0.pt").write_bytes(bytes(10))
    with caplog.at_level(logging.ERROR):
        assert usable(newest, complaint) == state_of(tmp_path, 2)
    assert "step_00000003 is cut short: shard_0.pt has 10 of its 1,000 bytes: training goes on" in caplog.text
    (tmp_path / "step_00000002" / "shard_0.pt").unlink()
    assert usable(newest, complaint)["step"] == 1
    (tmp_path / "step_00000001" / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"shard_0\.pt has 10 of its 1,000 bytes; no whole checkpoint is left before it in .*start a run of"
    ):
        usable(newest, complaint)


def test_a_checksum_that_is_wrong_counts_as_well_and_a_moved_run_goes_on(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path / "old", step)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = read_state(tmp_path / "new" / "step_00000003")
    found = usable(moved, lambda folder: "damaged" if folder.name != "step_00000001" else "")
    assert (found["step"], found["learner"]) == (1, str(tmp_path / "new" / "step_00000001"))


def test_a_disk_that_will_not_take_it_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, size=3 << 20)
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: 1 << 20)
    with pytest.raises(NotWritten, match=r"step_00000002 was not written: it needs about 3\.0 MiB and 1\.0 MiB are free there: make room$"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001"]
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: 4 << 20)
    save(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def changed(**values: Any) -> dict[str, Any]:
    made = to_dict(load(None, ["model.path=m", "data.train=a", "data.test=b", *(f"{k.replace('__', '.')}={v}" for k, v in values.items())]))
    assert made != SETTINGS
    return made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grpo__group_size": 4}, "grpo.group_size was 8 and is 4"),
        ({"grpo__groups_per_step": 128}, "grpo.groups_per_step was 512 and is 128"),
        ({"run__seed": 3}, "run.seed was 0 and is 3"),
        ({"grpo__loss__preset": "gspo"}, "grpo.loss.preset was 'grpo' and is 'gspo'"),
        ({"learner__lora__rank": 8}, "learner.lora.rank was 0 and is 8"),
        ({"reward__search_penalty": 0.5}, "reward.search_penalty was 0.1 and is 0.5"),
        ({"agent__topk": 3}, "agent.topk was 5 and is 3"),
    ],
)
def test_another_run_is_refused_with_the_difference(change: dict[str, Any], said: str) -> None:
    now = changed(**change)
    assert refusal(SETTINGS, now) == f"the checkpoint is of another config: {said}; set it as it was, or start a run of another name"
    with pytest.raises(CheckpointError, match="of another config"):
        same_run({"step": 3, "settings": SETTINGS}, now)


def test_what_may_change_is_told_and_places_and_prices_are_not(caplog: pytest.LogCaptureFixture) -> None:
    now = changed(grpo__steps=100, rollout__num_runners=4, data__train="moved", tools__budget_usd=5, run__dir="elsewhere")
    assert refusal(SETTINGS, now) == ""
    assert changes(SETTINGS, now) == "data.train was 'a' and is 'moved', grpo.steps was 50 and is 100, rollout.num_runners was 1 and is 4"
    with caplog.at_level(logging.WARNING):
        same_run({"step": 3, "settings": SETTINGS}, now)
    assert "since the checkpoint of step 3 data.train was" in caplog.text
    caplog.clear()
    same_run({"step": 3, "settings": SETTINGS}, SETTINGS)
    assert not caplog.text
