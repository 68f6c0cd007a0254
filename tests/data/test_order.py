"""The order of prompts, pass by pass, against a sort of everything at once. No Ray."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_ray.config import DataConfig
from mmsr_ray.data.cursor import Place
from mmsr_ray.data.reader import Index, IndexRow, rank
from mmsr_ray.data.schema import BadRows, Fields
from mmsr_ray.data.stream import PromptStream

SEED = 5


def stream(questions: int, start: Place) -> PromptStream:
    index = Index("none", [IndexRow(Fields(f"u{i}", "?", ("!",)), "none", i) for i in range(questions)], BadRows())
    return PromptStream(index, DataConfig(train="", test=""), seed=SEED, start=start)


def everything(questions: int, epochs: int) -> list[tuple[Place, int]]:
    return [found for epoch in range(epochs) for found in sorted((Place(epoch, rank(f"u{i}", SEED, epoch)), i) for i in range(questions))]


@settings(max_examples=60, deadline=None)
@given(questions=st.integers(1, 12), start=st.integers(0, 30), passes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_passes_of_any_length_from_any_place_are_pieces_of_one_order(questions: int, start: int, passes: list[int]) -> None:
    whole = everything(questions, epochs=100 // questions + 3)
    made = stream(questions, whole[start][0])
    found = [prompt for length in passes for prompt in made._following(length)]
    assert found == whole[start : start + sum(passes)]


def test_a_place_behind_the_last_prompt_of_an_epoch_is_the_next_epoch() -> None:
    whole = everything(3, epochs=2)
    assert stream(3, Place(0, 1 << 63))._following(2) == whole[3:5]
    assert stream(3, whole[2][0].after())._following(2) == whole[3:5]
