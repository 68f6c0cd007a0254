"""How far the judge and the string rules agree with people, and people with each other.

    python -m mmsr_ray.evaluation.agreement runs/eval --labels labels.csv
    python -m mmsr_ray.evaluation.agreement runs/eval/trajectories/mmsearch-rag.parquet --labels labels.csv --out agreement.json

The CSV has the columns uid and label (yes or no), and benchmark, workflow and annotator where they are needed to tell answers
and people apart. Prints a table and the disagreements, and writes all of it as JSON, by default to agreement.json of the run
folder. Exit status: 0 fine, 1 with one sentence about what is wrong.

Promise: every label is about one answer of the run, or the file is refused. Several annotators of an answer vote; a tie, and an
answer that infrastructure broke, is left out and counted. The agreements are `kappa.agreement` with the machine as first rater.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmsr_ray.evaluation.kappa import agreement
from mmsr_ray.evaluation.labels import SHOWN, Label, LabelError, read_labels
from mmsr_ray.evaluation.summary import write_json
from mmsr_ray.evaluation.trajectories import StoredTrajectory, read_trajectories
from mmsr_ray.rewards.judge import NO, YES
from mmsr_ray.rewards.match import exact_match, sub_match

RATERS = ("counted", "judge", "em", "subem")


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer of an evaluation, without its pictures. `counted` is None where infrastructure broke it, `judge` where it gave no verdict."""

    uid: str
    benchmark: str
    workflow: str
    question: str
    golds: tuple[str, ...]
    answer: str
    counted: bool | None
    judge: bool | None
    em: bool
    subem: bool


def read_answers(run: Path) -> list[Answered]:
    """All answers of a run folder's evaluations, or of one parquet file. Raises LabelError where there are none."""
    source = run / "trajectories" if run.is_dir() else run
    if not source.exists():
        raise LabelError(f"{run} holds no trajectories: name the folder of an evaluation, or one of its parquet files")
    try:
        answers = [_answered(row) for row in read_trajectories(source) if row.step is None]
    except pa.ArrowException as error:
        raise LabelError(
            f"{source} cannot be read as trajectories ({str(error).splitlines()[0]}): name the folder of an evaluation"
        ) from error
    if not answers:
        raise LabelError(f"{source} holds no evaluated answers: name the folder of an evaluation, or one of its parquet files")
    return answers


def report(answers: Sequence[Answered], labels: Sequence[Label]) -> dict[str, Any]:
    """Plain values for JSON: `answers` that were labelled, `left_out` by why, agreement `with_people` of each of `RATERS` (`counted`
    is what the evaluation counted as right), `between_annotators` by pair of names, and `disagreements` of people with `counted`.

    Raises LabelError for labels that are about no answer, or about several.
    """
    votes = _votes(answers, labels)
    people: dict[Answered, bool] = {}
    left_out = {"broken": 0, "tied": 0}
    for answer, given in votes.items():
        yes = sum(given.values())
        if answer.counted is None:
            left_out["broken"] += 1
        elif 2 * yes == len(given):
            left_out["tied"] += 1
        else:
            people[answer] = 2 * yes > len(given)
    return {
        "answers": len(people),
        "left_out": left_out,
        "with_people": {rater: agreement(_pairs(people, rater)) for rater in RATERS},
        "between_annotators": _between(list(votes.values())),
        "disagreements": [_told(answer, said) for answer, said in people.items() if said != answer.counted],
    }


def as_text(found: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    left_out = ", ".join(f"{count} {why}" for why, count in found["left_out"].items() if count)
    lines = [f"{found['answers']} labelled answers" + (f", left out: {left_out}" if left_out else "")]
    rows = [(f"{rater} and people", table) for rater, table in found["with_people"].items() if table["items"]]
    rows += list(found["between_annotators"].items())
    width = max([len(name) for name, _ in rows], default=0)
    for name, table in rows:
        kappa = "undefined" if table["kappa"] is None else f"{table['kappa']:.3f}"
        lines.append(
            f"{name:<{width}}  agree {100 * table['agreement']:5.1f} % of {table['items']}, kappa {kappa}  "
            f"(both yes {table['both_yes']}, first only {table['first_only']}, second only {table['second_only']}, both no {table['both_no']})"
        )
    for one in found["disagreements"]:
        said = "yes" if one["people"] else "no"
        lines.append(
            f"{one['benchmark']} {one['workflow']} {one['uid']}: people say {said} of {one['answer']!r}, expected {one['expected'][0]!r}"
        )
    return "\n".join(lines) + "\n"


def _answered(row: StoredTrajectory) -> Answered:
    answer = row.answer if row.outcome == "ok" else None
    return Answered(
        row.uid,
        row.split,
        row.workflow,
        row.question,
        row.answers,
        answer or "",
        row.correct,
        {YES: True, NO: False}.get(row.verdict or "") if row.judged is None else row.judged,  # files of before have the word alone
        answer is not None and exact_match(answer, row.answers),
        answer is not None and sub_match(answer, row.answers),
    )


def _votes(answers: Iterable[Answered], labels: Iterable[Label]) -> dict[Answered, dict[str, bool]]:
    """Labels by annotator of each labelled answer."""
    by_uid: dict[str, list[Answered]] = defaultdict(list)
    for answer in answers:
        by_uid[answer.uid].append(answer)
    votes: dict[Answered, dict[str, bool]] = defaultdict(dict)
    unknown, unclear, twice = [], [], []
    for label in labels:
        meant = [a for a in by_uid[label.uid] if label.benchmark in ("", a.benchmark) and label.workflow in ("", a.workflow)]
        if not meant:
            unknown.append(f"line {label.line}: {' '.join(filter(None, (label.benchmark, label.workflow, label.uid)))}")
        elif len(meant) > 1:
            unclear.append(f"line {label.line}: {label.uid}, answered in {' and '.join(f'{a.benchmark} {a.workflow}' for a in meant)}")
        elif label.annotator in votes[meant[0]]:
            twice.append(f"line {label.line}: {label.uid}")
        else:
            votes[meant[0]][label.annotator] = label.right
    _refuse(unknown, "labels are about no answer of this run", "take them out, or name the run they belong to")
    _refuse(unclear, "labels are about several answers", "add the columns benchmark and workflow, or name one parquet file")
    _refuse(twice, "an annotator labels an answer twice", "keep one line")
    return dict(votes)


def _refuse(complaints: list[str], what: str, remedy: str) -> None:
    if complaints:
        more = f"; and {len(complaints) - SHOWN} more" if len(complaints) > SHOWN else ""
        raise LabelError(f"{what} ({'; '.join(complaints[:SHOWN])}{more}): {remedy}")


def _pairs(people: Mapping[Answered, bool], rater: str) -> list[tuple[bool, bool]]:
    says = [(getattr(answer, rater), said) for answer, said in people.items()]
    return [(machine, said) for machine, said in says if machine is not None]


def _between(votes: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, Any]]:
    names = sorted({name for given in votes for name in given})
    tables = {
        f"{one or 'unnamed'} and {other or 'unnamed'}": agreement(
            (given[one], given[other]) for given in votes if one in given and other in given
        )
        for one, other in combinations(names, 2)
    }
    return {pair: table for pair, table in tables.items() if table["items"]}


def _told(answer: Answered, said: bool) -> dict[str, Any]:
    return {
        "uid": answer.uid,
        "benchmark": answer.benchmark,
        "workflow": answer.workflow,
        "question": answer.question,
        "expected": list(answer.golds),
        "answer": answer.answer,
        "people": said,
        "judge": answer.judge,
        "em": answer.em,
        "subem": answer.subem,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of an evaluation, or one of its parquet files")
    parser.add_argument("--labels", type=Path, required=True, help="CSV file of people's labels")
    parser.add_argument("--out", type=Path, help="JSON file to write (agreement.json of the run folder)")
    given = parser.parse_args(arguments)
    try:
        labels, empty = read_labels(given.labels)
        found = report(read_answers(given.run), labels)
        found["left_out"]["not labelled yet"] = empty
        out = given.out or (given.run if given.run.is_dir() else given.run.parent) / "agreement.json"
        write_json(out, found)
    except (LabelError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(as_text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
