"""Reviews out and in: parquet of candidates, CSV of all decisions, Label Studio's JSON.

Promise: what is written here can be read here again and gives the same decisions. A file that cannot be read whole is refused with
its row and what is wrong there (`BadFile`); nothing of it is taken. Each decision carries the content it was made about, so that a
file of another version is noticed (`Store.merge`).
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmsr_ray.data.construction.candidate import Candidate, key_of, read, read_made_from, write
from mmsr_ray.data.construction.review.stage import Stage, content_of
from mmsr_ray.data.construction.review.store import Store
from mmsr_ray.data.construction.review.verdicts import REASONS, Decision, ReviewError, State, Verdict, Words, complaint
from mmsr_ray.data.schema import DataError
from mmsr_ray.observability.pictures import data_uri

COLUMNS = (
    "id", "key", "content", "annotator", "version", "look", "verdict", "question", "answer", "aliases", "reason", "note", "seconds", "at",
)  # fmt: skip
REJECTED, DISPUTED, OPEN = "rejected in review", "disputed in review", "not reviewed"  # values of Candidate.status
PICTURE_SIDE = 1024  # pixels, in Label Studio's file
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # a spreadsheet runs what begins so: it gets a ' before it


class BadFile(ReviewError):
    """A file of decisions that cannot be read; says where and why."""

    def __init__(self, path: Path, where: str, why: str) -> None:
        super().__init__(f"{path}, {where}: {why}. Nothing of it was taken")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    yield partial
    partial.replace(path)


# ---------------------------------------------------------------------------------------------------- candidates


def reviewed(candidate: Candidate, state: State, deciding: Decision | None, decisions: Iterable[Decision]) -> Candidate:
    """The candidate with its review fields. Only what people accepted or edited stays kept."""
    given = list(decisions)
    noted = replace(
        candidate, reviewers=tuple(sorted({d.annotator for d in given})), review_note=" | ".join(d.note for d in given if d.note)
    )
    if state is State.DISPUTED:
        return replace(noted, review="disputed", status=DISPUTED, detail=", ".join(d.stance for d in given))
    if deciding is None:
        return replace(noted, status=OPEN)
    if deciding.verdict is Verdict.REJECT:
        return replace(noted, review="rejected", status=REJECTED, detail=deciding.reason)
    if deciding.verdict is Verdict.EDIT:
        words = deciding.words
        return replace(noted, review="edited", question=words.question, answer=words.answer, aliases=words.aliases)
    return replace(noted, review="accepted")


def write_candidates(path: Path, stage: Stage, store: Store) -> Counter[str]:
    """The stage with its review, as the next stage file; returns the number of candidates by status."""
    outcomes = {key: (state, deciding, given) for key, state, deciding, given in store.outcomes()}

    def all_of_them() -> Iterator[Candidate]:
        for candidate in read(stage.path):
            yield reviewed(candidate, *outcomes[candidate.key]) if candidate.key in outcomes else candidate

    history = "".join(f"{d.id}\n" for d in store.history())
    return write(path, all_of_them(), {"stage": stage.fingerprint, "decisions": key_of(history), "reviewers": str(store.reviewers)})


def check_export(path: Path, source: Path) -> None:
    """Raises DataError unless `path` is the export of a review of the stage file `source` as it is now: the same kept candidates with the
    same pictures, pages, questions and answers, and, though reviewers do not judge them, the same labels.
    """
    remedy = f"export the review again (python -m mmsr_ray.data.construction.review {source.parent} export), or remove the file"
    stage = Stage(source)
    stage.close()
    if read_made_from(path).get("stage") != stage.fingerprint:
        raise DataError(f"{path} reviews another version of {source.name}, with other candidates, words or pictures: {remedy}")
    needs = {candidate.key: candidate.need for candidate in read(source)}
    other = sum(needs.get(candidate.key) != candidate.need for candidate in read(path))
    if other:
        raise DataError(f"{path} has other search labels than {source.name} for {other} candidates: {remedy}")


# ---------------------------------------------------------------------------------------------------- CSV


def write_csv(path: Path, decisions: Iterable[Decision]) -> int:
    """All decisions, one a row; aliases are a JSON list. Returns their number."""
    count = 0
    with _whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for decision in decisions:
            rows.writerow(_guard(value) for value in _row(decision))
            count += 1
    return count


def read_csv(path: Path) -> list[Decision]:
    """Raises BadFile."""
    found = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            if set(COLUMNS) - set(rows.fieldnames or ()):
                missing = ", ".join(name for name in COLUMNS if name not in (rows.fieldnames or ()))
                raise BadFile(path, "line 1", f"the columns {missing} are missing: this is no export of a review")
            for row in rows:
                if None in row or None in row.values():
                    raise BadFile(path, f"line {rows.line_num}", "it has too many or too few fields")
                found.append(_parsed(path, f"line {rows.line_num}", {name: _unguard(row[name]) for name in COLUMNS}))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(path, "file", f"it cannot be read as CSV in UTF-8 ({error})") from error
    return found


def _row(d: Decision) -> list[str]:
    words = (d.words.question, d.words.answer, json.dumps(d.words.aliases, ensure_ascii=False))
    start = (d.id, d.key, d.content, d.annotator, str(d.version), str(d.look), d.verdict.value)
    return [*start, *words, d.reason, d.note, repr(d.seconds), d.at]


def _guard(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _unguard(text: str) -> str:
    return text[1:] if text.startswith("'") else text


def _parsed(path: Path, where: str, row: Mapping[str, Any]) -> Decision:
    """A decision of plain values. Raises BadFile."""
    try:
        aliases = json.loads(row["aliases"]) if isinstance(row["aliases"], str) else row["aliases"]
        decision = Decision(
            **{name: str(row[name]) for name in ("id", "key", "content", "annotator", "reason", "note")},
            version=int(row["version"]),
            look=int(row["look"]),
            verdict=Verdict(row["verdict"]),
            words=Words(str(row["question"]), str(row["answer"]), tuple(str(alias) for alias in aliases)),
            seconds=float(row["seconds"]),
            at=_time(row["at"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise BadFile(path, where, f"{type(error).__name__} {error}") from error
    wrong = complaint(decision, Words("", "")) or (
        "" if decision.id and decision.key and decision.annotator else "id, key or annotator is empty"
    )
    if wrong:
        raise BadFile(path, where, wrong)
    return decision


def _time(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


# ---------------------------------------------------------------------------------------------------- Label Studio

LABELS = "label-studio.xml"  # the labelling interface that the tasks are made for, to be pasted into a project of Label Studio


def label_config() -> str:
    """The labelling interface."""
    choices = "\n".join(f'    <Choice value="{escape(reason)}" hotkey="{digit}"/>' for digit, reason in REASONS.items())
    return (files("mmsr_ray.data.construction.review") / LABELS).read_text().replace("REASONS", choices)


def write_label_studio(path: Path, stage: Stage, decisions: Iterable[Decision]) -> int:
    """Tasks with pictures inside and the annotations in force; returns their number. Streams."""
    by_key: dict[str, list[Decision]] = {}
    for decision in decisions:
        by_key.setdefault(decision.key, []).append(decision)
    with _whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        for number, key in enumerate(stage.contents):
            task = _task(stage.get(key), [d for d in by_key.get(key, []) if d.verdict is not Verdict.WITHDRAWN])
            file.write((",\n" if number else "[\n") + json.dumps(task, ensure_ascii=False))
        file.write("\n]\n" if stage.contents else "[]\n")
    return len(stage.contents)


def _task(candidate: Candidate, decisions: Iterable[Decision]) -> dict[str, Any]:
    c = candidate
    data = {"key": c.key, "content": content_of(c), "question": c.question, "answer": c.answer, "aliases": list(c.aliases)}
    page = {"page_title": c.page_title, "page_url": c.page_url, "page_text": c.page_text[:20_000]}
    return {"data": {**data, **page, "image": data_uri(c.image, PICTURE_SIDE)}, "annotations": [_annotation(d) for d in decisions]}


def _annotation(d: Decision) -> dict[str, Any]:
    fields: dict[str, list[str]] = {
        "verdict": [d.verdict.value],
        "reason": [d.reason] if d.reason else [],
        "note": [d.note] if d.note else [],
    }
    if d.verdict is Verdict.EDIT:
        fields |= {"question": [d.words.question], "answer": [d.words.answer], "aliases": list(d.words.aliases)}
    result = [
        {"from_name": name, "to_name": "image", "type": kind, "value": {key: values}}
        for name, values in fields.items()
        for kind, key in [("choices", "choices") if name in ("verdict", "reason") else ("textarea", "text")]
        if values
    ]
    return {
        "completed_by": {"email": d.annotator},
        "created_at": d.at,
        "updated_at": d.at,
        "lead_time": d.seconds,
        "result": result,
        "meta": {"id": d.id, "look": d.look, "version": d.version, "at": d.at},  # Label Studio drops it
    }


def read_label_studio(path: Path) -> list[Decision]:
    """Decisions of tasks as they are exported here or by Label Studio (JSON, not JSON_MIN); skipped tasks are none. Raises BadFile."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(path, "file", f"it cannot be read as JSON ({error})") from error
    if not isinstance(tasks, list):
        raise BadFile(path, "file", "it is no list of tasks: export as JSON, not as JSON_MIN")
    return [decision for number, task in enumerate(tasks, start=1) for decision in _decisions(path, number, task)]


def _decisions(path: Path, number: int, task: Any) -> Iterator[Decision]:
    for count, annotation in enumerate(task.get("annotations", ()) if isinstance(task, dict) else (), start=1):
        where = f"task {number}, annotation {count}"
        try:
            if not annotation.get("was_cancelled"):
                yield _parsed(path, where, _plain(task["data"], annotation))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise BadFile(path, where, f"{type(error).__name__} {error}: it is no annotation of {LABELS}") from error
    if not isinstance(task, dict) or "data" not in task:
        raise BadFile(path, f"task {number}", "it has no data")


def _plain(data: Mapping[str, Any], annotation: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, list[str]] = {}
    for result in annotation["result"]:
        value = result["value"]
        values[result["from_name"]] = (
            value["choices"] if "choices" in value else [value["text"]] if isinstance(value["text"], str) else value["text"]
        )
    meta, who = annotation.get("meta") or {}, annotation["completed_by"]
    annotator = str(who.get("email") or who.get("id") or "") if isinstance(who, Mapping) else f"user {who}"
    at = annotation.get("updated_at") or annotation["created_at"]
    edited = values["verdict"][0] == Verdict.EDIT
    return {
        "id": (meta.get("at") == at and meta.get("id"))
        or key_of("label studio", str(data["key"]), annotator, at, json.dumps(values, sort_keys=True)),
        "key": data["key"],
        "content": data["content"],
        "annotator": annotator,
        "version": meta.get("version", 1),
        "look": meta.get("look", 1),
        "verdict": values["verdict"][0],
        "question": values.get("question", [data["question"]])[0] if edited else "",
        "answer": values.get("answer", [data["answer"]])[0] if edited else "",
        "aliases": values.get("aliases", [] if meta else data.get("aliases", [])) if edited else [],
        "reason": values.get("reason", [""])[0],
        "note": values.get("note", [""])[0],
        "seconds": annotation.get("lead_time") or 0.0,
        "at": at,
    }
