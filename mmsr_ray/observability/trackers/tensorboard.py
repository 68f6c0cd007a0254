"""TensorBoard: event files in the run folder. What is told of a step again supersedes what was drawn from there on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Event files under `folder`/tensorboard; those of earlier submissions stay and are superseded step by step."""

    supersedes = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._writer: Any = None  # of torch.utils.tensorboard
        self._last = 0

    def start(self, name: str, settings: Mapping[str, Any], run_id: str | None) -> str:
        return FOLDER

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None or step <= self._last:
            self._writer = self._open(step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._last = step

    def close(self, *, ok: bool) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, first_step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # imports TensorBoard, which takes seconds

        self.close(ok=True)
        self._pass_the_second_of_the_newest_file()
        return SummaryWriter(str(self._folder), purge_step=first_step)

    def _pass_the_second_of_the_newest_file(self) -> None:
        """TensorBoard reads files in the order of their names, which tell the second of their start and no less."""
        seconds = [int(path.name.split(".")[3]) for path in self._folder.glob("events.out.tfevents.*")]
        if seconds and max(seconds) == int(time.time()):
            time.sleep(1 - time.time() % 1 + 0.01)
