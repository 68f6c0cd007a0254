"""Where the files of a benchmark lie: a path, `data.benchmarks_dir`, or the hub, in this order.

Promise: names of tables that exist, or a `DataError` that says where they can be put. The hub is asked only for sets that are not
here; what it gave is kept in its own cache (HF_HOME), and HF_ENDPOINT and HF_TOKEN are its own variables.
"""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
from huggingface_hub import snapshot_download

from mmsr_ray.data.schema import DataError
from mmsr_ray.data.tables import ENDINGS
from mmsr_ray.evaluation.benchmarks.published import Published


def tables_at(path: str, main: str = "") -> list[str]:
    """Tables of a file, a folder or a glob, sorted. A folder that holds the file `main` means it alone. Raises DataError."""
    try:
        filesystem, root = fsspec.core.url_to_fs(path)
        if main and filesystem.isfile(f"{root}/{main}"):
            found = [f"{root}/{main}"]
        elif filesystem.isdir(root):
            found = _one_kind([str(name) for name in filesystem.find(root)])
        else:
            found = [str(name) for name in filesystem.glob(root)] if any(mark in root for mark in "*?[") else [root]
            found = [name for name in found if filesystem.isfile(name)]
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot open {path} ({error}): name a parquet, JSONL or JSON file, or a folder of them") from error
    if not found:
        raise DataError(f"there is nothing at {path}: name a parquet, JSONL or JSON file, or a folder of them")
    return sorted(str(filesystem.unstrip_protocol(name)) if "://" in path else name for name in found)


def tables_of(published: Published, folder: str) -> list[str]:
    """Tables of a published set, out of `folder` (data.benchmarks_dir, "": none) or from the hub. Raises DataError."""
    main = published.files[0]
    for candidate in [published.name, *(published.name + ending for ending in ENDINGS)] if folder else []:
        if os.path.exists(os.path.join(folder, candidate)):
            return tables_at(os.path.join(folder, candidate), main)
    here = f"put its files into data.benchmarks_dir/{published.name}, or name them: {published.name}=PATH"
    if not published.repository:
        raise DataError(f"{published.name} is on no hub: {published.get} ({published.source}), then {here}")
    try:
        snapshot = snapshot_download(
            published.repository, repo_type="dataset", revision=published.revision, allow_patterns=list(published.files)
        )
    except Exception as error:  # the hub's client raises errors of its own, of its HTTP client and of the system
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"the hub does not give {published.repository} ({why}): try again, set HF_TOKEN where it asks for one, or {here}"
        ) from error
    if not (Path(snapshot) / main).is_file():
        raise DataError(f"{published.repository} has no {main} on the hub any more: {here}")
    return [str(Path(snapshot) / main)]


def _one_kind(names: list[str]) -> list[str]:
    """The tables of a folder: parquet where there is any, else JSON lines, else JSON."""
    for ending in ENDINGS:
        found = [name for name in names if name.endswith(ending)]
        if found:
            return found
    return []
