"""Where replicas write what this package says. Thin.

Promise: from INFO on it stands in the replica's own log, which `ray logs` and the dashboard show; nothing is written for each request.
"""

from __future__ import annotations

import logging

SERVE = "ray.serve"
PACKAGE = "mmsr_ray"


def log_beside_serve() -> None:
    """To be called in a replica: Serve has given its own logger the handlers of the replica's file by then, and only that one."""
    ours, handlers = logging.getLogger(PACKAGE), logging.getLogger(SERVE).handlers
    if handlers:
        ours.setLevel(logging.INFO)
        ours.handlers, ours.propagate = handlers, False
