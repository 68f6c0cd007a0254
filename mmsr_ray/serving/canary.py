"""Which weights each engine should serve while new ones are brought in: one engine first, then all. Pure.

Promise: at most one engine has weights that no engine has proven; when it is not heard of for `patience` seconds they are
withdrawn, and the others never get them. An engine is proven by reporting the new version after its update: an update that
fails ends the engine's process (rollout/engine.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Canary:
    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._heard = 0.0
        self.proven = 0  # all engines should have it; 0 is what the model folder holds
        self.target = 0  # what is being brought in; `proven` when nothing is
        self.canary = ""
        self.served: dict[str, int] = {}  # version of each engine, as last reported

    @property
    def busy(self) -> bool:
        """New weights are still being tried."""
        self._look()
        return self.target != self.proven

    def bring_in(self, version: int) -> None:
        self.target, self.canary = version, ""
        self._heard = self._clock()

    def wanted(self, engine: str, version: int) -> int:
        """What `engine`, which serves `version` now, should serve next."""
        self.served[engine] = version
        self._look()
        if self.target == self.proven:
            return self.proven
        if not self.canary:
            self.canary = engine
        if engine != self.canary:
            return self.proven
        self._heard = self._clock()
        if version == self.target:
            self.proven = version
        return self.target

    def forget(self, engine: str) -> None:
        """An engine that ended. As the canary it takes the new weights with it."""
        self.served.pop(engine, None)
        if engine == self.canary:
            self.target = self.proven

    def _look(self) -> None:
        if self.target != self.proven and self._clock() - self._heard > self._patience:
            self.target = self.proven
