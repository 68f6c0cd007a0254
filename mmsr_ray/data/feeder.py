"""The actor that owns the prompt stream and hands out tickets, so that pictures never pass through the driver.

Promise: tickets leave in the order of the stream, each once; those handed back (`requeue`) leave again first, in order.
`state(in_flight)` is a place and a short list: a feeder restored from it hands out exactly the tickets in flight and then
the rest. Every call returns within its timeout; a broken stream is an error to the next caller, never a wait.
The samples belong to this actor: when it dies their references die, and a new one made from its state replaces it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmsr_ray.config import DataConfig
from mmsr_ray.data.images import ImageStore
from mmsr_ray.data.reader import rank, read_index
from mmsr_ray.data.schema import DataError
from mmsr_ray.data.stream import Place, PromptStream
from mmsr_ray.types import Ticket

logger = logging.getLogger(__name__)

Key = tuple[int, str]  # (epoch, uid)

POLL_SECONDS = 0.01  # between looks at an empty queue


class DataFeeder:
    """Prefetches `data.prefetch_samples` samples of the training set into the object store. Make it with `start_feeder`."""

    def __init__(self, path: str, config: DataConfig, seed: int, state: dict[str, Any] | None = None) -> None:
        """Raises DataError for an unusable set. Prefetching starts at once."""
        self._config = config
        self._seed = seed
        self._index = read_index(path, config)
        self._by_uid = {row.fields.uid: row for row in self._index.rows}
        self._images = ImageStore()
        self._lock = threading.Lock()
        self._again: list[Ticket] = []
        self._check(state or {})
        self._open(state or {})

    def next_tickets(self, k: int, timeout: float = 60.0) -> list[Ticket]:
        """At most `k` tickets: waits for the first up to `timeout` seconds, then takes what is there. Empty on timeout.

        Raises DataError when the stream has broken.
        """
        deadline, stream = time.monotonic() + timeout, self._stream
        while True:
            with self._lock:  # held only to take, so that `state` and `requeue` never wait for a picture
                if self._stream is not stream:  # restored meanwhile: nobody waits for this answer, and its tickets would be missing
                    return []
                tickets = self._take(k)
            if tickets or k <= 0 or time.monotonic() >= deadline:
                return tickets
            time.sleep(POLL_SECONDS)

    def _take(self, k: int) -> list[Ticket]:
        tickets = [self._with_sample(ticket) for ticket in self._again[:k]]
        del self._again[:k]
        while len(tickets) < k:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if isinstance(item, Exception):
                self._queue.put_nowait(item)  # for the next caller too
                if tickets:
                    break
                raise DataError(f"the prompt stream broke: {item}") from item
            tickets.append(item)
            self._next = Place(item.epoch, item.rank).after()
        return tickets

    def requeue(self, tickets: Iterable[Ticket]) -> None:
        """Take tickets back: they leave again before any other, in the order of the stream. Their sample may be absent."""
        with self._lock:
            merged = {(t.epoch, t.uid): t for t in (*self._again, *tickets)}
            self._again = sorted(merged.values(), key=_place)

    def state(self, in_flight: Iterable[Ticket | Key] = ()) -> dict[str, Any]:
        """Plain values for a checkpoint. `in_flight`: tickets (or their (epoch, uid)) handed out whose work is not yet done.

        {"seed", "epoch", "rank": the first place not yet handed out, "again": [(epoch, uid)] to be handed out before it}.
        """
        with self._lock:
            keys = {(t.epoch, t.uid) if isinstance(t, Ticket) else (t[0], t[1]) for t in (*in_flight, *self._again)}
            return {"seed": self._seed, "epoch": self._next.epoch, "rank": self._next.rank, "again": sorted(keys)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`, or from any {"epoch", "rank"} of a ticket, which then comes first.

        Raises DataError when the state belongs to another seed or to questions that this set lacks.
        """
        self._check(state)
        with self._lock:
            self._close()
            self._open(state)

    def stats(self) -> dict[str, int]:
        """Questions in the set, tickets that wait, bad rows by kind ("bad: <kind>")."""
        bad = [*self._index.bad.counts.items(), *self._stream.bad.counts.items()]
        counts = {"questions": len(self._index.rows), "waiting": self._queue.qsize() + len(self._again)}
        for kind, count in bad:
            counts[f"bad: {kind}"] = counts.get(f"bad: {kind}", 0) + count
        return counts

    def ping(self) -> bool:
        return True

    # ------------------------------------------------------------------------------------------------ the producer

    def _check(self, state: dict[str, Any]) -> None:
        if state.get("seed", self._seed) != self._seed:
            raise DataError(f"the checkpoint's data order has seed {state['seed']}, this run has {self._seed}: set run.seed to the former")
        lost = [uid for _, uid in state.get("again", ()) if uid not in self._by_uid]
        if lost:
            raise DataError(f"the checkpoint's questions {', '.join(lost[:3])} are not in {self._index.path}: use the set it was made with")

    def _open(self, state: dict[str, Any]) -> None:
        again = [Ticket(uid, epoch, rank(uid, self._seed, epoch), []) for epoch, uid in state.get("again", ())]
        self._again = sorted(again, key=_place)
        self._next = Place(state.get("epoch", 0), state.get("rank", 0))
        self._stream = PromptStream(self._index, self._config, seed=self._seed, start=self._next)
        self._queue: queue.Queue[Ticket | Exception] = queue.Queue(maxsize=self._config.prefetch_samples)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(self._stream, self._queue, self._stop), daemon=True, name="prompts")
        self._thread.start()

    def _close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=30.0)

    @staticmethod
    def _produce(stream: PromptStream, out: queue.Queue[Ticket | Exception], stop: threading.Event) -> None:
        """Runs in its own thread until `stop`; an error of the stream becomes the last item."""
        item: Ticket | Exception
        try:
            for place, sample in stream:
                item = Ticket(sample.uid, place.epoch, place.rank, [ray.put(sample)])
                if not _put(out, item, stop):
                    return
        except Exception as error:
            logger.exception("the prompt stream broke")
            _put(out, error, stop)

    def _with_sample(self, ticket: Ticket) -> Ticket:
        """The ticket with a live reference; one that came without (from a checkpoint) is loaded here."""
        if ticket.sample:
            return ticket
        row = self._by_uid[ticket.uid]
        sample = row.fields.sample(self._images.load(row.file, row.row))
        return Ticket(ticket.uid, ticket.epoch, ticket.rank, [ray.put(sample)])


def start_feeder(path: str, config: DataConfig, *, seed: int, state: dict[str, Any] | None = None) -> Any:
    """Handle of a DataFeeder actor on this node. It reserves no CPU: it mostly waits."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(DataFeeder).options(num_cpus=0, max_concurrency=4, scheduling_strategy=here)
    return actor.remote(path, config, seed, state)


def _place(ticket: Ticket) -> Place:
    return Place(ticket.epoch, ticket.rank)


def _put(out: queue.Queue[Ticket | Exception], item: Ticket | Exception, stop: threading.Event) -> bool:
    """False when told to stop before there was room."""
    while not stop.is_set():
        try:
            out.put(item, timeout=0.5)
            return True
        except queue.Full:
            continue
    return False
