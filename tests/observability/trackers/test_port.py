"""Which numbers of a record a tracker gets, and what of a config may leave the machine."""

from __future__ import annotations

import pytest

from mmsr_ray.config import ConfigError, load, to_dict
from mmsr_ray.evaluation.summary import config_hash
from mmsr_ray.observability.trackers.port import bare_url, flatten, settings_of

BASE = ["model.path=m", "data.train=a", "data.test=b"]


def test_flatten() -> None:
    record = {
        "step": 3,
        "reward": 0.5,
        "by_need": {"image_required": 1},
        "kl": float("nan"),
        "note": "x",
        "none": None,
        "seconds": {"a": {"b": 2}},
    }
    assert dict(flatten(record)) == {"reward": 0.5, "by_need/image_required": 1.0, "seconds/a/b": 2.0}


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://me:secret@host/a/b", "https://host/a/b"),
        ("https://host/v1?key=secret#x", "https://host/v1"),
        ("https://host?key=secret@x", "https://host"),
        ("sqlite:////data/x.db", "sqlite:////data/x.db"),
    ],
)
def test_urls_lose_what_may_be_secret(url: str, bare: str) -> None:
    assert bare_url(url) == bare


def test_no_secret_of_a_config_leaves() -> None:
    config = load(
        None, [*BASE, "tools.text_search.url=https://me:hidden@search.example/v1?api_key=hidden", "tools.text_search.key_env=MY_KEY"]
    )
    sent = settings_of(to_dict(config))
    assert sent["tools"]["text_search"]["url"] == "https://search.example/v1"
    assert sent["tools"]["text_search"]["key_env"] == "MY_KEY"
    assert "hidden" not in repr(sent)
    assert sent["agent"] == to_dict(config)["agent"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.trackers=[nobody]", "run.trackers names nobody: choose from tensorboard, wandb, mlflow"),
        ("run.tracking.project=", "run.tracking.project must not be empty"),
        ("run.tracking.mlflow_uri=http://me:secret@host", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_impossible_settings_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")) as caught:
        load(None, [*BASE, override])
    assert "secret" not in str(caught.value)


def test_a_run_may_change_its_trackers() -> None:
    plain, tracked = load(None, BASE), load(None, [*BASE, "run.trackers=[wandb,mlflow]", "run.tracking.project=other"])
    assert config_hash(plain) == config_hash(tracked)
