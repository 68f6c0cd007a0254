"""The real application on the tiny policy and the Atlas web: one start for all tests, the last ones change its weights.

It is watched as it would be in production: spans go to an OTLP collector over HTTP, a real Prometheus scrapes what it counts.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
import yaml
from ray import serve

from mmsr_ray.agent.episode import run_episode
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.atlas.prepare import point_at, start_web
from mmsr_ray.atlas.world import World
from mmsr_ray.config import AtlasConfig, Config, load, to_yaml
from mmsr_ray.observability.dashboard.panels import SERVING
from mmsr_ray.rollout.engine import VLLMEngine
from mmsr_ray.serving.app import drain
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import Sample, Sampling, Trajectory
from tests.prometheus import needed, prometheus
from tests.serving.collector import Collector, attributes, collecting
from tests.serving.fuzz import fuzz
from tests.serving.parrot import write_parrot

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]
PATIENCE = 180.0
SAMPLE = next(iter(World(0).samples("test", 1)))
DATA_URL = "data:image/png;base64," + base64.b64encode(SAMPLE.image).decode()
FIRST, SECOND = "<reason>Name</reason><answer>Aldo</answer>", "<reason>Name</reason><answer>Adrel</answer>"
WATCHED, OTHER_WATCHED = "best", "best of other"


@dataclass
class Service:
    config: Config
    url: str
    models: Path
    collector: Collector
    logs: Path  # of replicas

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)

    def ask(self, workflow: str = "on_demand", **more: Any) -> list[dict[str, Any]]:
        """`more`: of the body, or `headers`."""
        headers = more.pop("headers", {})
        body = {"question": SAMPLE.question, "image": DATA_URL, "workflow": workflow} | more
        with httpx.stream("POST", f"{self.url}/v1/agent", json=body, headers=headers, timeout=PATIENCE) as reply:
            assert reply.status_code == 200, reply.read()
            return [json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line]

    def bring_in(self, folder: Path, model: str = "atlas") -> httpx.Response:
        return httpx.post(f"{self.url}/admin/weights", json={"path": str(folder), "model": model}, timeout=PATIENCE)

    def wait_for_version(self, version: int, model: str = "atlas") -> None:
        params = {"model": model}
        wait_until(lambda: httpx.get(f"{self.url}/admin/weights", params=params, timeout=PATIENCE).json()["proven"] == version)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serving")
    models = folder / "models"
    first = write_parrot(tiny_model, models / "first", FIRST)
    write_parrot(tiny_model, models / "second", SECOND, after=FIRST)
    write_parrot(tiny_model, models / "endless", "<reason>Name", endless=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"run.dir={folder}", f"model.path={first}", "atlas.enabled=false", f"serving.port={port}", "agent.max_total_tokens=4096"]
    settings += ["agent.max_turn_tokens=3000", "serving.request_seconds=150", "serving.shutdown_seconds=3", "sft.enabled=false"]
    settings += [f"serving.models.other={models / 'second'}", f"serving.weights_watch={models / WATCHED}", "serving.watch_seconds=0.3"]
    settings += [f"serving.models_watch.other={models / OTHER_WATCHED}"]
    config = load(ROOT / "jobs/configs/serve_atlas.yaml", settings)
    web = start_web(AtlasConfig())
    config.tools = point_at(config.tools, web.base)
    with collecting() as collector, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        environment.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds
        here: Any = ray.init(
            address="local", num_cpus=8, include_dashboard=False, namespace=config.run.namespace, log_to_driver=False,
            _system_config={"metrics_report_interval_ms": 1_000},
        )  # fmt: skip
        try:
            with serve_run(config, folder):
                yield Service(config, f"http://127.0.0.1:{port}", models, collector, Path(here.address_info["session_dir"], "logs/serve"))
        finally:
            ray.shutdown()
            web.stop()


@contextmanager
def serve_run(config: Config, folder: Path) -> Iterator[None]:
    """`serve run` with a file such as a RayService holds, until it is interrupted."""
    c = config.serving
    (folder / "config.yaml").write_text(to_yaml(config))
    application: dict[str, Any] = {"name": "mmsr", "route_prefix": "/", "import_path": "mmsr_ray.serving.app:build"}
    application["args"] = {"config": str(folder / "config.yaml"), "serving.requests_per_minute": 0}
    http = {"host": c.host, "port": c.port, "request_timeout_s": c.request_seconds + 30}
    (folder / "serve.yaml").write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # where a shell runs the tests in the background, it and its children ignore it
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", ray.get_runtime_context().gcs_address]
    with (folder / "serve.log").open("w") as log, subprocess.Popen([*command, str(folder / "serve.yaml")], stdout=log, stderr=log) as run:

        def is_ready() -> bool:
            assert run.poll() is None, (folder / "serve.log").read_text()
            try:
                return httpx.get(f"http://{c.host}:{c.port}/readyz", timeout=10).is_success
            except httpx.TransportError:
                return False

        try:
            wait_until(is_ready)
            yield
        finally:
            run.send_signal(signal.SIGINT)
            try:
                run.wait(60)
            finally:
                run.kill()


def messages() -> list[Any]:
    parts = [{"type": "text", "text": SAMPLE.question}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
    return [{"role": "user", "content": parts}]


def test_it_is_ready(service: Service) -> None:
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    assert httpx.get(f"{service.url}/readyz", timeout=10).status_code == 200


def test_the_openai_client_gets_an_answer_and_its_reasons(service: Service) -> None:
    client = service.client
    assert [model.id for model in client.models.list()] == [
        f"{model}{how}" for model in ("atlas", "other") for how in ("", ":direct", ":rag")
    ]
    other = client.chat.completions.create(model="other", messages=messages())
    assert (other.model, other.choices[0].message.content) == ("other", "Adrel")  # another checkpoint, the same searches
    whole = client.chat.completions.create(model="atlas", messages=messages())
    message = whole.choices[0].message
    assert (message.content, message.to_dict()["reasoning_content"], whole.choices[0].finish_reason) == ("Aldo", "Name\n", "stop")
    assert whole.usage and whole.usage.completion_tokens >= 7
    chunks = list(client.chat.completions.create(model="atlas", messages=messages(), stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Aldo"
    assert chunks[-1].usage == whole.usage


def test_searches_are_told_as_they_happen(service: Service) -> None:
    events = service.ask("rag")
    assert [event["event"] for event in events] == [
        "started",
        "search",
        "results",
        "reason",
        "search",
        "results",
        "reason",
        "answer",
        "finished",
    ]
    assert events[2]["hits"][0]["thumbnail"].startswith("data:image/")
    assert events[-1]["searches"] == 2
    assert events[-1]["weight_version"] == 0


def test_each_turn_and_each_search_is_a_span_at_the_collector(service: Service) -> None:
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    events = service.ask("rag", headers={"traceparent": f"00-{trace}-{caller}-01"})
    wait_until(
        lambda: any(span.name == "request" for span in service.collector.of(trace))
    )  # it ends last, and is sent with or after the rest
    request, *inner = service.collector.of(trace)
    assert [span.name for span in (request, *inner)] == ["request", "search image", "turn", "search text", "turn"]
    assert request.parent_span_id.hex() == caller
    assert {span.parent_span_id for span in inner} == {request.span_id}
    assert all(before.end_time_unix_nano <= after.start_time_unix_nano for before, after in itertools.pairwise(inner))
    said = attributes(request)
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"], said["mmsr.outcome"]) == (
        events[-1]["prompt_tokens"],
        events[-1]["completion_tokens"],
        "ok",
    )
    assert {name for name, _ in service.collector.spans} == {"mmsr-ray"}
    for secret in (SAMPLE.question.encode(), b"Aldo"):
        assert not any(secret in body for body in service.collector.bodies)


@needed
def test_prometheus_sees_every_panel_and_every_request_by_its_outcome(service: Service, tmp_path: Path) -> None:
    (node,) = ray.nodes()
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"]
    with prometheus(tmp_path, {"static_configs": [{"targets": targets}]}) as here:

        def outcomes(workflow: str) -> dict[tuple[str, str], int]:
            """By model and outcome, of a workflow that no test before asks for: what they asked may be on its way still."""
            asked = f'sum by (model, outcome) (ray_mmsr_serving_requests_total{{workflow="{workflow}"}})'
            found = here.ask("query", query=asked)["result"]
            return {(series["metric"]["model"], series["metric"]["outcome"]): int(series["value"][1]) for series in found}

        post = partial(httpx.post, f"{service.url}/v1/agent", timeout=PATIENCE)
        assert [post(content=body, headers={"content-type": "application/json"}).status_code for body in ("{", "[]", "{}")] == [400] * 3
        model = {"model": "gpt", "messages": messages()}
        assert httpx.post(f"{service.url}/v1/chat/completions", json=model, timeout=PATIENCE).status_code == 404
        broken = {"question": "Who?", "image": "data:image/png;base64,AAAA", "workflow": "direct"}
        assert post(json=broken).status_code == 400
        service.ask("direct", model="other")
        asked = 0
        deadline = time.monotonic() + PATIENCE
        while missing := here.missing(SERVING):
            assert time.monotonic() < deadline, missing
            service.ask("rag")
            service.ask("direct")
            asked += 1
            time.sleep(0.5)
        wait_until(lambda: outcomes("direct") == {("atlas", "bad_input"): 1, ("atlas", "ok"): asked, ("other", "ok"): 1})
        wait_until(lambda: outcomes("unknown") == {("unknown", "bad_request"): 3, ("unknown", "model_not_found"): 1})


def test_what_cannot_be_asked_is_a_typed_error(service: Service) -> None:
    client = service.client
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=messages())
    with pytest.raises(openai.BadRequestError, match="no picture"):
        client.chat.completions.create(model="atlas", messages=[{"role": "user", "content": "Who?"}])
    broken = {"question": "Who?", "image": "data:image/png;base64,AAAA"}
    for body, said in ((broken, "cannot be read"), (broken | {"image": "http://127.0.0.1:1/x.png"}, "must be public")):
        reply = httpx.post(f"{service.url}/v1/agent", json=body, timeout=PATIENCE)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_input")
        assert said in reply.json()["error"]["message"]
    assert httpx.post(f"{service.url}/v1/agent", content="{}", headers={"content-type": "text/plain"}).status_code == 400
    lost = httpx.get(f"{service.url}/nowhere")
    assert (lost.status_code, lost.json()["error"]["type"]) == (404, "invalid_request_error")


def test_no_request_meets_a_server_error(service: Service) -> None:
    statuses = fuzz(service.url, 8)
    assert statuses["POST /v1/chat/completions"][200] and statuses["POST /v1/agent"][400]


def test_it_answers_as_an_episode_with_an_engine_of_its_own_does(service: Service) -> None:
    """Turn for turn: what the model reads is made of the searches' results, so equal tokens mean equal turns."""

    async def here() -> list[Trajectory]:
        config = service.config
        engine = VLLMEngine(config, None, config.run.namespace)
        await engine.start()
        tools = LocalTools(config)
        try:
            sample = Sample("here", SAMPLE.question, SAMPLE.image, ())
            return [
                await run_episode(
                    sample, index=0, workflow=workflow, generate=engine.generate, tools=tools, codec=engine.codec,
                    prompts=PromptSet.load(config.agent.prompts), limits=config.agent,
                    sampling=Sampling(0.0, config.agent.max_turn_tokens),
                )
                for workflow in ("on_demand", "direct", "rag")
            ]  # fmt: skip
        finally:
            await tools.close()
            engine.stop()

    for trajectory in asyncio.run(here()):
        events = service.ask(trajectory.workflow)
        sampled = int(trajectory.tokens.loss_mask.sum())
        finished = events[-1]
        assert (finished["prompt_tokens"], finished["completion_tokens"]) == (trajectory.tokens.length - sampled, sampled)
        assert [event["text"] for event in events if event["event"] == "answer"] == [trajectory.answer]
        queries = [turn.tool.query for turn in trajectory.turns if turn.tool and turn.tool.kind == "text"]
        assert [event["query"] for event in events if event["event"] == "search" and event["kind"] == "text"] == queries


def test_weights_change_and_an_engine_dies_under_load_and_no_request_fails(service: Service) -> None:
    refused = service.bring_in(ROOT / "jobs")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")

    async def load_while(seconds: float, happens: Callable[[], None]) -> list[tuple[int, str]]:
        until = time.monotonic() + seconds
        answers: list[tuple[int, str]] = []

        async def one(client: httpx.AsyncClient) -> None:
            body = {"model": "atlas", "messages": messages()}
            while time.monotonic() < until:
                reply = await client.post(f"{service.url}/v1/chat/completions", json=body)
                answers.append((reply.status_code, reply.json()["choices"][0]["message"]["content"] if reply.is_success else reply.text))

        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            await asyncio.gather(*(one(client) for _ in range(4)), asyncio.to_thread(happens))
        return answers

    def swap() -> None:
        time.sleep(0.5)
        assert service.bring_in(service.models / "second").json() == {"weight_version": 1}
        service.wait_for_version(1)

    answers = asyncio.run(load_while(4.0, swap))
    assert set(answers) == {(200, "Aldo"), (200, "Adrel")}
    assert httpx.get(f"{service.url}/admin/weights", params={"model": "other"}, timeout=PATIENCE).json()["proven"] == 0
    assert service.bring_in(service.models / "first", "other").json() == {"weight_version": 1}
    service.wait_for_version(1, "other")
    assert service.ask(model="other")[-2]["text"] == "Aldo"
    assert service.ask()[-2]["text"] == "Adrel"

    engine = serve.get_deployment_handle("Engine", "mmsr")
    pid = engine.stats.remote().result(timeout_s=PATIENCE)["pid"]

    def kill() -> None:
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)

    answers = asyncio.run(load_while(3.0, kill))
    assert set(answers) == {(200, "Adrel")}  # a new engine starts with the newest weights
    wait_until(lambda: sum("serves weight version 1 of" in log.read_text() for log in service.logs.glob("replica_mmsr_Engine_*.log")) == 2)
    assert engine.stats.remote().result(timeout_s=PATIENCE)["pid"] != pid


def test_each_model_follows_the_folder_of_its_own(service: Service) -> None:
    service.wait_for_version(1, "other")
    assert service.ask(model="other")[-2]["text"] == "Aldo"
    Path(shutil.copytree(service.models / "second", service.models / "new")).rename(service.models / OTHER_WATCHED)
    service.wait_for_version(2, "other")
    assert service.ask(model="other")[-2]["text"] == "Adrel"
    assert httpx.get(f"{service.url}/admin/weights", timeout=PATIENCE).json()["proven"] == 1


def test_a_client_that_goes_away_takes_its_turn_out_of_the_engine(service: Service) -> None:
    service.wait_for_version(1)
    (service.models / "endless").rename(service.models / WATCHED)  # as a run puts its best model there
    service.wait_for_version(2)
    engine = serve.get_deployment_handle("Engine", "mmsr")

    def stats() -> dict[str, int]:
        return engine.stats.remote().result(timeout_s=PATIENCE)

    async def leave(path: str, body: dict[str, Any]) -> None:
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            asking = asyncio.create_task(client.post(service.url + path, json=body))
            await asyncio.to_thread(wait_until, lambda: stats()["requests"] == 1)
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled()

    for path, body in (
        ("/v1/agent", {"question": SAMPLE.question, "image": DATA_URL}),
        ("/v1/chat/completions", {"model": "atlas", "messages": messages(), "stream": True}),
        ("/v1/chat/completions", {"model": "atlas", "messages": messages()}),
    ):
        before = stats()["tokens"]
        asyncio.run(leave(path, body))
        wait_until(lambda: stats()["requests"] == 0)
        assert stats()["tokens"] == before, "the turn ended by itself"


def test_who_is_inside_is_answered_before_the_service_stops(service: Service) -> None:
    engine = serve.get_deployment_handle("Engine", "mmsr")
    url, body = f"{service.url}/v1/chat/completions", {"model": "atlas", "messages": messages(), "max_tokens": 500}
    patient = replace(service.config, serving=replace(service.config.serving, shutdown_seconds=PATIENCE))
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(httpx.post, url, json=body, timeout=PATIENCE)
        wait_until(lambda: engine.stats.remote().result(timeout_s=PATIENCE)["requests"] == 1)
        stopping = pool.submit(drain, patient)
        statuses = set()
        while not asking.done():
            statuses.add(httpx.get(f"{service.url}/readyz", timeout=PATIENCE).status_code)
        stopping.result(PATIENCE)
    assert asking.result().json()["usage"]["completion_tokens"] == 500
    assert 503 in statuses
    assert httpx.get(f"{service.url}/readyz", timeout=PATIENCE).status_code == 404  # Serve's own answer where no application is
