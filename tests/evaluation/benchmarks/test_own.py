"""A user's own files."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.benchmarks import open_benchmark
from mmsr_ray.types import Need
from tests.data.test_reader import MINI
from tests.evaluation.benchmarks import sets
from tests.evaluation.benchmarks.sets import config, jsonl, png, table


def test_jsonl_with_two_columns_and_pictures_beside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(png(1))
    encoded = base64.b64encode(png(2)).decode()
    rows = [
        {"question": "Who?", "answer": "Ada", "image_path": "pictures/1.png", "note": "x"},
        {"question": "When?", "answer": 1843, "image_path": f"data:image/png;base64,{encoded}"},
        {"question": "Where?", "answer": ["London", "the UK"], "image_path": encoded},
    ]
    with caplog.at_level("INFO"):
        benchmark = open_benchmark(str(jsonl(tmp_path / "mine.jsonl", rows)), config())
    assert f"{tmp_path}/mine.jsonl: question from question, answer from answer, picture from image_path; not read: note" in caplog.messages
    samples = list(benchmark.samples())
    assert (benchmark.name, benchmark.size) == ("mine", None)
    assert [(s.uid, s.answers) for s in samples] == [("mine_0", ("Ada",)), ("mine_1", ("1843",)), ("mine_2", ("London", "the UK"))]
    assert [s.image for s in samples] == [png(1), png(2), png(2)]


def test_parquet_with_other_names(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"ID": "a", "Query": "Who?", "gold": "Ada", "aliases": ["A. L."], "Image": png(1), "need": "mix_required", "category": "people"},
        {"ID": "b", "Query": "Who?", "gold": "Bob", "aliases": None, "Image": png(2), "need": None, "category": None},
    ]
    benchmark = open_benchmark(f"named={table(tmp_path / 'x.parquet', rows)}", config())
    first, second = benchmark.samples()
    assert (benchmark.name, first.uid, first.answers, first.need, first.category) == ("named", "a", ("Ada", "A. L."), Need.MIX, "people")
    assert (second.image, second.answers, second.source) == (png(2), ("Bob",), "named")


@pytest.mark.parametrize("cell", [{"bytes": png(3), "path": None}, [{"bytes": png(3), "path": "x.png"}], png(3)])
def test_pictures_as_data_sets_store_them(tmp_path: Path, cell: Any) -> None:
    file = table(tmp_path / "t.parquet", [{"question": "Who?", "answer": "Ada", "image": cell}])
    assert [s.image for s in open_benchmark(str(file), config()).samples()] == [png(3)]


def test_a_folder_of_parts_and_the_schema_of_fvqa(tmp_path: Path) -> None:
    for part in range(3):
        sets.fvqa(tmp_path / "set" / f"{part}.parquet", 2, f"part{part}")
    benchmark = open_benchmark(str(tmp_path / "set"), config())
    assert [s.uid for s in benchmark.samples()] == [f"part{part}_{i}" for part in range(3) for i in range(2)]
    assert benchmark.name == "set"


@pytest.mark.skipif(not MINI.exists(), reason="needs fvqa_mini.parquet: name it in MMSR_FVQA_MINI")
def test_a_released_file() -> None:
    samples = list(open_benchmark(str(MINI), config()).samples())
    assert len(samples) == 5
    assert samples[0].question == "What is the country of origin of this food?"
    assert "ESP" in samples[0].answers


def test_bad_rows_of_every_kind_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(png())
    good = {"id": "a", "question": "Who?", "answer": "Ada", "image": "a.png"}
    rows = [
        good,
        good,
        good | {"id": "b", "question": ""},
        good | {"id": "c", "answer": []},
        good | {"id": "d", "image": None},
        good | {"id": "e", "image": "gone.png"},
        good | {"id": "f", "image": ["a.png", "a.png"]},
        good | {"id": "g", "image": "iVBORw0KGgo!"},
        good | {"id": "h", "question": "x" * 9_000},
        "{broken",
        "[1, 2]",
    ]
    benchmark = open_benchmark(str(jsonl(tmp_path / "t.jsonl", rows)), config())
    assert [sample.uid for sample in benchmark.samples()] == ["a"]
    assert benchmark.bad.counts == {
        "duplicate id": 1,
        "empty question": 1,
        "empty answer": 1,
        "no image": 1,
        "question too long": 1,
        "malformed row": 2,
        "image file missing": 1,
        "more than one image": 1,
        "image is no base64": 1,
    }
    assert "malformed row: 2 (t_9, t_10)" in caplog.text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"question": "Who?", "answer": "Ada"}],
            r"no column with pictures \(it has question, answer\): every question here is about a picture",
        ),
        (
            [{"text": "Who?", "answer": "Ada", "image": "a.png"}],
            r"no column with the question \(it has text, answer, image\): call it question",
        ),
        ([{"question": "Who?", "image": "a.png"}], "no column with the answer"),
        ([{"question": "Who?", "answer": "Ada", "image": None}], r"t has no usable question \(no image: 1 \(t_0\)\)"),
        (["nonsense"], "no columns"),
        ([], "no columns"),
    ],
)
def test_files_that_cannot_be_asked(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_benchmark(str(jsonl(tmp_path / "t.jsonl", rows)), config())


def test_text_only_rows_among_others_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"question": "Who?", "answer": "Ada", "image": base64.b64encode(png()).decode()}, {"question": "When?", "answer": "1843"}]
    assert len(list(open_benchmark(str(jsonl(tmp_path / "t.jsonl", rows)), config()).samples())) == 1
    assert "no image: 1 (t_1)" in caplog.text


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="there is no benchmark simplvqa: name fvqa_test, infoseek, mmsearch, simplevqa, livevqa, or the path"
    ):
        open_benchmark("simplvqa", config())
    with pytest.raises(DataError, match="there is nothing at"):
        open_benchmark(str(tmp_path), config())
    (tmp_path / "x.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read"):
        open_benchmark(str(tmp_path / "x.parquet"), config())
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="it is no list of rows"):
        open_benchmark(str(tmp_path / "x.json"), config())


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "split=test"
    sets.fvqa(folder / "t.parquet", 1)
    assert open_benchmark(f"{folder}{os.sep}t.parquet", config()).name == "t"
