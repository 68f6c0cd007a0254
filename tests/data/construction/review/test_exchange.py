"""Reviews out and in."""

from __future__ import annotations

import base64
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsr_ray.data.construction.candidate import read, read_made_from, write
from mmsr_ray.data.construction.review import exchange
from mmsr_ray.data.construction.review.exchange import BadFile
from mmsr_ray.data.construction.review.stage import Stage, content_of
from mmsr_ray.data.construction.review.store import Store
from mmsr_ray.data.construction.review.verdicts import OTHER, REASONS, Decision, Verdict, Words, complaint
from mmsr_ray.data.schema import DataError
from tests.data.construction.review.samples import candidate, make_run

CANDIDATES = [candidate(n) for n in range(5)]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
WORDS = st.builds(Words, st.just("Who?") | TEXT.filter(bool), TEXT.filter(bool), st.lists(TEXT.filter(bool), max_size=3).map(tuple))


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    verdict = draw(st.sampled_from(Verdict))
    one = CANDIDATES[draw(st.integers(0, 4))]
    made = Decision(
        id=draw(st.uuids()).hex,
        key=one.key,
        annotator=draw(st.sampled_from(["ann", "ben@lab.example"])),
        content=content_of(one),
        verdict=verdict,
        words=draw(WORDS).tidy() if verdict is Verdict.EDIT else Words("", ""),
        reason=draw(st.sampled_from(list(REASONS.values()))) if verdict is Verdict.REJECT else "",
        note=draw(TEXT),
        look=draw(st.sampled_from([1, 2])),
        version=draw(st.integers(1, 9)),
        seconds=draw(st.floats(0, 1e5)),
        at=draw(st.datetimes()).isoformat(timespec="milliseconds") + "+00:00",
    )
    if made.reason == OTHER and not made.note.strip():
        made = replace(made, note="=SUM(A1)")  # which a spreadsheet would run
    return replace(made, words=Words("Who?", "Ada")) if complaint(made, Words("", "")) else made


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    opened = Stage(make_run(tmp_path, [*CANDIDATES, replace(candidate(7), status="no image")]) / "05_balance.parquet")
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path: Path, stage: Stage) -> Iterator[Store]:
    opened = Store(tmp_path / "review.sqlite", lambda: 1_800_000_000.0)  # everything within one millisecond
    opened.begin(stage.contents, 2)
    yield opened
    opened.close()


@given(st.lists(decisions(), max_size=6))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_csv_gives_back_what_was_written(tmp_path: Path, given_: list[Decision]) -> None:
    assert exchange.write_csv(tmp_path / "review.csv", given_) == len(given_)
    assert exchange.read_csv(tmp_path / "review.csv") == given_


@given(st.lists(decisions(), max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_label_studio_gives_back_what_was_written(tmp_path: Path, stage: Stage, given_: list[Decision]) -> None:
    in_force = [d for d in given_ if d.verdict is not Verdict.WITHDRAWN]
    assert exchange.write_label_studio(tmp_path / "tasks.json", stage, given_) == len(CANDIDATES)
    assert sorted(exchange.read_label_studio(tmp_path / "tasks.json"), key=lambda d: d.id) == sorted(in_force, key=lambda d: d.id)


def test_a_spreadsheet_runs_nothing(tmp_path: Path) -> None:
    one = CANDIDATES[0]
    made = Decision(
        "0" * 16, one.key, "ann", content_of(one), Verdict.ACCEPT, note='=HYPERLINK("x")', version=1, at="2026-01-01T00:00:00.000+00:00"
    )
    exchange.write_csv(tmp_path / "x.csv", [made])
    assert "'=HYPERLINK" in (tmp_path / "x.csv").read_text()
    assert exchange.read_csv(tmp_path / "x.csv") == [made]


def _csv(tmp_path: Path, **changes: str) -> Path:
    one = CANDIDATES[0]
    made = Decision("0" * 16, one.key, "ann", content_of(one), Verdict.ACCEPT, version=1, at="2026-01-01T00:00:00.000+00:00")
    row = dict(zip(exchange.COLUMNS, exchange._row(made), strict=True)) | changes
    path = tmp_path / "bad.csv"
    path.write_text(",".join(exchange.COLUMNS) + "\n" + ",".join('"' + value.replace('"', '""') + '"' for value in row.values()) + "\n")
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verdict": "maybe"}, "'maybe' is not a valid Verdict"),
        ({"verdict": "reject", "reason": "bored"}, "listed reasons"),
        ({"verdict": "edit", "question": "", "answer": ""}, "needs a question and an answer"),
        ({"at": "yesterday"}, "Invalid isoformat"),
        ({"at": "2026-01-01T00:00:00"}, "no time zone"),
        ({"aliases": "[1"}, "JSONDecodeError"),
        ({"look": "3"}, "neither 1 nor 2"),
        ({"annotator": ""}, "is empty"),
        ({"seconds": "long"}, "could not convert"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_taken(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(BadFile, match="line 2") as error:
        exchange.read_csv(_csv(tmp_path, **changes))
    assert said in str(error.value)


@pytest.mark.parametrize(("content", "said"), [(b"a,b\n1,2\n", "columns"), (b"\xff\xfe\x00", "UTF-8"), (b"", "columns")])
def test_what_is_no_such_csv_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(BadFile, match=said):
        exchange.read_csv(tmp_path / "x.csv")
    with pytest.raises(BadFile, match="too many or too few"):
        exchange.read_csv(_cut(_csv(tmp_path)))


def _cut(path: Path) -> Path:
    path.write_text(path.read_text().rsplit(",", 1)[0] + "\n")
    return path


def test_annotations_made_in_label_studio_itself(tmp_path: Path) -> None:
    """Its own export: users by number, microseconds, a cancelled task, an edit that kept the aliases."""
    one = CANDIDATES[0]
    data = {"key": one.key, "content": content_of(one), "question": one.question, "answer": one.answer, "aliases": list(one.aliases)}

    def result(name: str, kind: str, value: list[str]) -> dict[str, object]:
        return {
            "id": "x",
            "from_name": name,
            "to_name": "image",
            "type": kind,
            "value": {"choices" if kind == "choices" else "text": value},
        }

    edit = {
        "id": 7, "completed_by": 3, "created_at": "2026-01-01T00:00:00.123456Z", "lead_time": 12.5, "was_cancelled": False,
        "result": [result("verdict", "choices", ["edit"]), result("answer", "textarea", ["Oswin"])],
    }  # fmt: skip
    skipped = {**edit, "was_cancelled": True, "result": []}
    (tmp_path / "export.json").write_text(json.dumps([{"id": 1, "data": data, "annotations": [edit, skipped]}]))
    (found,) = exchange.read_label_studio(tmp_path / "export.json")
    assert (found.annotator, found.verdict, found.look, found.seconds) == ("user 3", Verdict.EDIT, 1, 12.5)
    assert found.words == Words(one.question, "Oswin", one.aliases)
    assert found.at == "2026-01-01T00:00:00.123+00:00"
    assert exchange.read_label_studio(tmp_path / "export.json") == [found]  # the same id each time


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "no list of tasks"),
        ("nonsense", "cannot be read as JSON"),
        ('[{"id": 1}]', "task 1: it has no data"),
        ("[3]", "task 1: it has no data"),
        ('[{"data": {"key": "a"}, "annotations": [{"result": [], "completed_by": 1}]}]', "task 1, annotation 1"),
        ('[{"data": {}, "annotations": ["x"]}]', "task 1, annotation 1"),
    ],
)
def test_what_is_no_label_studio_export_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(BadFile, match=said):
        exchange.read_label_studio(tmp_path / "x.json")


def test_label_studio_gets_the_picture_and_an_interface_for_every_field(tmp_path: Path, stage: Stage) -> None:
    exchange.write_label_studio(tmp_path / "tasks.json", stage, [])
    first = json.loads((tmp_path / "tasks.json").read_text())[0]["data"]
    assert base64.b64decode(first["image"].split(",", 1)[1]) == CANDIDATES[0].image
    tree = ElementTree.fromstring(exchange.label_config())
    assert {element.get("value") for element in tree.iter("Choice")} >= set(REASONS.values())
    fields = {str(element.get("value"))[1:] for element in tree.iter() if str(element.get("value")).startswith("$")}
    assert fields <= set(first)


def test_the_candidates_come_out_with_their_review(tmp_path: Path, stage: Stage, store: Store) -> None:
    keys = list(stage.contents)

    def say(number: int, annotator: str, verdict: Verdict, **more: object) -> None:
        made = Decision(f"{number}{annotator}", keys[number], annotator, stage.contents[keys[number]], verdict)
        store.save(replace(made, **more), 0)

    for annotator in ("ben", "ann"):
        say(0, annotator, Verdict.ACCEPT, note="fine")
        say(1, annotator, Verdict.EDIT, words=Words("Who drew it?", "M. Oswin", ("Oswin",)))
        say(2, annotator, Verdict.REJECT, reason=REASONS["2"])
    say(3, "ann", Verdict.ACCEPT)
    say(3, "ben", Verdict.REJECT, reason=REASONS["2"])
    counts = exchange.write_candidates(tmp_path / "06_review.parquet", stage, store)
    assert counts == {"kept": 2, exchange.REJECTED: 1, exchange.DISPUTED: 1, exchange.OPEN: 1, "no image": 1}
    accepted, edited, rejected, disputed, left, dropped = read(tmp_path / "06_review.parquet")
    assert accepted == replace(CANDIDATES[0], review="accepted", reviewers=("ann", "ben"), review_note="fine | fine")
    assert (edited.review, edited.question, edited.answer, edited.aliases) == ("edited", "Who drew it?", "M. Oswin", ("Oswin",))
    assert (rejected.review, rejected.detail) == ("rejected", REASONS["2"])
    assert (disputed.review, disputed.detail, disputed.kept) == ("disputed", "accept, reject", False)
    assert left == CANDIDATES[4].dropped(exchange.OPEN)
    assert dropped.status == "no image"
    assert read_made_from(tmp_path / "06_review.parquet")["stage"] == stage.fingerprint


def test_an_export_of_another_version_is_refused_by_name(tmp_path: Path, stage: Stage, store: Store) -> None:
    file = tmp_path / "06_review.parquet"
    exchange.write_candidates(file, stage, store)
    exchange.check_export(file, stage.path)
    candidates = list(read(stage.path))
    write(stage.path, [replace(candidates[0], need="text_required"), *candidates[1:]])  # labelled anew
    with pytest.raises(DataError, match=r"06_review\.parquet has other search labels than .* for 1 candidates: export the review again"):
        exchange.check_export(file, stage.path)
    write(stage.path, [replace(candidates[0], answer="somebody else"), *candidates[1:]])
    with pytest.raises(DataError, match=r"06_review\.parquet reviews another version of .*: export the review again"):
        exchange.check_export(file, stage.path)
    write(stage.path, candidates[1:])
    with pytest.raises(DataError, match="another version"):
        exchange.check_export(file, stage.path)


def test_a_copy_of_a_review_is_made_of_its_csv(tmp_path: Path, stage: Stage, store: Store) -> None:
    key = next(iter(stage.contents))
    for annotator in ("ann", "ben"):
        store.save(Decision(annotator, key, annotator, stage.contents[key], Verdict.ACCEPT), 0)
    store.save(Decision("undone", key, "ben", stage.contents[key], Verdict.WITHDRAWN), 1)
    exchange.write_csv(tmp_path / "review.csv", store.history())
    copy = Store(tmp_path / "copy.sqlite")
    copy.begin(stage.contents, 2)
    assert copy.merge(exchange.read_csv(tmp_path / "review.csv")).added == 3
    assert copy.history() == store.history()
    assert list(copy.outcomes()) == list(store.outcomes())
    assert copy.merge(exchange.read_csv(tmp_path / "review.csv")).known == 3
    copy.close()
