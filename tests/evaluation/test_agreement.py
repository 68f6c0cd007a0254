"""People's labels against a run folder: the numbers by hand, and every way in which a file of labels can be wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsr_ray.evaluation.agreement import main
from mmsr_ray.evaluation.labels import LabelError, read_labels
from mmsr_ray.evaluation.trajectories import read_trajectories, write_trajectories
from mmsr_ray.types import Outcome, Reward, Sample, TextHit, ToolKind, ToolResult, Trajectory
from tests.evaluation.test_trajectories import TOKENS

GOLDS = ("Paris",)


def answered(uid: str, answer: str, verdict: bool | None, workflow: str = "direct") -> tuple[Sample, Trajectory]:
    """`verdict` None: infrastructure broke it."""
    told = None if verdict is None else ToolResult(ToolKind.JUDGE, "k", (TextHit("", "", "yes" if verdict else "no"),))
    reward = None if verdict is None else Reward(float(verdict), verdict, True, 0)
    outcome = Outcome.INFRA_ERROR if verdict is None else Outcome.OK
    said = Trajectory(uid, 0, workflow, "Where?", (), outcome, "", answer, TOKENS, reward, verdict=told)
    return Sample(uid, "Where?", b"picture", GOLDS), said


@pytest.fixture
def run(tmp_path: Path) -> Path:
    answers = [
        answered("a", "Paris", True),
        answered("b", "in Paris", True),
        answered("c", "Paname", True),
        answered("d", "Rome", False),
        answered("e", "Lutetia", False),
        answered("f", "Paris", None),
    ]
    write_trajectories(tmp_path / "trajectories" / "x-direct.parquet", answers, split="x")
    return tmp_path


def labels(run: Path, text: str) -> Path:
    path = run / "labels.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_the_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["UID; Label ;Annotator", "a;yes;ann", "a;YES;bob", "b;1;ann", "c;no;ann", "c;no;bob", "d;wrong;ann", "e;true;ann", "f;yes;ann"]
    file = labels(run, "\n".join([*lines, "", 'b;;"bob\nthe second"']))
    assert main([str(run), "--labels", str(file)]) == 0
    found = json.loads((run / "agreement.json").read_text())
    assert found["answers"] == 5
    assert found["left_out"] == {"broken": 1, "tied": 0, "not labelled yet": 1}
    judge = found["with_people"]["judge"]
    assert [judge[key] for key in ("both_yes", "first_only", "second_only", "both_no")] == [2, 1, 1, 1]
    assert judge["agreement"] == 3 / 5
    assert found["with_people"]["counted"] == judge
    assert found["with_people"]["em"]["agreement"] == 3 / 5
    assert found["with_people"]["subem"]["agreement"] == 4 / 5
    assert found["between_annotators"]["ann and bob"]["agreement"] == 1.0
    assert [(one["uid"], one["people"], one["answer"]) for one in found["disagreements"]] == [
        ("c", False, "Paname"),
        ("e", True, "Lutetia"),
    ]
    printed = capsys.readouterr().out
    assert "5 labelled answers, left out: 1 broken, 1 not labelled yet" in printed
    assert "judge and people    agree  60.0 % of 5" in printed
    assert "x direct c: people say no of 'Paname', expected 'Paris'" in printed


def test_a_tie_is_no_label(run: Path) -> None:
    file = labels(run, "uid,label,annotator\na,yes,ann\na,no,bob\nd,no,ann\n")
    assert main([str(run / "trajectories" / "x-direct.parquet"), "--labels", str(file), "--out", str(run / "o.json")]) == 0
    found = json.loads((run / "o.json").read_text())
    assert (found["answers"], found["left_out"]["tied"]) == (1, 1)
    assert found["with_people"]["judge"]["kappa"] is None


def test_files_of_before_there_were_these_columns(run: Path) -> None:
    file = run / "trajectories" / "x-direct.parquet"
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        del row["em"], row["subem"], row["judged"]
    pq.write_table(pa.Table.from_pylist(rows), file)
    assert next(read_trajectories(file)).em is None
    assert main([str(run), "--labels", str(labels(run, "uid,label\na,yes\nc,no\n"))]) == 0
    found = json.loads((run / "agreement.json").read_text())
    assert found["with_people"]["judge"]["items"] == 2
    assert found["with_people"]["em"]["agreement"] == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uid,label\na,maybe\nb,yes\nc,\nz,perhaps\n", r"yes or no, of a uid \(line 2: 'maybe' for a; line 5: 'perhaps' for z\)"),
        ("uid,label\n,yes\n", "line 2: 'yes' for no uid"),
        ("uid,label\na,yes\nb,no\na,no\n", r"labels an answer twice \(a in lines 2 and 4\)"),
        ("question,label\na,yes\n", r"has no column uid \(it has question, label\): the header is uid,benchmark"),
        ("", "has no column uid and label"),
        ("uid,label,verdict\na,yes,no\n", "label and verdict, which both say label: keep one"),
    ],
)
def test_labels_that_cannot_be_used(run: Path, text: str, said: str) -> None:
    with pytest.raises(LabelError, match=said):
        read_labels(labels(run, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uid,label\nnobody,yes\na,yes\n", "about no answer of this run (line 2: nobody)"),
        ("uid,benchmark,label\na,y,yes\n", "about no answer of this run (line 2: y a)"),
        ("uid,label\na,yes\n", "about several answers (line 2: a, answered in x direct and x rag): add the columns benchmark and workflow"),
        ("uid,workflow,label\na,rag,yes\na,,no\n", "about several answers"),
    ],
)
def test_labels_of_other_answers_are_refused(run: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    sample, again = answered("a", "Paris", True, "rag")
    write_trajectories(run / "trajectories" / "x-rag.parquet", [(sample, replace(again, answer="Rome"))], split="x")
    assert main([str(run), "--labels", str(labels(run, text))]) == 1
    assert said in capsys.readouterr().err


def test_a_folder_without_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = labels(tmp_path, "uid,label\na,yes\n")
    assert main([str(tmp_path), "--labels", str(file)]) == 1
    assert "holds no trajectories" in capsys.readouterr().err
    assert main([str(file), "--labels", str(file)]) == 1
    assert "cannot be read as trajectories" in capsys.readouterr().err
    assert main([str(tmp_path), "--labels", str(tmp_path / "none.csv")]) == 1
    assert "cannot be read" in capsys.readouterr().err
