"""The truth about a question follows from its concept and its words, as it does from how Atlas made it."""

from mmsr_ray.atlas.truth import label_accuracy, true_need
from mmsr_ray.atlas.world import World
from mmsr_ray.types import Need


def test_the_words_of_a_question_say_what_it_needs() -> None:
    world = World(0)
    for question in [*world.collected_questions("train", 300), *world.questions("test", 300)]:
        assert true_need(world, question.entity.name, question.text) is question.need
    someone = world.entities[0].name
    assert true_need(world, someone, "Who is the Keeper of the animal in this picture?") is Need.TEXT
    assert true_need(world, "Nobody Known", "What is this called?") is None
    assert true_need(world, someone, "Which city and which metal are these?") is None


def test_accuracy_counts_labels_that_agree() -> None:
    found = label_accuracy([(Need.IMAGE, Need.IMAGE), (Need.MIX, Need.MIX), (Need.SEARCH_FREE, Need.MIX), (Need.TEXT, Need.TEXT)])
    assert found["balance_label_accuracy"] == 0.75
    assert found["balance_labels"]["mix_required"] == {"search_free": 1, "mix_required": 1}
    assert found["balance_precision"] == {"search_free": 0.0, "image_required": 1.0, "text_required": 1.0, "mix_required": 1.0}
    assert found["balance_recall"] == {"image_required": 1.0, "text_required": 1.0, "mix_required": 0.5}
    nothing = label_accuracy([])
    assert nothing["balance_label_accuracy"] is None and not any(nothing[f"balance_{name}"] for name in ("labels", "precision", "recall"))
