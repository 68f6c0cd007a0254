"""The application: deployments that scale on their own, put together from one config.

    serve run mmsr_ray.serving.app:build config=jobs/configs/mine.yaml model.path=/models/policy
    make serve                                     (jobs/serve.py: Atlas with its web)

Ingress (HTTP) -> Agent (episodes) -> Engine (tokens) and Searches (tool actors); Weights says what engines serve. Each of several
models has an Engine and a Weights of its own (models.py): those of others than the first are called Engine-NAME and Weights-NAME.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.config import Config, ConfigError, load, to_dict
from mmsr_ray.learner.colocation import cards_alone
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.serving.agent import Agent
from mmsr_ray.serving.engine import Engine
from mmsr_ray.serving.errors import NotReady
from mmsr_ray.serving.ingress import Ingress
from mmsr_ray.serving.keys import Keys
from mmsr_ray.serving.models import models_of
from mmsr_ray.serving.quotas import BookKeeper
from mmsr_ray.serving.searches import Searches
from mmsr_ray.serving.settings import ScaleConfig
from mmsr_ray.serving.weights import Weights

logger = logging.getLogger(__name__)
NAME = "mmsr"  # of the application
LOOK_SECONDS = 0.2  # between two looks at who is inside, or whether all is there
ASK_SECONDS = 10.0  # for an ingress to answer
MANY = 100_000  # calls of deployments that wait and do not compute
SPARE = 512  # requests beyond serving.max_requests that are let in, to be told that there are too many
# Of every replica. Nothing here blocks its event loop, so calls need no hops between Serve's threads: on a small machine those cost
# more than the calls.
ENVIRONMENT = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1.0",  # a CPU engine answers between two of its steps; after 0.1 s Serve gave up
}
# vLLM's own set-up of logging closes the handlers of whoever is there: Serve's log of the replica would end.
ENGINE_ENVIRONMENT = ENVIRONMENT | {"VLLM_CONFIGURE_LOGGING": "0"}
QUIET = {"enable_access_log": False}  # measures and traces say more


def application(config: Config, keys: Keys) -> serve.Application:
    """What `serve.run` takes. Raises CodecError and PromptError for a model or prompts that cannot be used."""
    models = models_of(config)
    for own in models.values():
        load_codec(own)
    PromptSet.load(config.agent.prompts)
    c, rollout, settings = config.serving, config.rollout, to_dict(config)
    stop: dict[str, Any] = {"graceful_shutdown_timeout_s": c.shutdown_seconds, "graceful_shutdown_wait_loop_s": 0.5}
    idle: dict[str, Any] = {"runtime_env": {"env_vars": ENVIRONMENT}, "num_cpus": 0}
    deployment: Any = partial(serve.deployment, logging_config=QUIET)
    weights: dict[str, Any] = {}
    engines: dict[str, Any] = {}
    for name, own in models.items():
        suffix = "" if own is config else f"-{name}"
        ours = deployment(Weights, name=f"Weights{suffix}", num_replicas=1, max_ongoing_requests=MANY, ray_actor_options=idle)
        weights[name] = ours.bind(to_dict(own))
        engines[name] = deployment(
            Engine,
            name=f"Engine{suffix}",
            ray_actor_options={
                "runtime_env": {"env_vars": ENGINE_ENVIRONMENT},
                "num_cpus": rollout.cpus_per_runner,
                "num_gpus": cards_alone(config.learner, rollout.gpus_per_runner),
            },
            health_check_period_s=2.0,
            **_scaled(c.engine),
            **stop,
        ).bind(to_dict(own), weights[name])
    searches = deployment(Searches, name="Searches", num_replicas=1, max_ongoing_requests=MANY, ray_actor_options=idle, **stop)
    agent = deployment(Agent, name="Agent", ray_actor_options=idle, **_scaled(c.agent), **stop)
    ingress = deployment(
        Ingress,
        name="Ingress",
        num_replicas=c.ingress_replicas,
        max_ongoing_requests=c.max_requests // c.ingress_replicas + SPARE,
        ray_actor_options=idle,
        **stop,
    )
    shared: list[Any] = []
    if c.ingress_replicas > 1 or c.budget_usd:
        book_keeper = deployment(BookKeeper, name="BookKeeper", num_replicas=1, max_ongoing_requests=MANY, ray_actor_options=idle)
        shared.append(book_keeper.bind(settings))
    return ingress.bind(settings, agent.bind(settings, engines, searches.bind(settings), *shared), weights, keys.entries, *shared)


def _scaled(scale: ScaleConfig) -> dict[str, Any]:
    autoscaling = AutoscalingConfig(
        min_replicas=scale.min_replicas,
        max_replicas=scale.max_replicas,
        target_ongoing_requests=scale.target_ongoing_requests,
        upscale_delay_s=scale.upscale_delay_seconds,
        downscale_delay_s=scale.downscale_delay_seconds,
    )
    return {"autoscaling_config": autoscaling, "max_ongoing_requests": scale.max_ongoing_requests}


def build(args: dict[str, str]) -> serve.Application:
    """For `serve run` and Serve's YAML: `config` names a file, every other argument is a setting. Raises ConfigError.

    Serve listens where its own options say, which may be anywhere: keys are needed unless serving.host says otherwise.
    """
    config = load(args.get("config"), [f"{key}={value}" for key, value in args.items() if key != "config"])
    if config.atlas.enabled:
        raise ConfigError("Atlas needs its web beside the service: use make serve, or set atlas.enabled=false")
    return application(config, Keys.read(config.serving, os.environ))


def start(config: Config, keys: Keys, *, name: str = NAME) -> None:
    """Run the application on the Ray that this process is connected to; returns when questions are answered. Raises NotReady."""
    c = config.serving
    serve.start(http_options={"host": c.host, "port": c.port, "request_timeout_s": c.request_seconds + 30})
    serve.run_many([serve.RunTarget(application(config, keys), name=name, route_prefix="/")], wait_for_applications_running=False)
    _wait_until_running(name, c.ready_seconds)


def _wait_until_running(name: str, seconds: float) -> None:
    """Serve by itself waits for ever, also for cards that the cluster does not have."""
    deadline = time.monotonic() + seconds
    while (found := serve.status().applications[name]).status is not ApplicationStatus.RUNNING:
        if found.status is ApplicationStatus.DEPLOY_FAILED:
            raise NotReady(f"the service cannot start: {found.message}")
        if time.monotonic() > deadline:
            waiting = [
                f"{part} ({at.message or at.status.value})" for part, at in found.deployments.items() if at.status.value != "HEALTHY"
            ]
            raise NotReady(f"the service did not start within serving.ready_seconds={seconds:g}: {'; '.join(waiting) or found.message}")
        time.sleep(LOOK_SECONDS)


def drain(config: Config, *, name: str = NAME) -> None:
    """Before `serve.shutdown`: nobody new is let in, and who is inside has serving.shutdown_seconds to be answered.

    Serve by itself ends its proxies first, and with them every connection, and all deployments at once, so that an episode finds no
    engine for its next turn.
    """
    ingress = serve.get_deployment_handle("Ingress", name)
    deadline = time.monotonic() + config.serving.shutdown_seconds
    try:
        ingress.broadcast("close").results(timeout_s=ASK_SECONDS)
        while inside := sum(ingress.broadcast("inside").results(timeout_s=ASK_SECONDS)):
            if time.monotonic() > deadline:
                logger.warning("%d requests did not end within serving.shutdown_seconds", inside)
                break
            time.sleep(LOOK_SECONDS)
    except (RayError, RayServeException, TimeoutError) as error:  # whoever is lost has nobody inside
        logger.warning("an ingress does not answer, its requests are cut off: %s", error)
    serve.delete(name)  # the proxies stay meanwhile: what was answered gets through
