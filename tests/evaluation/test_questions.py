"""Which questions are still to be asked, pictures through a real Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from mmsr_ray.config import Config, load
from mmsr_ray.data.reader import read_samples
from mmsr_ray.data.schema import DataError, write_fvqa
from mmsr_ray.evaluation.questions import QuestionSet, question_sets
from tests.data.test_reader import png, sample

pytestmark = pytest.mark.heavy
BAD = "u3"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=120 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Twenty questions, the fourth without a good picture."""
    path = tmp_path_factory.mktemp("set") / "test.parquet"
    write_fvqa(path, [sample(i) for i in range(20)])
    rows = pq.read_table(path).to_pylist()
    rows[3]["images"][0]["bytes"] = png()[:40]
    pq.write_table(pq.read_table(path).from_pylist(rows), path)
    return load(None, ["model.path=m", f"data.train={path}", f"data.test={path}"])


def the_set(config: Config, questions: int = 0) -> QuestionSet:
    config.evaluation.questions = questions
    (found,) = question_sets(config)
    return found


def asked(found: QuestionSet, **done: set[str]) -> list[tuple[str, str]]:
    return [(question.sample.uid, question.workflow) for question in found.open_questions(done)]


def test_all_of_them_in_all_workflows_but_what_is_answered(cluster: None, config: Config) -> None:
    whole = the_set(config)
    good = [f"u{i}" for i in range(20) if f"u{i}" != BAD]
    assert asked(whole, direct=set()) == [(uid, "direct") for uid in good]
    assert asked(whole, direct={"u0", "u1"}, rag={"u1"})[:3] == [("u0", "rag"), ("u2", "direct"), ("u2", "rag")]
    assert asked(whole, direct=set(good)) == []
    samples = {question.sample.uid: question.sample for question in whole.open_questions({"direct": set()})}
    assert samples["u7"] == sample(7)
    assert [s.uid for s in whole.samples({"u9", "u2"})] == ["u2", "u9"]


def test_a_choice_is_the_same_whatever_was_answered_and_passes_over_bad_pictures(cluster: None, config: Config) -> None:
    for count in (1, 8, 19):
        chosen = {uid for uid, _ in asked(the_set(config, count), direct=set())}
        assert len(chosen) == count and BAD not in chosen
        assert chosen == {s.uid for s in read_samples(config.data.test, config.data, questions=count, seed=config.run.seed)}
        answered = set(sorted(chosen)[::2])
        assert {uid for uid, _ in asked(the_set(config, count), direct=answered)} == chosen - answered
    assert len(asked(the_set(config, 50), direct=set())) == 19


def test_questions_are_known_by_their_digest(config: Config, tmp_path: Path) -> None:
    write_fvqa(tmp_path / "other.parquet", [sample(i) for i in range(19)])
    other = load(None, ["model.path=m", f"data.train={tmp_path}", f"data.test={tmp_path}"])
    assert the_set(config).digest == the_set(config, 5).digest != the_set(other).digest
    with pytest.raises(DataError, match="nowhere"):
        question_sets(load(None, ["model.path=m", "data.train=t", "data.test=nowhere.parquet"]))
