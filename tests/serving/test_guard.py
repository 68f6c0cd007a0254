"""Keys, limits, errors and the canary."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest

from mmsr_ray.serving.canary import Canary
from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.keys import Keys, KeysError
from mmsr_ray.serving.limits import Quotas, Room
from mmsr_ray.serving.settings import ScaleConfig, ServingConfig, complaint


def entry(name: str, key: str, rest: str = "") -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}{rest}"


def test_keys_of_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(entry("ann", "one") + "\n")
    keys = Keys.read(ServingConfig(host="0.0.0.0", keys_file=str(file)), {"MMSR_API_KEYS": entry("bob", "two", ":admin")})
    assert (keys.caller("Bearer one").name, keys.caller("Bearer one").admin) == ("ann", False)
    assert (keys.caller("bearer two").name, keys.caller("bearer two").admin) == ("bob", True)
    for wrong in ("", "Bearer", "Bearer three", "Basic one", "one"):
        with pytest.raises(Refused) as refused:
            keys.caller(wrong)
        assert refused.value.status == 401


def test_without_keys_only_this_machine_may_ask(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        assert Keys.read(ServingConfig(host=host), {}).caller("").name == "anybody"
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
        with pytest.raises(KeysError, match="keys_file"):
            Keys.read(ServingConfig(host=host), {})
    with pytest.raises(KeysError, match="cannot be read"):
        Keys.read(ServingConfig(keys_file=str(tmp_path / "none")), {})
    with pytest.raises(KeysError, match="sha256sum") as error:
        Keys(["ann:secret"])
    assert "secret" not in str(error.value)


def test_requests_per_minute_of_each_key() -> None:
    now = [0.0]
    limits = Quotas(ServingConfig(requests_per_minute=2), lambda: now[0])
    for _ in range(2):
        limits.take("ann")
    with pytest.raises(Refused) as refused:
        limits.take("ann")
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "30"})
    limits.take("bob")
    now[0] = 30.0
    limits.take("ann")


def test_a_key_that_has_spent_its_budget() -> None:
    limits = Quotas(ServingConfig(requests_per_minute=0, budget_usd=0.1))
    limits.take("ann")
    limits.charge("ann", 0.1)
    with pytest.raises(Refused) as refused:
        limits.take("ann")
    assert refused.value.as_json()["error"]["code"] == "insufficient_quota"
    limits.take("bob")


def test_no_more_requests_than_there_may_be() -> None:
    limits = Room(ServingConfig(max_requests=1, retry_after_seconds=7))
    with limits.inside():
        with pytest.raises(Refused) as refused, limits.inside():
            pass
        assert (refused.value.status, refused.value.retry_after) == (429, 7)
    with limits.inside():
        assert limits.open == 1


def test_a_refusal_travels() -> None:
    again = pickle.loads(pickle.dumps(Refused("overloaded", "busy", retry_after=3)))
    assert (again.code, again.message, again.retry_after) == ("overloaded", "busy", 3)


def test_impossible_settings() -> None:
    assert complaint(ServingConfig()) == ""
    for wrong in (
        ServingConfig(model_name="a:b"),
        ServingConfig(max_requests=0),
        ServingConfig(agent=ScaleConfig(max_replicas=0)),
        ServingConfig(request_seconds=0),
        ServingConfig(budget_usd=-1),
        ServingConfig(models_watch={"mmsr": "runs/a/best"}),
        ServingConfig(models={"b": "models/b"}, models_watch={"c": "runs/c/best"}),
        ServingConfig(models={"b": "models/b"}, models_watch={"b": ""}),
    ):
        assert "serving" in complaint(wrong)


def test_one_engine_tries_new_weights_and_then_all_get_them() -> None:
    canary = Canary(60.0)
    assert [canary.wanted(engine, 0) for engine in "ab"] == [0, 0]
    canary.bring_in(1)
    assert (canary.wanted("b", 0), canary.wanted("a", 0)) == (1, 0)
    assert canary.busy
    assert canary.wanted("b", 1) == 1
    assert not canary.busy
    assert (canary.wanted("a", 0), canary.wanted("new", 0)) == (1, 1)
    assert canary.served == {"a": 0, "b": 1, "new": 0}


def test_weights_that_kill_their_canary_reach_nobody_else() -> None:
    now = [0.0]
    canary = Canary(60.0, lambda: now[0])
    canary.bring_in(1)
    assert canary.wanted("a", 0) == 1
    now[0] = 61.0
    assert canary.wanted("b", 0) == 0
    assert not canary.busy
    canary.bring_in(2)
    assert canary.wanted("b", 0) == 2
    canary.forget("b")
    assert canary.wanted("c", 0) == 0
