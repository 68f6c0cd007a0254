"""How DeepSpeed's checkpoint files reach the disk: with checksums, and without an exception between its barriers.

Promise: `save` never raises for want of space. DeepSpeed saves between collectives, so a rank that raised there would
leave the others waiting for it; here the error is kept in the report, and all ranks look at all reports afterwards. Neither way holds the
weights once for each rank in host memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from mmsr_ray.learner.consolidate import PLAIN, TAG
from mmsr_ray.learner.durable import PARTIAL, DurableFile, FolderWriter, Report, merged, replace_folder, write_manifest
from mmsr_ray.learner.reference import FILE as REFERENCE


class ShardWriter(CheckpointEngine):
    """DeepSpeed's plug for writing and reading checkpoint files. `begin` a folder, let DeepSpeed save, then see `report`."""

    def __init__(self, *, map_weights: bool = False) -> None:
        """`map_weights`: the file of the whole weights is mapped as it is loaded, so that ranks of one node share it. Only where it holds
        nothing that outlives `load`: what DeepSpeed does not copy from it would lie in a file that is removed later.
        """
        super().__init__()
        self.name = "ShardWriter"
        self._map_weights = map_weights
        self._writer: FolderWriter | None = None

    @classmethod
    def plug_into(cls, engine: Any) -> ShardWriter:
        """Make a DeepSpeed engine save through a new writer."""
        engine.checkpoint_engine = cls(map_weights=engine.zero_optimization())  # without ZeRO the optimiser's states lie there too
        engine._copy_recovery_script = lambda folder: None  # of no use beside `algorithms.export`, and it raises on a full disk
        engine._get_param_fragment_func = _frozen_part
        return engine.checkpoint_engine

    def begin(self, folder: Path) -> FolderWriter:
        """Forget the last report; everything until the next call belongs to `folder`."""
        self._writer = FolderWriter(folder)
        return self._writer

    @property
    def writer(self) -> FolderWriter:
        if self._writer is None:
            raise RuntimeError("call begin before DeepSpeed saves")
        return self._writer

    @property
    def report(self) -> Report:
        return self.writer.report

    def save(self, state_dict: Any, path: str) -> None:
        file = DurableFile(Path(path))
        torch.save(state_dict, file)  # type: ignore[arg-type]  # it needs write and flush only
        self.writer.close(Path(path), file)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.writer.make_folder(Path(path))

    def load(self, path: str, map_location: Any = None) -> Any:
        mapped = self._map_weights and Path(path).name == PLAIN
        return torch.load(path, map_location=map_location, weights_only=False, mmap=mapped)

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def commit(self, info: CheckpointCommitInfo) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] (what DeepSpeed's own return)
        return True


def _frozen_part(parameter: Any) -> torch.Tensor:
    """What a checkpoint holds of a weight that does not learn: the weight, or this rank's part of it under ZeRO-3.

    DeepSpeed's own copies all whole ones from the card to the host, on every rank, though rank 0 alone writes them, and into its file a second time.
    """
    return parameter.ds_tensor.detach().cpu() if hasattr(parameter, "ds_id") else parameter.detach()


def save_shards(
    engine: Any,
    shards: ShardWriter,
    final: Path,
    attempt: str,
    rank: int,
    mine: Mapping[str, Any],
    reference: Mapping[str, torch.Tensor],
    extra: Mapping[str, bytes],
) -> Report:
    """Write the checkpoint folder `final`, all ranks together. `mine` is this rank's own state, `reference` and `extra` are rank 0's.
    `attempt` is a word of this call alone, in the name of the folder until it is whole: ranks that were replaced, and live on where
    nobody can reach them, write to another.

    Rank 0's report is on all files. Its error means that nothing is there under that name but what was there before.
    """
    partial = final.with_name(f"{final.name}.{attempt}{PARTIAL}")
    files = shards.begin(partial)
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        files.make_folder(partial)
    dist.barrier()
    engine.save_checkpoint(str(partial), tag=TAG, save_latest=False)
    shards.save(dict(mine), str(partial / _own(rank)))
    if rank == 0:
        if reference:
            shards.save(dict(reference), str(partial / REFERENCE))
        for name, content in extra.items():
            files.write(partial / name, content)
    reports: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, files.report)
    whole = merged(reports)
    if rank == 0:
        _finish(whole, partial, final)
    dist.barrier()
    return whole


def _finish(report: Report, partial: Path, final: Path) -> None:
    """Manifest and name, or nothing."""
    if not report.error:
        try:
            write_manifest(partial, report.files)
            replace_folder(partial, final)
        except OSError as error:
            last = FolderWriter(partial)
            last.note(error)
            report.error, report.full = last.report.error, last.report.full
    if report.error:
        shutil.rmtree(partial, ignore_errors=True)


def load_own(folder: Path, rank: int) -> dict[str, Any]:
    """The `mine` that this rank saved."""
    return torch.load(folder / _own(rank), weights_only=False)


def _own(rank: int) -> str:
    return f"rank_{rank}.pt"
