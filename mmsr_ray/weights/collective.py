"""A version's way from the learner's rank 0 straight into engines' memory: NCCL between cards, gloo between hosts. Pure torch.distributed.

Promise: nobody waits for another, or for the next tensor, for longer than the meeting's seconds. Whatever goes wrong between members, one that
never came or one that died half way, is a CollectiveFailed on every side, at the sender also where one receiver alone fell out, and the group
is of no use afterwards. Who fell out takes the version from the object store, where it always goes as well; so this way may fail at any
time, and nothing is lost.

Rank 0 of a group sends, all others receive. Tensors go one by one, as bytes; name, dtype and shape of each go ahead of it through the
TCP store that rank 0 serves, which also says when a transfer ends or was given up.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

END, GIVEN_UP = "end", "given up"
POLL_SECONDS = 5e-5  # between looks at a transfer between cards


class CollectiveFailed(RuntimeError):
    """A transfer did not come about, or broke."""


@dataclass(frozen=True)
class Meeting:
    """Where a group forms: the address of rank 0's TCP store, and how many members there are, rank 0 included.

    A member waits for another for at most `seconds`.
    """

    key: str  # another one for each group
    host: str
    port: int
    size: int
    seconds: float


@dataclass(frozen=True)
class Invitation:
    """For one engine: which transfer to receive, in which group, and the rank in it of the engine's first worker."""

    meeting: Meeting
    first_rank: int
    transfer: str


def open_store(host: str, seconds: float) -> dist.TCPStore:
    """Rank 0's store, on a free port of its own machine; it ends with the last reference to it."""
    return dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=seconds))


class Group:
    """One member's end of a group. Construction waits for all members. Raises CollectiveFailed.

    `host` is the address of this member's own machine, at which others reach it; `store` is rank 0's own.
    """

    def __init__(self, meeting: Meeting, rank: int, device: torch.device, *, host: str, store: dist.TCPStore | None = None) -> None:
        self.key = meeting.key
        self._device, self._seconds = device, meeting.seconds
        limit = timedelta(seconds=meeting.seconds)
        try:
            tcp = store or dist.TCPStore(meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=limit)
            self._store = dist.PrefixStore(meeting.key, tcp)
            # before any member enters NCCL's own rendezvous, which cannot be left again
            self._store.set(f"here/{rank}", "")
            self._store.wait([f"here/{other}" for other in range(meeting.size)], limit)
            self._backend = _backend(dist.PrefixStore("group", self._store), rank, meeting.size, device, host, limit)
            self._form()
        except RuntimeError as error:
            raise CollectiveFailed(f"a group of {meeting.size} did not come together within {meeting.seconds:.0f} s: {error}") from error
        self._rank, self._others = rank, [other for other in range(meeting.size) if other != rank]
        self._written: list[str] = []  # the last transfer's headers

    def _form(self) -> None:
        """A first broadcast, in which NCCL's members find each other: it has no deadline, so that a thread waits for it in our place."""
        errors: list[RuntimeError] = []

        def first() -> None:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # a thread begins on card 0, whoever started it
            try:
                self._backend.broadcast(torch.zeros(1, dtype=torch.uint8, device=self._device), 0).wait()
            except RuntimeError as error:
                errors.append(error)

        waiting = threading.Thread(target=first, name="form", daemon=True)
        waiting.start()
        waiting.join(self._seconds)
        if waiting.is_alive():
            raise CollectiveFailed("a member left while the group formed")
        if errors:
            raise errors[0]

    def send(self, transfer: str, named_tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None) -> int:
        """Rank 0's side: floating tensors in `dtype`, others and with None all as they are. Returns the bytes sent, once all have them.

        A tensor need not live longer than until the next one is asked for.
        """
        self._forget_last()
        sent = 0
        try:
            for name, tensor in named_tensors:
                target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                data = tensor.detach().to(self._device, target).contiguous()
                self._tell(transfer, [name, str(target).removeprefix("torch."), list(tensor.shape)])
                self._broadcast(data.reshape(-1).view(torch.uint8))
                sent += data.numel() * data.itemsize
            self._tell(transfer, END)
        except BaseException:
            self._tell(transfer, GIVEN_UP)
            raise
        self._hear_out(transfer)
        return sent

    def receive(self, transfer: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The others' side: tensors in the order they were sent, each in memory of its own."""
        number = 0
        while (header := self._told(f"{transfer}/{number}")) != END:
            if header == GIVEN_UP:
                raise CollectiveFailed("the sender gave the transfer up")
            name, dtype, shape = header
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)
            self._broadcast(tensor.reshape(-1).view(torch.uint8))
            yield name, tensor
            number += 1
        self._store.set(_got(transfer, self._rank), "")

    def close(self) -> None:
        """Leave. Others notice at their next transfer."""
        self._backend.abort()

    # ------------------------------------------------------------------------------------------------ inside

    def _tell(self, transfer: str, what: Any) -> None:
        """The next header."""
        key = f"{transfer}/{len(self._written)}"
        try:
            self._store.set(key, json.dumps(what))
        except RuntimeError as error:
            raise CollectiveFailed(f"the store of the group broke: {error}") from error
        self._written.append(key)

    def _hear_out(self, transfer: str) -> None:
        """Until every receiver has said that it has all."""
        answers = [_got(transfer, other) for other in self._others]
        try:
            self._store.wait(answers, timedelta(seconds=self._seconds))
        except RuntimeError as error:
            raise CollectiveFailed(f"not every receiver has got all of it: {error}") from error
        self._written += answers

    def _told(self, key: str) -> Any:
        try:
            return json.loads(self._store.get(key))
        except RuntimeError as error:
            raise CollectiveFailed(f"the sender was not heard of for {self._seconds:.0f} s: {error}") from error

    def _forget_last(self) -> None:
        """Headers would add up from version to version; whoever has not read the last transfer's by now has fallen out."""
        for key in self._written:
            self._store.delete_key(key)
        self._written = []

    def _broadcast(self, data: torch.Tensor) -> None:
        try:
            work = self._backend.broadcast(data, 0)
            if self._device.type == "cuda":
                self._watch(work)
            work.wait(timedelta(seconds=self._seconds))  # with a limit NCCL's raises what ended it; without one it would not
        except RuntimeError as error:
            self.close()
            raise CollectiveFailed(f"a member was lost: {error}") from error

    def _watch(self, work: Any) -> None:
        """Until a transfer between cards is through: a wait for NCCL has no end where a member died."""
        deadline = time.monotonic() + self._seconds
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise CollectiveFailed(f"no progress for {self._seconds:.0f} s")
            time.sleep(POLL_SECONDS)


def _got(transfer: str, rank: int) -> str:
    return f"{transfer}/got/{rank}"


def _backend(store: dist.Store, rank: int, size: int, device: torch.device, host: str, limit: timedelta) -> Any:
    """A process group that is not torch's default one: a rank's own, and an engine's, stay as they are."""
    if device.type == "cuda":
        settings: Any = dist.ProcessGroupNCCL.Options()
        settings._timeout = 10 * limit  # `_watch` comes first
        with _watchdog_lets_live():
            return dist.ProcessGroupNCCL(store, rank, size, settings)
    gloo: Any = dist.ProcessGroupGloo
    settings = gloo._Options()
    settings._timeout = limit
    settings._devices = [gloo.create_device(hostname=host)]  # else what the host's name stands for: often 127.0.0.1
    return gloo(store, rank, size, settings)


@contextmanager
def _watchdog_lets_live() -> Iterator[None]:
    """A group made inside does not end its process when a member is lost, as torch would have it. Others keep what is set for them."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
