"""The application as `serve run` and a RayService build it, and the quotas that its ingresses share. Without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app

from mmsr_ray.config import Config, ConfigError, to_dict
from mmsr_ray.serving.app import build
from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.keys import KeysError
from mmsr_ray.serving.quotas import BookKeeper, SharedQuotas
from mmsr_ray.serving.settings import ServingConfig

KEY = "ann:" + 64 * "a"


def built(model: Path, **args: Any) -> set[str]:
    """Names of the deployments."""
    given = {"model.path": str(model), "data.train": "x", "data.test": "x"} | args
    return {part.name for part in build_app(call_user_app_builder_with_args_if_necessary(build, given), name="mmsr").deployments}


def test_it_is_built_from_a_file_and_settings_over_it(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("serving: {host: 0.0.0.0, ingress_replicas: 2}\n")
    with pytest.raises(KeysError, match="keys_file"):
        built(tiny_model, config=str(file))
    monkeypatch.setenv("MMSR_API_KEYS", KEY)
    parts = {"Ingress", "Agent", "Engine", "Searches", "Weights"}
    assert built(tiny_model, config=str(file)) == parts | {"BookKeeper"}
    assert built(tiny_model, config=str(file), **{"serving.ingress_replicas": 1, "serving.model_name": "m"}) == parts
    two = built(tiny_model, config=str(file), **{"serving.models": {"b": str(tiny_model)}, "serving.ingress_replicas": 1})
    assert two == parts | {"Engine-b", "Weights-b"}
    assert built(tiny_model, config=str(file), **{"serving.ingress_replicas": 1, "serving.budget_usd": 1}) == parts | {"BookKeeper"}
    with pytest.raises(ConfigError, match="with:colon"):
        built(tiny_model, config=str(file), **{"serving.models": {"with:colon": str(tiny_model)}})
    with pytest.raises(ConfigError, match="make serve"):
        built(tiny_model, **{"atlas.enabled": True, "atlas.dir": str(tmp_path)})


class Handle:
    """Of the deployment, in this process; `lost` as when its replica died."""

    def __init__(self, keeper: BookKeeper) -> None:
        self.lost = False
        self.take = SimpleNamespace(remote=lambda *args: self._call(keeper.take(*args)))
        self.charge = SimpleNamespace(remote=lambda *args: self._call(keeper.charge(*args)))

    async def _call(self, call: Any) -> Any:
        if self.lost:
            call.close()
            raise RayActorError
        return await call


async def test_a_key_has_one_rate_and_one_budget_at_all_ingresses() -> None:
    config = Config(serving=ServingConfig(requests_per_minute=3, budget_usd=0.1, ingress_replicas=2))
    config.model.path = config.data.train = config.data.test = "x"
    handle: Any = Handle(BookKeeper(to_dict(config)))
    here, there = SharedQuotas(handle), SharedQuotas(handle)
    for ingress in (here, there, here):
        await ingress.take("ann")
    with pytest.raises(Refused, match="too many requests"):
        await there.take("ann")
    await here.take("bob")
    await SharedQuotas(handle).charge("bob", 0.1)  # an agent does
    with pytest.raises(Refused, match="budget"):
        await there.take("bob")
    handle.lost = True
    with pytest.raises(Refused) as refused:
        await here.take("carl")
    assert refused.value.status == 503
    await here.charge("carl", 1.0)  # never raises: the answer is there
