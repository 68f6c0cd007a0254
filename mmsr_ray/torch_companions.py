"""Lets transformers and vLLM import beside a CPU build of torch, whose companions on PyPI are built for CUDA.

Invariant: where a companion's compiled part loads, where the companion is absent and where torch is a CUDA build, this
module changes nothing.

- torchvision: the processor of Qwen2.5-VL insists on it, but without its compiled part the import dies with
  `operator torchvision::nms does not exist`. Its Python part is all that is needed, so the two operators that it
  names at import are declared. They get no kernel: calling one raises, and nothing here calls them.
- torchaudio, torchcodec: nothing here needs them, but transformers and vLLM import them wherever they are installed,
  and that import dies with an OSError. An empty module takes their place. (Not `sys.modules[name] = None`:
  transformers may have found torchaudio installed before torch came in, and then insists on importing it.)

All of this must happen in every process before transformers is imported, vLLM's subprocesses included, so `mend` is
an entry point of the group `torch.backends`: torch calls it at the end of its own import. Hence it imports nothing but
torch, and costs a few milliseconds. What it cannot reach is a process that imports torchaudio before torch.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_UNNEEDED = {"torchaudio": "lib/_torchaudio*.so", "torchcodec": "libtorchcodec_image*.so"}
_declared: torch.library.Library | None = None  # the declarations live as long as this object


def mend() -> None:
    """Declare torchvision's operators and put empty modules for the unneeded ones, each only if it is here and its compiled part is not."""
    global _declared
    if torch.version.cuda is not None:
        return
    if _declared is None and _broken("torchvision", "_C*.so"):
        _declared = torch.library.Library("torchvision", "DEF")
        for schema in _OPERATORS:
            _declared.define(schema)
    for package, library in _UNNEEDED.items():
        if package not in sys.modules and _broken(package, library):
            empty = ModuleType(package, f"Empty: the {package} installed here is built for another torch.")
            empty.__spec__ = ModuleSpec(package, None)
            sys.modules[package] = empty


def _broken(package: str, libraries: str) -> bool:
    """Is `package` installed with compiled parts (a glob inside it) of which none loads?"""
    spec = importlib.util.find_spec(package)  # finds without importing
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob(libraries)):
        try:
            torch.ops.load_library(str(library))
        except OSError:  # built for another torch
            continue
        return False
    return True
