"""One vLLM engine and its runner's process, as a queue. Pure.

Invariants
- All sequences in the batch get one token per decoding step; a step takes `step_seconds + n * sequence_seconds` with n of them.
- While a prompt is computed nobody samples (vLLM mixes the two in one step; the sum is the same).
- A sequence enters when fewer than `max_num_seqs` are in and the cache has room for its context, first come, first served.

A virtual clock counts tokens per sequence, so a turn costs two events, however long it is.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import simpy

from mmsr_ray.planning.settings import EngineCosts

_DUST = 1e-6  # of a token: what rounding may take from the alarm


class Line:
    """Something that does one thing at a time, first come, first served."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._free = 0.0
        self.busy = 0.0

    def wait(self, seconds: float) -> float:
        """Seconds until a piece of work that comes now is done."""
        self._free = max(self._free, self._env.now) + seconds
        self.busy += seconds
        return self._free - self._env.now


@dataclass(slots=True)
class _Turn:
    tokens: float
    prompt: int  # tokens to be computed before the first is sampled
    context: int  # tokens in the cache while it is sampled
    done: simpy.Event
    end: float = 0.0  # on the virtual clock


class Engine:
    def __init__(self, env: simpy.Environment, costs: EngineCosts, max_num_seqs: int) -> None:
        self._env, self._costs, self._most = env, costs, max_num_seqs
        self._process = Line(env)
        self._waiting: deque[_Turn] = deque()
        self._batch: list[tuple[float, int, _Turn]] = []
        self._cached = 0  # tokens of context in the batch
        self._tokens = 0.0  # per sequence, sampled so far: the virtual clock
        self._seen = 0.0  # when the virtual clock was read last
        self._stall = 0.0  # nobody samples before
        self._frozen = self._closed = False
        self._entered = self._alarm = 0
        self._drained: simpy.Event | None = None
        self.busy = 0.0  # seconds with somebody in the batch
        self.sequence_seconds = 0.0  # of all sequences in it
        self.sampled = 0.0

    # ------------------------------------------------------------------------------------------------ turns

    def turn(self, tokens: float, prompt: int, context: int) -> simpy.Event:
        """Succeeds when so many tokens are sampled after `prompt` new ones of `context` were computed."""
        turn = _Turn(tokens, prompt, context, self._env.event())
        wait = self._process.wait(self._costs.turn_seconds)
        if wait <= 0:
            self._come(turn)
        else:
            self._env.timeout(wait).callbacks.append(lambda _: self._come(turn))  # type: ignore[union-attr]
        return turn.done

    def _come(self, turn: _Turn) -> None:
        self._waiting.append(turn)
        self._look()

    def _look(self) -> None:
        """Bring the clock up to now, let out who is done, let in who fits, set the alarm for the next to be done."""
        self._advance()
        while self._batch and self._batch[0][0] <= self._tokens + _DUST:
            _, _, turn = heapq.heappop(self._batch)
            self._cached -= turn.context
            self.sampled += turn.tokens
            turn.done.succeed()
        while not (self._frozen or self._closed) and self._waiting and self._fits(self._waiting[0]):
            self._enter(self._waiting.popleft())
        if self._drained is not None and not self._batch:
            self._drained.succeed()
            self._drained = None
        self._alarm += 1
        if self._batch and not self._frozen:
            left = max(0.0, self._batch[0][0] - self._tokens) * self._step()
            number = self._alarm
            wait = max(0.0, self._stall - self._env.now) + left
            self._env.timeout(wait).callbacks.append(lambda _: self._look() if number == self._alarm else None)  # type: ignore[union-attr]

    def _advance(self) -> None:
        now = self._env.now
        if self._batch and not self._frozen:
            self.busy += now - self._seen
            self.sequence_seconds += (now - self._seen) * len(self._batch)
            self._tokens += max(0.0, now - max(self._seen, self._stall)) / self._step()
        self._seen = now

    def _step(self) -> float:
        return self._costs.step_seconds + len(self._batch) * self._costs.sequence_seconds

    def _fits(self, turn: _Turn) -> bool:
        if not self._batch:
            return True
        room = self._costs.kv_tokens
        return len(self._batch) < self._most and (room == 0 or self._cached + turn.context <= room)

    def _enter(self, turn: _Turn) -> None:
        self._compute(turn.prompt)
        self._entered += 1
        turn.end = self._tokens + turn.tokens
        self._cached += turn.context
        heapq.heappush(self._batch, (turn.end, self._entered, turn))

    def _compute(self, tokens: int) -> None:
        self._stall = max(self._stall, self._env.now) + tokens * self._costs.prompt_token_seconds

    # ------------------------------------------------------------------------------------------------ weight updates

    def drain(self) -> simpy.Event:
        """No new turn begins; succeeds when those that run are done (rollout.update=wait)."""
        self._closed = True
        self._drained = drained = self._env.event()
        self._look()
        return drained

    def freeze(self) -> None:
        """Nobody samples, those in the batch stay in it."""
        self._look()
        self._frozen = True
        self._alarm += 1

    def thaw(self) -> None:
        """Go on. The caches are empty: what is in the batch is computed again under the new weights."""
        self._advance()
        self._frozen = self._closed = False
        self._compute(self._cached)
        self._look()
