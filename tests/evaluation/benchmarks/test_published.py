"""The five published sets, from small files in their schemas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.benchmarks import PUBLISHED, open_benchmark
from tests.evaluation.benchmarks import sets
from tests.evaluation.benchmarks.sets import config, png

ORIGINAL = list(PUBLISHED.values())


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published sets with four questions each, and no hub."""
    for name, published in PUBLISHED.items():
        monkeypatch.setitem(PUBLISHED, name, replace(published, size=4))
    monkeypatch.setattr("mmsr_ray.evaluation.benchmarks.places.snapshot_download", _no_hub)


def _no_hub(*args: object, **kwargs: object) -> str:
    raise OSError("no route to the hub\nand more")


def test_the_sizes_of_the_paper() -> None:
    assert [(p.name, p.size) for p in ORIGINAL] == [
        ("fvqa_test", 1800),
        ("infoseek", 2000),
        ("mmsearch", 171),
        ("simplevqa", 1013),
        ("livevqa", 3602),
    ]
    assert all(p.licence and p.source.startswith("https://") for p in ORIGINAL)


def test_every_set_from_a_folder_of_sets(tmp_path: Path) -> None:
    sets.fvqa(tmp_path / "fvqa_test" / "fvqa_test.parquet", 4)
    sets.fvqa(tmp_path / "infoseek.parquet", 4, "infoseek_human")
    sets.mmsearch(tmp_path / "mmsearch.parquet", 4, 3)
    sets.simplevqa(tmp_path / "simplevqa" / "test.parquet", 4, 2)
    (tmp_path / "simplevqa" / "view_200.parquet").write_text("another file of the set's folder")
    sets.livevqa(tmp_path / "livevqa", 4)
    for name in PUBLISHED:
        benchmark = open_benchmark(name, config(benchmarks_dir=str(tmp_path)))
        samples = list(benchmark.samples())
        assert (benchmark.name, benchmark.size, len(samples)) == (name, 4, 4)
        assert len({sample.uid for sample in samples}) == 4
        assert [sample.image for sample in samples] == [png(i) for i in range(4)]
        assert [sample.answers[0] for sample in samples] == [f"answer {i}" for i in range(4)]
        assert all(sample.source and sample.question for sample in samples)


def test_what_each_column_becomes(tmp_path: Path) -> None:
    mmsearch = open_benchmark(f"mmsearch={sets.mmsearch(tmp_path / 'm.parquet', 4, 129)}", config())
    second = list(mmsearch.samples())[1]
    assert (second.uid, second.question, second.answers, second.category) == ("news_1", "When was 1?", ("answer 1", "other"), "news")
    assert mmsearch.left_out == {"no picture: a text-only question": 129}
    simplevqa = open_benchmark(f"simplevqa={sets.simplevqa(tmp_path / 's.parquet', 4, 2)}", config())
    first = next(simplevqa.samples())
    assert (first.uid, first.category, first.source) == ("0", "kind 0", "simplevqa")
    assert simplevqa.left_out == {"language is not EN": 2}
    livevqa = open_benchmark(f"livevqa={sets.livevqa(tmp_path / 'l', 4)}", config())
    assert next(livevqa.samples()).uid == "News_0_1"
    by_file = open_benchmark(f"livevqa={tmp_path / 'l' / 'qa.json'}", config())
    assert len(list(by_file.samples())) == 4


def test_the_same_questions_in_the_schema_of_fvqa(tmp_path: Path) -> None:
    assert len(list(open_benchmark(f"livevqa={sets.fvqa(tmp_path / 'x.parquet', 4, 'l')}", config()).samples())) == 4


def test_another_size_is_refused_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = sets.livevqa(tmp_path, 3)
    with pytest.raises(DataError, match=r"livevqa has 3 usable questions where 4 are published: .* set data\.benchmark_sizes=warn"):
        open_benchmark(f"livevqa={file}", config())
    assert len(list(open_benchmark(f"livevqa={file}", config(benchmark_sizes="warn")).samples())) == 3
    assert "3 usable questions where 4 are published: numbers are not comparable" in caplog.text


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"query": " "}, "empty question: 1 (News_0_1)"),
        ({"gt_answer": None}, "empty answer: 1 (News_0_1)"),
        ({"query_image": None}, "no image: 1 (News_0_1)"),
        ({"sample_id": "News_1_1"}, "duplicate id: 1 (News_1_1)"),
    ],
)
def test_bad_rows_are_counted_before_the_size_is_judged(tmp_path: Path, changes: dict[str, object], kind: str) -> None:
    with pytest.raises(DataError) as caught:
        open_benchmark(f"livevqa={sets.livevqa(tmp_path, 4, **changes)}", config())
    assert f"livevqa has 3 usable questions where 4 are published; unusable: {kind}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"query_image": "/mnt/x/image/gone.png"}, "image file missing: 1 (News_0_1)"),
        ({"query_image": "image/rubbish.png"}, "corrupt image: 1 (News_0_1)"),
        ({"query_image": "https://x/y.png"}, "image is a web address: download it and name the file: 1 (News_0_1)"),
    ],
)
def test_pictures_are_looked_at_before_the_first_question(tmp_path: Path, changes: dict[str, object], kind: str) -> None:
    folder = sets.livevqa(tmp_path, 4, **changes)
    (folder / "image" / "rubbish.png").write_text("rubbish")
    benchmark = open_benchmark(f"livevqa={folder}", config())
    with pytest.raises(DataError) as caught:
        benchmark.samples()
    assert f"unusable: {kind}" in str(caught.value)
    assert benchmark.bad.total == 1
    assert len(list(benchmark.samples(questions=3))) == 3, "a choice does without it"
    tolerant = open_benchmark(f"livevqa={folder}", config(benchmark_sizes="warn"))
    assert [sample.uid for sample in tolerant.samples()] == ["News_1_1", "News_2_1", "News_3_1"]
    assert [sample.uid for sample in tolerant.samples()] == ["News_1_1", "News_2_1", "News_3_1"]
    assert tolerant.bad.total == 1, "counted once, however often it is asked"


def test_a_file_of_another_schema_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"x\.parquet is not in the schema of simplevqa: it has no column question, answer, image, language \("
    ):
        open_benchmark(f"simplevqa={sets.mmsearch(tmp_path / 'x.parquet', 4, 0)}", config())
    pointer = tmp_path / "p.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match="only a Git LFS pointer to the data: fetch it with git lfs pull"):
        open_benchmark(f"infoseek={pointer}", config())


def test_sets_that_are_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"infoseek is on no hub: .* git lfs .* or name them: infoseek=PATH"):
        open_benchmark("infoseek", config())
    with pytest.raises(DataError, match=r"the hub does not give CaraJ/MMSearch \(no route to the hub\): .* data\.benchmarks_dir/mmsearch"):
        open_benchmark("mmsearch", config(benchmarks_dir=str(tmp_path)))
    with pytest.raises(DataError, match=r"there is nothing at .*nowhere"):
        open_benchmark(f"mmsearch={tmp_path}/nowhere", config())


def test_a_choice_is_always_the_same_and_in_file_order(tmp_path: Path) -> None:
    file = sets.fvqa(tmp_path / "f.parquet", 4)
    benchmark = open_benchmark(f"fvqa_test={file}", config())
    some = [sample.uid for sample in benchmark.samples(questions=2, seed=3)]
    assert some == [sample.uid for sample in open_benchmark(f"fvqa_test={file}", config()).samples(questions=2, seed=3)]
    assert some == sorted(some)
    assert len(some) == 2
