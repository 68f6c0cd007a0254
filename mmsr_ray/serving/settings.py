"""The settings of the service (jobs/serve.py)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # no colon: what follows one chooses the workflow


@dataclass
class ScaleConfig:
    """How many replicas of one deployment there are: as many as its requests need, within bounds."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 16.0  # per replica: what autoscaling aims at
    # Per replica, no more are sent to it. Below max_requests Serve itself queues: it asks a full replica again at growing intervals, and
    # with 256 clients half of the answers took 25 s, and now take 3 (suite=serving).
    max_ongoing_requests: int = 256
    upscale_delay_seconds: float = 10.0
    downscale_delay_seconds: float = 300.0


@dataclass
class ServingConfig:
    host: str = "127.0.0.1"  # anything but a loopback address needs API keys
    port: int = 8000
    model_name: str = "mmsr"  # what clients call the model; NAME:direct and NAME:rag choose another workflow
    models: dict[str, str] = field(default_factory=dict)  # others behind the same endpoint: NAME: model folder; each has engines of its own
    ingress_replicas: int = 1  # each lets its part of max_requests in; a key's quotas are counted in one place
    agent: ScaleConfig = field(default_factory=ScaleConfig)
    engine: ScaleConfig = field(default_factory=lambda: ScaleConfig(target_ongoing_requests=32.0))
    max_requests: int = 256  # running and waiting, of the whole service; more are answered 429
    retry_after_seconds: int = 2  # what those are told
    history_chars: int = 2_000  # of the latest earlier turns of a chat that go before its question; 0: the question alone
    request_seconds: float = 120.0  # deadline of a whole request, waiting included
    body_bytes: int = 30_000_000  # of one request; a picture in base64 takes 4/3 of its bytes
    image_url_seconds: float = 15.0  # deadline of fetching a picture that a client names
    keys_file: str = ""  # lines NAME:SHA256 or NAME:SHA256:admin (sha256sum of the key)
    keys_env: str = "MMSR_API_KEYS"  # the same in an environment variable, entries apart by white space
    requests_per_minute: float = 60.0  # of one key; 0: no limit
    budget_usd: float = 0.0  # of the searches of one key, since the service started; 0: no limit
    weights_watch: str = ""  # folder of a model whose new weights are served as they come (a run's best/); "": only /admin/weights
    models_watch: dict[str, str] = field(default_factory=dict)  # the same for serving.models, NAME: folder
    watch_seconds: float = 10.0  # between two looks at it
    ready_seconds: float = 1800.0  # deadline of a start; the first one may fetch the model
    shutdown_seconds: float = 30.0  # that requests have to end when the service stops
    turn_attempts: int = 4  # of one model turn, where its engine dies meanwhile


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def complaint(c: ServingConfig) -> str:
    """What is impossible about the settings and what to do; "" when nothing is."""
    for name, scale in (("agent", c.agent), ("engine", c.engine)):
        if not 1 <= scale.min_replicas <= scale.max_replicas:
            return f"serving.{name}: min_replicas must be at least 1 and at most max_replicas"
        if scale.max_ongoing_requests < 1 or scale.target_ongoing_requests <= 0:
            return f"serving.{name}: max_ongoing_requests and target_ongoing_requests must be positive"
    for name in (c.model_name, *c.models):
        if not _NAME.fullmatch(name):
            return f"serving.model_name and the names of serving.models are letters, digits, dots, dashes and underscores: {name!r} is not"
    if c.model_name in c.models or not all(c.models.values()):
        return "serving.models holds other models than serving.model_name, each with its folder"
    if not c.models_watch.keys() <= c.models.keys() or not all(c.models_watch.values()):
        return "serving.models_watch has a folder to watch for names of serving.models; that of serving.model_name is serving.weights_watch"
    if c.ingress_replicas < 1 or c.max_requests < c.ingress_replicas or c.turn_attempts < 1:
        return "serving.ingress_replicas and turn_attempts must be at least 1, max_requests at least as many as ingress_replicas"
    if min(c.request_seconds, c.image_url_seconds, c.watch_seconds, c.ready_seconds, c.shutdown_seconds) <= 0 or c.body_bytes < 1:
        return "the deadlines of serving and serving.body_bytes must be positive"
    if c.history_chars < 0:
        return "serving.history_chars must be 0 (the question alone) or more"
    if c.requests_per_minute < 0 or c.budget_usd < 0:
        return "serving.requests_per_minute and serving.budget_usd must be 0 (no limit) or more"
    return ""
