"""Near-duplicates of pictures and questions, many of them, and what test sets must not lose."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmsr_ray.config import DataConfig
from mmsr_ray.data.construction.candidate import Candidate, write
from mmsr_ray.data.construction.duplicates import DUPLICATE, LEAKED_ANSWER, LEAKED_PICTURE, LEAKED_QUESTION, UNREADABLE, Secrets, distinct
from mmsr_ray.data.construction.fingerprints import BITS, ROOM, Likenesses, fingerprint
from mmsr_ray.data.construction.leakage import secrets_of
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.types import Sample

BITS_APART = 12


def drawing(seed: int, size: int = 128, **saving: object) -> bytes:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (512, 512), tuple(int(v) for v in rng.integers(0, 256, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        (x, y), (w, h) = rng.integers(0, 400, 2), rng.integers(40, 200, 2)
        pen.ellipse((int(x), int(y), int(x + w), int(y + h)), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    buffer = io.BytesIO()
    image.resize((size, size)).save(buffer, **(saving or {"format": "PNG"}))  # type: ignore[arg-type]
    return buffer.getvalue()


def apart(one: bytes, other: bytes) -> int:
    return (fingerprint(one) ^ fingerprint(other)).bit_count()


def test_scaled_and_compressed_pictures_are_alike_and_others_are_not() -> None:
    for seed in range(20):
        assert apart(drawing(seed), drawing(seed, 300, format="JPEG", quality=60)) <= BITS_APART
        assert apart(drawing(seed), drawing(seed + 100)) > 2 * BITS_APART


def test_colour_alone_tells_pictures_apart() -> None:
    def disc(colour: str) -> bytes:
        image = Image.new("RGB", (64, 64), "grey")
        ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=colour)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    assert apart(disc("red"), disc("lime")) > BITS_APART


def test_the_index_finds_exactly_what_differs_in_few_bits() -> None:
    rng = np.random.default_rng(0)
    marks = [int.from_bytes(rng.bytes(BITS // 8), "big") for _ in range(200)]
    index = Likenesses(5)
    for mark in marks:
        assert index.add(mark) == mark
    for mark in marks:
        flips = [int(place) for place in rng.choice(BITS, 6, replace=False)]
        near = mark
        for place in flips[:5]:
            near ^= 1 << place
        assert index.find(near) == mark
        assert index.find(near ^ 1 << flips[5]) is None


def test_the_earliest_is_found_also_where_hashes_share_most_bits() -> None:
    rng = np.random.default_rng(1)
    marks = [sum(1 << int(place) for place in rng.choice(BITS, 5, replace=False)) for _ in range(2 * ROOM)]  # as on white ground
    index, kept = Likenesses(5), list[int]()
    for mark in marks:
        earliest = next((other for other in kept if (mark ^ other).bit_count() <= 5), None)
        assert index.find(mark) == earliest
        if earliest is None:
            kept.append(mark)
        assert index.add(mark) == (mark if earliest is None else earliest)
    assert ROOM < len(kept) < len(marks)


def candidate(key: str, question: str, answer: str = "tin", concept: str = "") -> Candidate:
    return Candidate(key, concept=concept, question=question, answer=answer)


def run(candidates: list[Candidate], marks: dict[str, int], secrets: Secrets | None = None) -> list[str]:
    return [c.status for c in distinct(lambda: candidates, marks, secrets or Secrets(Likenesses(BITS_APART)), BITS_APART, 0.8)]


def test_the_same_question_about_like_pictures_stays_once() -> None:
    metal, metal2 = "What metal is this old thing in the picture made of?", "What metal is this old thing in the picture made of, then?"
    song = "What is the song of this?"
    candidates = [
        candidate("first", metal),
        candidate("same", metal, "iron"),
        candidate("nearly", metal2, "iron"),
        candidate("answer", "What is this of?", "Tin"),
        candidate("another", song, "Dawn"),
        candidate("elsewhere", metal),
        candidate("blind", metal),
    ]
    marks = {"first": 0, "same": 1, "nearly": 3, "answer": 0, "another": 0, "elsewhere": (1 << 100) - 1}
    assert run(candidates, marks) == ["kept", DUPLICATE, DUPLICATE, DUPLICATE, "kept", "kept", UNREADABLE]


def test_dropped_candidates_pass_and_stand_for_nobody() -> None:
    gone = candidate("gone", "What is this?").dropped("no picture")
    assert run([gone, candidate("here", "What is this?")], {"gone": 0, "here": 0}) == ["no picture", "kept"]


def test_ten_thousand_near_duplicates_take_seconds() -> None:
    rng = np.random.default_rng(0)
    candidates = [
        candidate(str(i), f"What is fact number {i} of the many facts about this very thing?", f"answer {i}") for i in range(5_000)
    ]
    candidates += [candidate(str(i), "What metal is this made of?") for i in range(5_000, 10_000)]
    marks = {c.key: 1 << int(rng.integers(BITS)) for c in candidates}  # each differs from any other in at most two bits
    began = time.monotonic()
    statuses = run(candidates, marks)
    assert time.monotonic() - began < 20
    assert statuses[5_000:].count("kept") == 1 and statuses[:5_000].count("kept") > 0


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    known = Candidate("t", concept="The Nimbus", image=drawing(1), question="What is this?", answer="tin", aliases=("Sn",))
    write(tmp_path / "stage.parquet", [known])
    write_fvqa(tmp_path / "fvqa.parquet", [Sample("u", "What is this?", drawing(2), ("tin",))])
    return [str(tmp_path / "stage.parquet"), str(tmp_path / "fvqa.parquet")]


def test_nothing_of_the_test_sets_stays(sets: list[str]) -> None:
    secrets = secrets_of(sets, BITS_APART, DataConfig())
    candidates = [
        candidate("picture", "What is it?"),
        candidate("picture2", "What is it?"),
        candidate("fact", "What is it made of?", "sn", concept="nimbus"),
        candidate("other fact", "What is it made of?", "gold", concept="nimbus"),
    ]
    images = {"picture": drawing(1, 90), "picture2": drawing(2, 200), "fact": drawing(3), "other fact": drawing(4)}
    marks = {key: fingerprint(image) for key, image in images.items()}
    assert run(candidates, marks, secrets) == [LEAKED_PICTURE, LEAKED_PICTURE, LEAKED_ANSWER, "kept"]


def test_a_question_of_a_test_set_stays_where_it_gives_no_answer_away(tmp_path: Path) -> None:
    asked = {"Who built this iron tower?": "Eiffel", "When was it founded?": "1890", "What is it made of?": "tin"}
    write_fvqa(tmp_path / "other.parquet", [Sample(q, q, drawing(n), (a,)) for n, (q, a) in enumerate(asked.items())])
    candidates = [
        candidate("fact", "Who built this Iron Tower", "eiffel"),  # of another picture of the tower
        candidate("other answer", "Who built the tower?", "eiffel"),
        candidate("founded", "When was it founded?", "1890"),  # a question with many answers
        candidate("founded too", "When was it founded?", "1920"),
        candidate("made", "What is it made of?", "gold"),
    ]
    marks = {c.key: fingerprint(drawing(10 + n)) for n, c in enumerate(candidates)}
    secrets = secrets_of([str(tmp_path / "other.parquet")], BITS_APART, DataConfig())
    assert run(candidates, marks, secrets) == [LEAKED_QUESTION, "kept", "kept", "kept", "kept"]


@pytest.mark.parametrize("share", [0.1, 0.5])  # of bits that are set: pictures on white ground agree in most bands
def test_many_or_few_to_compare_the_earliest_like_picture_is_found(share: float) -> None:
    rng = np.random.default_rng(0)
    bits = rng.random((600, BITS)) < share
    bits[300:] = bits[rng.integers(0, 300, 300)] ^ (rng.random((300, BITS)) < 0.04)
    marks = [int("".join(str(int(b)) for b in row), 2) for row in bits]
    index, known = Likenesses(BITS_APART), []
    for mark in marks:
        earliest = next((other for other in known if (other ^ mark).bit_count() <= BITS_APART), None)
        assert index.add(mark) == (mark if earliest is None else earliest)
        known += [mark] if earliest is None else []
    assert 300 < len(known) < 600
