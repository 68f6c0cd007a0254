"""Numbers of a run to the tools that draw them. TensorBoard is always written; metrics.jsonl is the algorithm's own.

Promise: nested records are flattened with `/`, only finite numbers are passed on, and after a resume the steps that are
done again replace what was drawn of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

FOLDER = "tensorboard"


class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files under `folder`/tensorboard; those of earlier attempts stay and are superseded from `first_step` on."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports TensorBoard, which takes seconds

        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=first_step or None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


KINDS = {"tensorboard": TensorBoardTracker}


class Trackers:
    """Every tracker that `config.run.trackers` names, and TensorBoard. Raises ValueError for a name nobody knows."""

    def __init__(self, names: Sequence[str], folder: Path, first_step: int = 0) -> None:
        unknown = sorted(set(names) - KINDS.keys())
        if unknown:
            raise ValueError(f"run.trackers names {', '.join(unknown)}: choose from {', '.join(KINDS)}")
        self._trackers: list[Tracker] = [KINDS[name](folder, first_step) for name in dict.fromkeys(["tensorboard", *names])]

    def log(self, step: int, record: Mapping[str, Any], prefix: str = "") -> None:
        """`record` may nest mappings and hold what is no number; `prefix` such as "sft/" goes before every name."""
        values = {prefix + name: value for name, value in flatten(record)}
        for tracker in self._trackers:
            tracker.log(step, values)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of every finite number in a nested mapping; `step` itself is no value."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and math.isfinite(value) and prefix + key != "step":
            yield prefix + key, float(value)
