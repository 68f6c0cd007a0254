"""What the jobs ask of the made-up world."""

from jobs.atlas_stage import check_labels
from mmsr_ray.atlas.prepare import world_of
from mmsr_ray.config import load
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.mixture import LEFT_OUT


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
