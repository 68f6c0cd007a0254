"""Whether the actors and nodes that training stands on live, found out without ever waiting for one of them.

Promise: `lost` returns at once. It names an actor within about a second of Ray knowing that it died, and never one that is
merely busy: an actor that does not answer has its own deadlines elsewhere. `Nodes` waits for Ray's head, but not for long and not often.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import ActorDiedError, RayActorError

from mmsr_ray.head import HeadAway, living_nodes

logger = logging.getLogger(__name__)

ASK_EVERY_SECONDS = 1.0
HEAD_SECONDS = 5.0
HEAD_REST_SECONDS = 30.0


class Watch:
    """One open call per actor. Names are the caller's; another actor under a known name starts afresh."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Any, ObjectRef]] = {}
        self._asked_at = 0.0

    def lost(self, actors: Mapping[str, Any]) -> list[str]:
        """Names of those that died for good."""
        if time.monotonic() - self._asked_at < ASK_EVERY_SECONDS:
            return []
        self._asked_at = time.monotonic()
        return [name for name, actor in actors.items() if self._died(name, actor)]

    def _died(self, name: str, actor: Any) -> bool:
        asked, call = self._open.get(name, (None, None))
        if asked is not actor or call is None:
            self._open[name] = (actor, actor.__ray_ready__.remote())
            return False
        if not ray.wait([call], timeout=0)[0]:
            return False
        del self._open[name]
        try:
            ray.get(call)
        except ActorDiedError:
            return True
        except RayActorError:  # out of reach for now
            return False
        return False


class Nodes:
    """Which nodes live. A head that did not answer is left alone for a while: else every batch would wait for it."""

    def __init__(self) -> None:
        self._not_before = 0.0

    def living(self) -> set[str] | None:
        """Their ids; None while the head does not answer."""
        if time.monotonic() < self._not_before:
            return None
        try:
            return {node.id for node in living_nodes(HEAD_SECONDS)}
        except HeadAway as error:
            logger.warning("which nodes live is not known: %s", error)
            self._not_before = time.monotonic() + HEAD_REST_SECONDS
            return None
