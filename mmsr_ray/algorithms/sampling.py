"""Groups from the rollout actors: admission, the in-flight map, loss and requeue.

Invariants
- The driver fetches summaries only. `sample_group` is called with two returns, so the Group is an object owned by this
  process: it outlives the runner that made it and is fetched by learner ranks alone.
- Every group in flight belongs to a living runner and has a deadline; otherwise its prompt is queued again under the same uid.
- An elastic runner may be gone at any moment: its group is ready once a copy lies on the Algorithm's node, and a prompt
  that is lost with it comes again without blame. Groups that were ready on another node that is gone come again, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.experimental import get_object_locations

from mmsr_ray.algorithms.advantages import carries_signal
from mmsr_ray.algorithms.feed import Feed, FeedError
from mmsr_ray.algorithms.ledger import Entry, Ledger
from mmsr_ray.algorithms.liveness import Nodes
from mmsr_ray.algorithms.runners import RunnerGroup
from mmsr_ray.config import Config
from mmsr_ray.learner.objective import filters_groups
from mmsr_ray.tools.errors import BudgetSpent
from mmsr_ray.tools.tape import TapeMiss
from mmsr_ray.types import GroupSummary

logger = logging.getLogger(__name__)

SPILLED = "disk"  # in place of a node's id: Ray does not say whose disk
LATE_GRACE_SECONDS = 60.0  # beyond the runner's own deadline of a group


class SamplingError(RuntimeError):
    """Sampling cannot go on; the message says why and what to look at."""


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """A usable group: the summary by value, the Group by reference."""

    summary: GroupSummary
    group: ObjectRef
    stored: bool  # in the object store of some node; else small enough that this process holds it


@dataclass(slots=True)
class _Flight:
    entry: Entry
    runner: int
    group: ObjectRef
    since: float
    summary: GroupSummary | None = None  # known already, and the group on its way here


class Sampler:
    """Keeps the runners busy with the prompts that the ledger admits. All waiting happens in `pump`."""

    def __init__(self, config: Config, runners: RunnerGroup, feed: Feed, ledger: Ledger, tend: Callable[[], None]) -> None:
        """`tend` is called now and then while a batch is waited for, to look after the parts that sampling does not see."""
        self._config = config
        self._runners = runners
        self._feed = feed
        self._ledger = ledger
        self._filters = filters_groups(config.grpo.filter_groups, config.grpo.loss)
        self._tend = tend
        self._flights: dict[ObjectRef, _Flight] = {}
        self._nodes = Nodes()
        self.filtered_in_step = 0
        self.infra_errors = 0  # trajectories lost to infrastructure since `reset_step`
        self.out_of_money = False  # a group was refused searches: nothing more is sent out

    # ------------------------------------------------------------------------------------------------ one step

    def collect(self, deadline: float) -> list[Entry]:
        """Block until the ledger yields a batch; entries carry `ReadyGroup` results.

        Raises SamplingError at `deadline` (monotonic seconds), RunnersLost when no runner comes back, whatever `tend` raises,
        and BudgetSpent when the tools are out of money (TapeMiss when a replay is asked for what was not recorded); everything
        admitted and not trained stays charged.
        """
        while (batch := self._ledger.take_batch()) is None or self._requeue_vanished(batch):
            if self.out_of_money:
                raise BudgetSpent("the tools refuse searches that tools.budget_usd does not pay for")
            if time.monotonic() > deadline:
                raise SamplingError(
                    f"no full batch within grpo.step_seconds={self._config.grpo.step_seconds:.0f}: {len(self._ledger.ready())} of "
                    f"{self._ledger.groups_per_step} groups ready, {len(self._flights)} in flight on runners {self._runners.healthy()}"
                )
            self._tend()
            self.pump(timeout=1.0)
        return batch

    def pump(self, timeout: float) -> None:
        """One turn: revive runners, admit, dispatch, wait up to `timeout` seconds for something to happen, take it in."""
        self._runners.revive()
        self._drop_late()
        if not self.out_of_money:
            self._request_tickets()
            came = bool(self._ledger.queued())
            self._dispatch()
            self._fit(came)
        waiting = list(self._flights)
        if self._feed.request is not None:
            waiting.append(self._feed.request)
        if not waiting:
            time.sleep(min(timeout, 0.05))
            return
        ray.wait(waiting, num_returns=1, timeout=timeout)
        for ref in ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]:
            if ref == self._feed.request:
                self._take_tickets()
            elif ref in self._flights:  # else forgotten a moment ago, with the feeder that had its sample
                self._land(ref)

    def reset_step(self) -> None:
        self.filtered_in_step = self.infra_errors = 0

    # ------------------------------------------------------------------------------------------------ admission

    def _request_tickets(self) -> None:
        try:
            self._feed.ask(self._ledger.room)
        except FeedError as error:
            raise SamplingError(str(error)) from error

    def _take_tickets(self) -> None:
        try:
            tickets = self._feed.take()
        except RayActorError as error:
            self._renew_feed(f"the data feeder died ({type(error).__name__})")
            return
        self._ledger.admit(tickets)

    def _renew_feed(self, why: str) -> None:
        """Samples live and die with their feeder: a new one loads those of all prompts that are not ready yet."""
        keys = self._ledger.withdraw_unfinished()
        logger.error("%s: a new one takes its place and hands out %d prompts again", why, len(keys))
        self._forget_flights()
        self._feed.renew(keys)

    def _dispatch(self) -> None:
        load = dict.fromkeys(self._runners.healthy(), 0)
        for flight in self._flights.values():
            if flight.runner in load:
                load[flight.runner] += 1
        for entry in self._ledger.queued():
            runner = min(load, key=lambda i: load[i], default=None)
            if runner is None or load[runner] >= self._config.rollout.max_inflight_groups:
                return
            self._ledger.dispatch(entry)
            summary, group = (
                self._runners.actor(runner)
                .sample_group.options(num_returns=2)
                .remote(entry.ticket, self._config.grpo.group_size, self._ledger.version + 1)
            )
            self._flights[summary] = _Flight(entry, runner, group, time.monotonic())
            load[runner] += 1

    def _fit(self, came: bool) -> None:
        """As many elastic runners as there is work for. Only prompts that have just come ask for more: a long tail does not."""
        if (idle := self._config.rollout.idle_seconds) > 0:
            busy = {flight.runner for flight in self._flights.values()}
            self._runners.fit(len(self._flights) + len(self._ledger.queued()), busy, more=came, idle_seconds=idle)

    # ------------------------------------------------------------------------------------------------ arrivals and losses

    def _land(self, ref: ObjectRef) -> None:
        flight = self._flights.pop(ref)
        if flight.summary is not None:
            self._arrive(flight, flight.summary)
            return
        try:
            summary: GroupSummary = ray.get(ref)
        except RayActorError:
            logger.warning("runner %d died with prompt %s: requeued", flight.runner, flight.entry.ticket.uid)
            self._runners.mark_lost(flight.runner)
            if self._runners.elastic(flight.runner):
                self._ledger.requeue(flight.entry)
            else:
                self._lose(flight.entry, "its runner died")
            return
        except TapeMiss as error:  # asking again would never end
            raise TapeMiss(f"prompt {flight.entry.ticket.uid}: {error.args[0]}") from None
        except RayError as error:
            if isinstance(error.cause if isinstance(error, RayTaskError) else error, ObjectLostError):
                self._ledger.requeue(flight.entry)
                self._renew_feed(f"the sample of prompt {flight.entry.ticket.uid} is lost, and with it maybe the data feeder")
                return
            logger.exception("group %s failed on runner %d", flight.entry.ticket.uid, flight.runner)
            self._lose(flight.entry, "its runner raised an error")
            return
        self._judge(flight, summary)

    def _judge(self, flight: _Flight, summary: GroupSummary) -> None:
        """Ready, lost for want of survivors, filtered, or put back for want of money."""
        entry, size = flight.entry, self._config.grpo.group_size
        if summary.out_of_money:
            self.out_of_money = True
            self._ledger.put_back(entry)
            return
        self.infra_errors += size - len(summary.trajectories)
        if len(summary.trajectories) < self._config.rollout.min_survivors:
            self._lose(entry, f"only {len(summary.trajectories)} of {size} rollouts survived infrastructure errors")
            return
        limit = self._config.grpo.filter_limit * self._config.grpo.groups_per_step
        if self._filters and self.filtered_in_step < limit and not carries_signal(summary.trajectories):
            self.filtered_in_step += 1
            self._ledger.filter(entry)
            return
        stored = bool(_nodes([flight.group])[0])
        if stored and self._runners.elastic(flight.runner):
            flight.summary = summary
            self._flights[flight.group] = flight  # to wait for it is to fetch it
        else:
            self._ledger.complete(entry, ReadyGroup(summary, flight.group, stored))

    def _arrive(self, flight: _Flight, summary: GroupSummary) -> None:
        """An elastic runner's group was fetched, or is lost."""
        if {ray.get_runtime_context().get_node_id(), SPILLED} & _nodes([flight.group])[0]:
            self._ledger.complete(flight.entry, ReadyGroup(summary, flight.group, stored=True))
        else:
            logger.warning("the group of prompt %s is lost with its elastic runner's node: requeued", flight.entry.ticket.uid)
            self._ledger.requeue(flight.entry)

    def _lose(self, entry: Entry, why: str) -> None:
        if not self._ledger.lose(entry):
            logger.error("prompt %s given up after %d losses; the last: %s", entry.ticket.uid, entry.losses, why)

    def _drop_late(self) -> None:
        """A group far beyond its runner's own deadline means that the runner hangs."""
        limit = self._config.rollout.group_deadline_seconds + LATE_GRACE_SECONDS
        alive = set(self._runners.alive())
        for flight in list(self._flights.values()):
            if time.monotonic() - flight.since > limit and flight.runner in alive:
                logger.error("runner %d has held prompt %s for over %.0f s: restarting it", flight.runner, flight.entry.ticket.uid, limit)
                self._runners.kill(flight.runner)
                alive.discard(flight.runner)

    def _requeue_vanished(self, batch: list[Entry]) -> bool:
        """Groups that were ready on a node that is gone: their prompts come again. False when all of the batch is there.

        While the head of Ray is away nobody knows of a lost node: the learner will miss the group.
        """
        living = self._nodes.living()
        if living is None:
            return False
        alive = living | {SPILLED}
        nodes = _nodes([entry.result.group for entry in batch])
        gone = [entry for entry, at in zip(batch, nodes, strict=True) if entry.result.stored and not at & alive]
        for entry in gone:
            logger.warning("the ready group of prompt %s is lost with its node: requeued", entry.ticket.uid)
            self._ledger.requeue(entry)
        return bool(gone)

    # ------------------------------------------------------------------------------------------------ checkpoint

    def abandon(self) -> None:
        """Forget what is in flight; the ledger and the feeder are about to go back in time."""
        self._forget_flights()
        self.out_of_money = False

    def _forget_flights(self) -> None:
        for ref in self._flights:
            ray.cancel(ref)
        self._flights.clear()


def _nodes(groups: list[ObjectRef]) -> list[set[str]]:
    """Ids of the nodes that hold each, as far as this process, their owner, knows: it learns of a lost node within seconds."""
    found = get_object_locations(groups)
    return [set(found[group]["node_ids"]) | ({SPILLED} if found[group]["did_spill"] else set()) for group in groups]
