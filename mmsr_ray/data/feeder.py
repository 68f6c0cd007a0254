"""The actor that owns the prompt stream and hands out tickets, so that pictures never pass through the driver.

Promise: tickets leave in the order of the stream, each once; those handed back (`requeue`) leave again first, in order.
`state(in_flight)` is a place and a short list: a feeder restored from it hands out exactly the tickets in flight and then
the rest. Every call returns within its timeout; a broken stream is an error to the next caller, never a wait.
The samples belong to this actor: when it dies their references die, and a new one made from its state replaces it.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmsr_ray.config import DataConfig
from mmsr_ray.data.cursor import Cursor, Key, check, digest
from mmsr_ray.data.images import ImageStore
from mmsr_ray.data.reader import read_index
from mmsr_ray.data.schema import DataError
from mmsr_ray.data.stream import PromptStream
from mmsr_ray.types import Ticket

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.01  # between looks at an empty queue


class DataFeeder:
    """Prefetches `data.prefetch_samples` samples of the training set into the object store. Make it with `start_feeder`."""

    def __init__(self, path: str, config: DataConfig, seed: int, state: dict[str, Any] | None = None) -> None:
        """Raises DataError for an unusable set. Prefetching starts at once."""
        self._config = config
        self._seed = seed
        with _for_good():
            self._index = read_index(path, config)
            self._by_uid = {row.fields.uid: row for row in self._index.rows}
        self._images = ImageStore()
        self._lock = threading.Lock()
        self._questions = digest(self._by_uid)
        check(state or {}, seed, self._questions, self._by_uid, path)
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
        tickets = [self._with_sample(ticket) for ticket in self._cursor.again[:k]]
        self._cursor.take_again(len(tickets))
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
            self._cursor.passed(item)
        return tickets

    def requeue(self, tickets: Iterable[Ticket]) -> None:
        """Take tickets back: they leave again before any other, in the order of the stream. Their sample may be absent."""
        with self._lock:
            self._cursor.give_back(tickets)

    def state(self, in_flight: Iterable[Ticket | Key] = ()) -> dict[str, Any]:
        """Plain values for a checkpoint: `Cursor.state`. `in_flight`: tickets (or their (epoch, uid)) handed out whose work is not yet done."""
        with self._lock:
            return self._cursor.state(in_flight)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`, or from any {"epoch", "rank"} of a ticket, which then comes first.

        Raises DataError when the state belongs to another seed or to questions that this set lacks.
        """
        check(state, self._seed, self._questions, self._by_uid, self._index.path)
        with self._lock:
            self._close()
            self._open(state)

    def stats(self) -> dict[str, int]:
        """Questions in the set, tickets that wait, bad rows by kind ("bad: <kind>")."""
        bad = [*self._index.bad.counts.items(), *self._stream.bad.counts.items()]
        counts = {"questions": len(self._index.rows), "waiting": self._queue.qsize() + len(self._cursor.again)}
        for kind, count in bad:
            counts[f"bad: {kind}"] = counts.get(f"bad: {kind}", 0) + count
        return counts

    def ping(self) -> bool:
        return True

    # ------------------------------------------------------------------------------------------------ the producer

    def _open(self, state: dict[str, Any]) -> None:
        self._cursor = Cursor(self._seed, self._questions, state)
        self._stream = PromptStream(self._index, self._config, seed=self._seed, start=self._cursor.next)
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
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # soft would let it spill to a node that may be lost alone
    actor = ray.remote(DataFeeder).options(num_cpus=0, max_concurrency=4, scheduling_strategy=here)
    return actor.remote(path, config, seed, state)


@contextmanager
def _for_good() -> Iterator[None]:
    """What is made inside stays for the life of this process: the garbage collector neither looks at it while it grows, nor ever after.

    With a million questions one look takes two seconds, and there are many.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _put(out: queue.Queue[Ticket | Exception], item: Ticket | Exception, stop: threading.Event) -> bool:
    """False when told to stop before there was room."""
    while not stop.is_set():
        try:
            out.put(item, timeout=0.5)
            return True
        except queue.Full:
            continue
    return False
