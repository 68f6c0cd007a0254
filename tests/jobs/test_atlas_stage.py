"""What the jobs ask of the made-up world."""

import json
from pathlib import Path

import pytest
import ray

from jobs import atlas_stage
from jobs.atlas_stage import check_labels, web_host
from mmsr_ray.atlas.prepare import prepare, world_of
from mmsr_ray.config import ConfigError, load
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.mixture import LEFT_OUT
from mmsr_ray.head import Node


def test_labels_are_checked_in_the_set_and_in_all() -> None:
    config = load(None, ["model.path=none", "data.train=none", "data.test=none"])
    known = world_of(config.atlas).entities[0].name
    right = Candidate("a", concept=known, question="What is the city of this place?", need="search_free")
    wrong = Candidate("b", concept=known, question="What is the song of this place?", need="mix_required").dropped(LEFT_OUT)
    others = [
        Candidate("c", concept="Nobody", question="What is this?", need="mix_required"),
        Candidate("d", concept=known).dropped("no image"),
    ]
    found = check_labels(config, [right, wrong, *others])
    assert found["balance_label_accuracy"] == 0.5
    assert found["balance_labels"] == {"search_free": {"search_free": 1}, "text_required": {"mix_required": 1}}
    assert found["balance_label_accuracy_in_set"] == 1.0
    assert found["balance_precision"] == {"search_free": 1.0, "mix_required": 0.0} and found["balance_rules"] == {}


def test_rules_are_compared_on_the_same_rollouts() -> None:
    """Each of three questions that need both searches was once guessed right; one that needs none is always right."""
    config = load(None, ["model.path=none", "data.train=none", "data.test=none", "construction.balance.min_success=0.6"])
    entities = world_of(config.atlas).entities
    known, unknown = entities[0].name, entities[-1].name
    attempts = {way: {"correct": True, "image_searches": way, "text_searches": way} for way in (0, 1)}
    free, guessed, needed = [attempts[0]] * 8, [attempts[0]] + [attempts[1]] * 7, [attempts[1]] * 8
    seen = {"a": (known, free), "b": (unknown, guessed), "c": (unknown, guessed), "d": (unknown, needed), "e": (unknown, needed)}
    found = check_labels(
        config,
        [
            Candidate(key, concept=concept, question="What is the city of this?", attempts=json.dumps(tried))
            for key, (concept, tried) in seen.items()
        ],
    )
    assert found["balance_rules"]["as configured"] == {"labelled": 3, "accuracy": 1.0, "questions": 3.0, "accuracy_in_set": 1.0}
    paper = found["balance_rules"]["the paper's"]
    assert (paper["labelled"], paper["accuracy"]) == (5, 3 / 5) and paper["accuracy_in_set"] < 1


def test_a_world_that_served_another_model_gets_its_policy_where_one_is_asked_for(tmp_path: Path) -> None:
    small = ["atlas.known=2", "atlas.unknown_demonstrated=2", "atlas.unknown_train=2", "atlas.unknown_test=2"]
    settings = [f"run.dir={tmp_path}", *small, "atlas.train_questions=2", "atlas.test_questions=2"]
    recipe = "jobs/configs/atlas.yaml"
    prepare(load(recipe, [*settings, f"model.path={tmp_path}/somebodys"]))
    config = load(recipe, settings)
    assert not Path(config.model.path).exists()
    prepare(config)
    assert (Path(config.model.path) / "config.json").is_file()


@pytest.mark.parametrize(
    ("host", "permitted", "said"),
    [
        ("127.0.0.1", [], ""),
        ("10.0.0.7", ["10.0.0.0/24"], ""),
        ("10.0.0.7", ["127.0.0.1"], r"atlas\.host is 10\.0\.0\.7, which tools\.private_hosts does not allow"),
        ("atlas", [], r"atlas\.host='atlas' is no address"),
    ],
)
def test_the_web_listens_where_the_tools_may_reach_it(host: str, permitted: list[str], said: str) -> None:
    config = load(None, ["model.path=none", "data.train=none", "data.test=none"])
    config.atlas.host, config.tools.private_hosts = host, permitted
    if said:
        with pytest.raises(ConfigError, match=said):
            web_host(config)
    else:
        assert web_host(config) == host


def test_a_web_of_one_node_is_refused_where_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(None, ["model.path=none", "data.train=none", "data.test=none"])
    nodes = [Node(address, address, {}) for address in (ray.util.get_node_ip_address(), "10.0.0.8")]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(atlas_stage, "living_nodes", lambda: nodes)
    with pytest.raises(ConfigError, match=r"others \(10\.0\.0\.8\): set atlas\.host=node"):
        web_host(config)
    del nodes[1]
    assert web_host(config) == "127.0.0.1"
