"""The document of the HTTP interface against the routes, and a fuzz by it of the ingress over real HTTP, a scripted policy behind it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from ray import serve
from ray.exceptions import RayTaskError
from starlette.routing import Route

from mmsr_ray.agent.tokens import Codec
from mmsr_ray.config import DataConfig
from mmsr_ray.serving.errors import ERRORS, Refused
from mmsr_ray.serving.ingress import api
from mmsr_ray.serving.openapi import document
from mmsr_ray.serving.weights import fits
from tests.serving.fuzz import fuzz
from tests.serving.test_ingress import Handle, Response, ingress

DOCUMENT = document(["atlas"], DataConfig(train="", test=""))
PAGES = {"/", "/page/{name}"}  # for browsers


def test_every_public_route_is_in_the_document_and_no_other() -> None:
    routes = {(route.path, method.lower()) for route in api.routes if isinstance(route, Route) for method in route.methods or ()}
    told = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert {(path, method) for path, method in routes if path not in PAGES and method != "head"} == told


def test_every_status_of_an_error_is_one_that_the_service_has() -> None:
    known = {str(status) for status, _ in ERRORS.values()}
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            assert set(operation["responses"]) <= known


class Weights:
    """A handle of the deployment of weights: it refuses what `fits` refuses."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self.bring_in, self.state = SimpleNamespace(remote=self._bring_in), SimpleNamespace(remote=self._state)

    def _bring_in(self, path: str) -> Response:
        async def refused() -> int:
            try:
                fits(str(self._model), path)
            except Refused as error:
                raise RayTaskError("bring_in", "", error) from None
            return 1

        return Response(refused())

    def _state(self) -> Response:
        async def state() -> dict[str, Any]:
            return {"proven": 0, "target": 0, "served": {"one": 0}}

        return Response(state())


@pytest.fixture
def url(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of the real routes in a server of this process."""
    codec = Codec.load(str(tiny_model), min_pixels=56 * 56, max_pixels=112 * 112, thumbnail_max_pixels=56 * 56)
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="warning"))

    async def run() -> None:
        made = ingress(Handle(codec), Weights(tiny_model), keys=False, requests_per_minute=0, image_url_seconds=1.0)
        monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(servable_object=made))
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


def test_whatever_is_sent_no_answer_is_a_server_error_and_all_are_as_the_document_says(url: str) -> None:
    statuses = fuzz(url, 30)
    for operation in ("POST /v1/chat/completions", "POST /v1/agent"):
        assert statuses[operation][200] and statuses[operation][400], "the fuzz did not reach both sides"
