"""A version's way to an engine on the same card: the learner's own memory, opened by the engine's process (CUDA IPC). Pure torch.

Promise: no byte of a weight is copied on the way; the engine's one copy is that into its own layers. What is opened shows the learner's
memory as it is at that moment, so the learner must neither train nor move its weights until the engine has let go of it.

On a CPU the same calls share host memory: the weights move to shared memory when they are first offered, once.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing


def complaint(environment: Mapping[str, str]) -> str:
    """Why a card's memory cannot be shared under these variables, in one sentence; "" when it can."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if "expandable_segments:true" in environment.get(name, "").lower():
            return f"learner.transport=ipc cannot share memory in expandable segments: take expandable_segments out of {name}"
    return ""


def offer(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> bytes:
    """Handles of tensors by name, a few hundred bytes each, to be opened by one process, once. The tensors must outlive it.

    A card's memory whose handles are never opened is not given back before its process ends.
    """
    torch.multiprocessing.set_sharing_strategy("file_system")  # of host memory: by name, so that a process that is no child can open it
    return bytes(ForkingPickler.dumps([(name, tensor.detach()) for name, tensor in named_tensors]))


def opened(handles: bytes) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors behind an offer, where they lie: read them, never write to them, and keep none. Trust whoever made the offer."""
    yield from pickle.loads(handles)


def let_go() -> None:
    """Both sides, once the tensors are gone: memory that was shared between processes is given back to the card."""
    if torch.cuda.is_available():
        torch.cuda.ipc_collect()
