"""A model folder that transformers and vLLM load: weights as safetensors, every other file of the base model beside them.

Promise: the folder appears whole or not at all, and one that it replaces stays until then.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import SafetensorError

from mmsr_ray.learner.durable import FULL, Report, Written, not_written, replace_folder

SIDE_FILES = ("*.json", "*.txt", "*.jinja", "*.model")  # tokenizer, processor, chat template, configs


def local_folder(model_path: str) -> Path:
    """The folder of a model given by folder or hub id; only the small files are fetched."""
    path = Path(model_path)
    return path if path.is_dir() else Path(snapshot_download(model_path, allow_patterns=list(SIDE_FILES)))


def write_model(folder: Path, base: Path, weights: dict[str, torch.Tensor], dtype: str, extra: Mapping[str, bytes] | None = None) -> None:
    """`weights` by checkpoint name, on the CPU; `extra` are further files. Raises NotWritten; then nothing of it is left."""
    partial = Path(f"{folder}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file in (file for pattern in SIDE_FILES for file in base.glob(pattern)):
            if not file.name.endswith(".index.json"):
                shutil.copy2(file, partial / file.name)
        save_torch_state_dict(weights, partial)
        config = json.loads((partial / "config.json").read_text())
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        for name, content in (extra or {}).items():
            (partial / name).write_bytes(content)
        replace_folder(partial, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        raise not_written(folder, Report({"weights": Written(needed, 0)}, _reason(error), _number(error) in FULL)) from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _number(error: Exception) -> int | None:
    """The errno; safetensors tells it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found.group(1)) if found else None
