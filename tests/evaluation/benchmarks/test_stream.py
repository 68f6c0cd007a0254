"""Benchmarks of every schema through the evaluation's stream on Ray Data, which loads their pictures late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from mmsr_ray.config import Config, load
from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.benchmarks import PUBLISHED
from mmsr_ray.evaluation.questions import question_sets
from tests.evaluation.benchmarks import sets
from tests.evaluation.benchmarks.sets import png


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, published in PUBLISHED.items():
        monkeypatch.setitem(PUBLISHED, name, replace(published, size=4))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=120 << 20, log_to_driver=False)
    yield
    ray.shutdown()


def config(*overrides: str) -> Config:
    return load(None, ["model.path=m", "data.train=a", "data.test=b", *overrides])


@pytest.mark.heavy
def test_questions_of_all_schemas_are_asked(tmp_path: Path, small: None, cluster: None) -> None:
    sets.fvqa(tmp_path / "fvqa_test.parquet", 4)
    sets.mmsearch(tmp_path / "mmsearch.parquet", 4, 3)
    sets.simplevqa(tmp_path / "simplevqa.parquet", 4, 2)
    sets.livevqa(tmp_path / "livevqa", 4)
    sets.jsonl(tmp_path / "own.jsonl", [{"question": "Who?", "answer": "Ada", "image": f"livevqa/image/{i}_news.png"} for i in range(4)])
    named = f"evaluation.benchmarks=[fvqa_test,mmsearch,simplevqa,livevqa,{tmp_path}/own.jsonl]"
    benchmarks = question_sets(config(named, f"data.benchmarks_dir={tmp_path}"))
    assert [benchmark.name for benchmark in benchmarks] == ["fvqa_test", "mmsearch", "simplevqa", "livevqa", "own"]
    for benchmark in benchmarks:
        asked = list(benchmark.open_questions({"direct": {benchmark.rows[0].fields.uid}, "rag": set()}))
        assert len(asked) == 7, "one is answered already"
        assert {question.benchmark for question in asked} == {benchmark.name}
        assert [question.sample.image for question in asked if question.workflow == "rag"] == [png(i) for i in range(4)]
        assert [sample.image for sample in benchmark.samples({benchmark.rows[2].fields.uid})] == [png(2)]


def test_a_published_set_with_a_bad_picture_is_refused_before_it_is_asked(tmp_path: Path, small: None) -> None:
    named = f"evaluation.benchmarks=[livevqa={sets.livevqa(tmp_path, 4, query_image='gone.png')}]"
    with pytest.raises(DataError, match="livevqa has 3 usable questions where 4 are published; unusable: image file missing"):
        question_sets(config(named))
    assert len(question_sets(config(named, "data.benchmark_sizes=warn"))[0].rows) == 3
    assert len(question_sets(config(named, "evaluation.questions=2"))[0].rows) == 4, "the stream takes the next one"
