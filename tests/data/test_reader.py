"""Rows in, samples out: every shape that released sets have, every way in which a row can be bad."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsr_ray.config import DataConfig
from mmsr_ray.data.images import ImageStore
from mmsr_ray.data.reader import find_files, iter_samples, rank, read_index, read_samples
from mmsr_ray.data.schema import BadRow, DataError, check_image, parse_row, write_fvqa
from mmsr_ray.types import Need, Sample

MINI = Path(os.environ.get("MMSR_FVQA_MINI", Path(__file__).parents[3] / "shared/data/fvqa_mini.parquet"))
CONFIG = DataConfig(train="", test="", max_image_bytes=100_000, max_image_pixels=10_000, max_question_chars=100)


def png(colour: int = 0, size: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (colour % 256, colour // 256, 0)).save(out, "PNG")
    return out.getvalue()


def sample(i: int) -> Sample:
    return Sample(
        f"u{i}",
        f"question {i}?",
        png(i),
        (f"answer {i}", "other"),
        "mmsearch_r1/test",
        f"http://pictures/{i}.png",
        list(Need)[i % 4],
        "search_free",
    )


def raw(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "prompt": [{"content": "What is it?", "role": "user"}],
        "images": [{"bytes": png(), "path": None}],
        "reward_model": {"ground_truth": "Spain", "candidate_answers": '["ES", "Spain", "España"]', "style": "rule"},
        "data_source": "mmsearch_r1/x",
        "image_urls": None,
    }
    return row | changes


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(150)]  # more than two row groups
    assert write_fvqa(tmp_path / "deep" / "t.parquet", samples) == 150
    assert read_samples(str(tmp_path / "deep"), CONFIG) == samples
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["t.parquet"]


def test_row_shapes_of_released_sets() -> None:
    fields = parse_row(raw(), "a", CONFIG)
    assert fields.answers == ("Spain", "ES", "España")
    assert (fields.source, fields.image_url, fields.need, fields.category) == ("mmsearch_r1/x", None, None, None)
    through_pandas = raw(
        prompt=np.array([{"content": "Where?", "role": "user"}], dtype=object),
        reward_model={"ground_truth": 1889, "candidate_answers": np.array(["in 1889", None, 1889], dtype=object)},
        image_urls=np.array(["", "http://x/y.png"], dtype=object),
        need="mix_required",
        category=float("nan"),
    )
    fields = parse_row(through_pandas, "b", CONFIG)
    assert (fields.question, fields.answers, fields.image_url) == ("Where?", ("1889", "in 1889"), "http://x/y.png")
    assert (fields.need, fields.category) == (Need.MIX, None)
    assert parse_row(raw(reward_model={"ground_truth": "x", "candidate_answers": ""}), "c", CONFIG).answers == ("x",)
    with_system = [{"content": "Be brief.", "role": "system"}, {"content": "Who?", "role": "user"}]
    assert parse_row(raw(prompt=with_system), "d", CONFIG).question == "Who?"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"prompt": None}, "empty question"),
        ({"prompt": [{"content": "  ", "role": "user"}]}, "empty question"),
        ({"prompt": [{"content": "x" * 101, "role": "user"}]}, "question too long"),
        ({"reward_model": None}, "empty answer"),
        ({"reward_model": {"ground_truth": " ", "candidate_answers": None}}, "empty answer"),
        ({"reward_model": {"ground_truth": "x", "candidate_answers": "[oops"}}, "candidate answers are not JSON"),
        ({"need": "maybe"}, "unknown need"),
    ],
)
def test_bad_fields_have_a_kind(changes: dict[str, Any], kind: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_row(raw(**changes), "u", CONFIG)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (None, "no image"),
        (b"", "no image"),
        (b"not a picture", "corrupt image"),
        (png(size=64)[:-30], "corrupt image"),
        (png(size=101), "image has too many pixels"),
        (b"x" * 100_001, "image has too many bytes"),
    ],
)
def test_bad_pictures_have_a_kind(image: bytes | None, kind: str) -> None:
    with pytest.raises(BadRow) as caught:
        check_image(image, CONFIG)
    assert caught.value.kind == kind


def test_bad_rows_are_skipped_counted_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [raw(data_id=f"r{i}") for i in range(8)]
    for i in (1, 2, 3, 4):
        rows[i]["prompt"] = [{"content": "", "role": "user"}]
    rows[5]["images"] = [{"bytes": b"rubbish", "path": None}]
    rows[6]["images"] = [rows[6]["images"][0]] * 2
    rows[7]["data_id"] = "r0"
    path = write_rows(tmp_path / "t.parquet", rows)
    with caplog.at_level("WARNING"):
        assert [s.uid for s in read_samples(str(path), CONFIG)] == ["r0"]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # what the fields show, and what the pictures show
    assert "empty question: 4 (r1, r2, r3, ...)" in messages[0]
    assert "duplicate data_id: 1 (r0)" in messages[0]
    assert "corrupt image: 1 (r5)" in messages[1]
    assert "more than one image: 1 (r6)" in messages[1]


def test_rows_without_ids_get_stable_ones(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "t.parquet", [raw(), raw()])
    assert [row.fields.uid for row in read_index(str(tmp_path), CONFIG).rows] == ["a/t_0", "a/t_1", "b/t_0", "b/t_1"]


def test_unusable_sets_say_which_file_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no parquet file at .*nowhere"):
        find_files(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no parquet file"):
        find_files(str(tmp_path / "*.parquet"))
    (tmp_path / "bad.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read as parquet"):
        read_index(str(tmp_path), CONFIG)
    lacking = write_rows(tmp_path / "lacking.parquet", [{"prompt": "x", "reward_model": {"ground_truth": "y"}}])
    with pytest.raises(DataError, match=r"lacking\.parquet has no column images"):
        read_index(str(lacking), CONFIG)
    hopeless = write_rows(tmp_path / "hopeless.parquet", [raw(prompt=[{"content": "", "role": "user"}])])
    with pytest.raises(DataError, match=r"no usable row in .*hopeless\.parquet .*empty question: 1"):
        read_index(str(hopeless), CONFIG)
    blind = write_rows(tmp_path / "blind.parquet", [raw(images=[{"bytes": b"x", "path": None}])])
    with pytest.raises(DataError, match="corrupt image: 1"):
        read_samples(str(blind), CONFIG)


def test_a_subset_is_always_the_same_and_in_file_order(tmp_path: Path) -> None:
    write_fvqa(tmp_path / "t.parquet", [sample(i) for i in range(50)])
    some = [s.uid for s in iter_samples(str(tmp_path), CONFIG, questions=10, seed=1)]
    assert some == [s.uid for s in iter_samples(str(tmp_path), CONFIG, questions=10, seed=1)]
    assert len(some) == 10
    assert some == sorted(some, key=lambda uid: int(uid[1:]))
    assert set(some) == set(sorted((f"u{i}" for i in range(50)), key=lambda uid: rank(uid, 1, 0))[:10])
    assert some != [s.uid for s in iter_samples(str(tmp_path), CONFIG, questions=10, seed=2)]
    assert len(read_samples(str(tmp_path), CONFIG, questions=500)) == 50


def test_pictures_are_copied_once_and_follow_the_file(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    write_fvqa(file, [sample(i) for i in range(40)])
    store = ImageStore(tmp_path / "copies")
    assert [store.load(str(file), i) for i in (39, 0, 17)] == [png(39), png(0), png(17)]
    assert len(list((tmp_path / "copies").iterdir())) == 1
    assert ImageStore(tmp_path / "copies").load(str(file), 5) == png(5)
    write_fvqa(file, [sample(i + 100) for i in range(41)])
    assert ImageStore(tmp_path / "copies").load(str(file), 5) == png(105)
    file.unlink()
    with pytest.raises(DataError, match="is gone"):
        ImageStore(tmp_path / "copies").load(str(file), 5)


def test_pictures_of_two_columns_do_not_mix(tmp_path: Path) -> None:
    rows = [{"images": [{"bytes": png(1), "path": None}], "other": {"bytes": png(2), "path": None}, "text": "a"}]
    file = str(write_rows(tmp_path / "t.parquet", rows))
    assert ImageStore(tmp_path / "copies").load(file, 0) == png(1)
    assert ImageStore(tmp_path / "copies", "other").load(file, 0) == png(2)
    assert ImageStore(tmp_path / "copies", "text").cell(file, 0) == "a"


def test_pictures_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(png(7))
    rows = [
        raw(data_id="a", images=[{"bytes": None, "path": "pictures/1.png"}]),
        raw(data_id="b", images=[{"bytes": None, "path": "gone.png"}]),
    ]
    write_rows(tmp_path / "t.parquet", rows)
    assert [(s.uid, s.image) for s in read_samples(str(tmp_path), CONFIG)] == [("a", png(7))]


@pytest.mark.skipif(not MINI.exists(), reason="needs fvqa_mini.parquet: name it in MMSR_FVQA_MINI")
def test_a_released_file() -> None:
    samples = read_samples(str(MINI), DataConfig(train="", test=""))
    assert len(samples) == 5
    assert samples[0].question == "What is the country of origin of this food?"
    assert samples[0].answers[0] == "Spain"
    assert "ESP" in samples[0].answers
    expected = json.loads(pq.read_table(MINI).column("reward_model")[1].as_py()["candidate_answers"])
    assert set(expected) <= set(samples[1].answers)
    assert len({s.uid for s in samples}) == 5
    assert all(s.image_url is None and s.need is None for s in samples)
