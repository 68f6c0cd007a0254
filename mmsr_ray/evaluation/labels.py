"""Labels that people gave to answers, out of a CSV file. Pure but for reading it.

Promise: a label is yes or no, given once by an annotator to one answer; whatever else a file holds is refused with the line
numbers, and nothing is guessed. A line whose label is still empty is no label, and is counted.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = {
    "uid": ("uid", "id", "data_id", "question_id", "sample_id"),
    "benchmark": ("benchmark", "split", "dataset"),
    "workflow": ("workflow",),
    "label": ("label", "correct", "right", "human", "verdict"),
    "annotator": ("annotator", "rater", "labeller", "labeler", "by"),
}
"""What is read, and the headers it is known by, whatever their case; others are ignored."""

YES = ("yes", "y", "true", "1", "correct", "right")
NO = ("no", "n", "false", "0", "incorrect", "wrong")
SHOWN = 5  # complaints of a kind in one message


class LabelError(ValueError):
    """A file of labels that cannot be used; the message names lines and what to do."""


@dataclass(frozen=True, slots=True)
class Label:
    """`benchmark`, `workflow` and `annotator` are "" where the file does not say; `line` counts from 1, the header."""

    uid: str
    benchmark: str
    workflow: str
    annotator: str
    right: bool
    line: int


def read_labels(path: Path) -> tuple[list[Label], int]:
    """(labels, number of lines that are not labelled yet). Raises LabelError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path} cannot be read ({error}): name a CSV file in UTF-8") from error
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        return _labels(rows, path)
    except csv.Error as error:
        raise LabelError(f"{path}, line {rows.line_num}: {error}: write it as CSV again") from error


def _labels(rows: Any, path: Path) -> tuple[list[Label], int]:
    """`rows`: a csv.reader."""
    where = _columns(next(rows, []), path)
    labels, bad, empty = [], [], 0
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        cells = {name: row[place].strip() if place < len(row) else "" for name, place in where.items()}
        word = cells["label"].lower()
        if not word:
            empty += 1
        elif word not in YES + NO or not cells["uid"]:
            bad.append(f"line {rows.line_num}: {cells['label']!r} for {cells['uid'] or 'no uid'}")
        else:
            found = [cells.get(name, "") for name in ("uid", "benchmark", "workflow", "annotator")]
            labels.append(Label(*found, right=word in YES, line=rows.line_num))
    if bad:
        raise LabelError(f"{path}: a label is yes or no, of a uid ({_some(bad)})")
    _refuse_duplicates(labels, path)
    return labels, empty


def _delimiter(text: str) -> str:
    """Of the header: what spreadsheets write."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)


def _columns(header: list[str], path: Path) -> dict[str, int]:
    """Place of each column that is there."""
    names = [name.strip().lower().replace(" ", "_") for name in header]
    found = {}
    for column, known in COLUMNS.items():
        places = [place for place, name in enumerate(names) if name in known]
        if len(places) > 1:
            raise LabelError(f"{path} has {' and '.join(header[place] for place in places)}, which both say {column}: keep one")
        if places:
            found[column] = places[0]
    missing = [column for column in ("uid", "label") if column not in found]
    if missing:
        raise LabelError(
            f"{path} has no column {' and '.join(missing)} (it has {', '.join(header) or 'no header'}): the header is "
            "uid,benchmark,workflow,label,annotator, of which benchmark, workflow and annotator may be left out"
        )
    return found


def _refuse_duplicates(labels: list[Label], path: Path) -> None:
    first: dict[tuple[str, ...], int] = {}
    twice = []
    for label in labels:
        key = (label.uid, label.benchmark, label.workflow, label.annotator)
        if key in first:
            twice.append(f"{label.uid} in lines {first[key]} and {label.line}")
        first.setdefault(key, label.line)
    if twice:
        raise LabelError(f"{path} labels an answer twice ({_some(twice)}): keep one line, or name who labelled in a column annotator")


def _some(complaints: list[str]) -> str:
    return "; ".join(complaints[:SHOWN]) + (f"; and {len(complaints) - SHOWN} more" if len(complaints) > SHOWN else "")
