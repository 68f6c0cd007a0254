"""Two evaluations beside each other: every shared question has its place, the counts are right, hostile text stays text."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmsr_ray.evaluation.results import read_evaluated
from mmsr_ray.evaluation.trajectories import write_trajectories
from mmsr_ray.observability.compare import Wanted, choose, write_comparisons
from mmsr_ray.observability.pairs import Episodes, error_counts, moves, pairs_of
from mmsr_ray.types import Answer, Need, TextHit, TextSearch, ToolKind, ToolResult, Turn
from tests.evaluation.runs import answered, answers, write_run
from tests.observability.episodes import ATTACK, Tags, episode, searching

FIRST = answers([(True, True), (True, False), (False, True), (False, False), (None, False)] * 4)
SECOND = answers([(True, False), (False, True), (True, True), (False, True), (True, True)] * 4)
LARGEST = 2_000_000


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    one = {("x", "on_demand"): FIRST, ("x", "rag"): SECOND, ("y", "on_demand"): FIRST}
    return write_run(tmp_path / "a", one), write_run(tmp_path / "b", {("x", "on_demand"): SECOND}, model="theirs")


def pages(index: Path) -> dict[str, Tags]:
    return {file.name: Tags(file.read_text()) for file in index.parent.glob("*.html")}


def values(page: Tags, attribute: str) -> list[str | None]:
    return [value for name, value in page.attributes if name == attribute]


def test_pairs_moves_and_errors(runs: tuple[Path, Path]) -> None:
    (first, second), *_ = choose(read_evaluated(runs[0]), read_evaluated(runs[1]), Wanted())
    pairs = pairs_of(first, second)
    assert [pair.outcome for pair in pairs] == [name for name in ("second", "first", "neither", "both", "broken") for _ in range(4)]
    assert all(pair.first.uid == pair.second.uid for pair in pairs)
    counted = moves(pairs)
    assert counted["correct_search"]["correct_no_search"] == counted["correct_no_search"]["wrong_search"] == 4
    assert counted["wrong_search"]["correct_search"] == counted["wrong_no_search"]["wrong_search"] == 4
    assert sum(sum(row.values()) for row in counted.values()) == 16
    assert error_counts(pairs)["infra"] == (4, 0) and error_counts(pairs)["wrong_after_search"] == (4, 8)


def test_every_shared_question_has_its_place(runs: tuple[Path, Path], tmp_path: Path) -> None:
    index = write_comparisons(tmp_path / "out", choose(read_evaluated(runs[0]), read_evaluated(runs[1]), Wanted()))
    found = pages(index)
    assert set(found) == {
        "index.html",
        "x-on_demand.html",
        "x-on_demand-pairs.html",
        "x-on_demand-pairs.2.html",
        "x-on_demand-pairs.3.html",
    }
    links = [value for value in values(found["x-on_demand.html"], "href") if value and "#q" in value]
    assert len(links) == len(set(links)) == 20
    for link in links:
        page, anchor = link.split("#")
        assert ("id", anchor) in found[page].attributes
    for name in ("data-outcome", "data-behaviour_first", "data-behaviour_second", "data-error_first", "data-error_second", "data-need"):
        assert len(values(found["x-on_demand.html"], name)) == 20, name
    asked = {value for value in values(found["x-on_demand.html"], "name") if value}
    assert {"outcome", "behaviour_first", "behaviour_second", "error_first", "error_second", "need", "uid"} <= asked
    for name in asked - {"uid", "viewport"}:
        assert values(found["x-on_demand.html"], f"data-{name}"), f"the filter {name} looks at nothing"
    text = (index.parent / "x-on_demand.html").read_text()
    for words in ("<b>4</b>", "12.5", "Left out: 0 that only the first kept, 0 that only the second kept, 4 that infrastructure broke"):
        assert words in text, words
    pair = (index.parent / "x-on_demand-pairs.html").read_text()
    assert pair.count("<article") == 8 and pair.count('class="side"') == 16
    for words in ("Who is q2?", "only the second is right", "theirs, on demand", "She."):
        assert words in pair


def test_two_workflows_of_one_run(runs: tuple[Path, Path], tmp_path: Path) -> None:
    own = read_evaluated(runs[0])
    compared = choose(own, own, Wanted(workflows=("rag", "on_demand")))
    assert [(a.benchmark, a.workflow, b.workflow) for a, b in compared] == [("x", "rag", "on_demand")]
    assert "x-rag-on_demand.html" in pages(write_comparisons(tmp_path / "out", compared))


def test_what_cannot_be_compared_is_refused_with_what_there_is(runs: tuple[Path, Path]) -> None:
    own = read_evaluated(runs[0])
    with pytest.raises(ValueError, match=r"nothing to compare.*a has ours, x, on_demand; a has ours, x, rag"):
        choose(own, own, Wanted())
    with pytest.raises(ValueError, match="nothing to compare"):
        choose(own, read_evaluated(runs[1]), Wanted(benchmark="z"))


def test_an_unfair_comparison_says_so(tmp_path: Path) -> None:
    one, other = (
        write_run(tmp_path / name, {("x", "rag"): FIRST}, overrides=changes) for name, changes in (("a", []), ("b", ["reward.match=subem"]))
    )
    index = write_comparisons(tmp_path / "out", choose(read_evaluated(one), read_evaluated(other), Wanted()))
    assert "other judge: reward.match" in (index.parent / "x-rag.html").read_text() and "not comparable" in index.read_text()


def test_hostile_and_long_text(tmp_path: Path) -> None:
    given = answers([(False, False)] * 10)
    sides = [write_run(tmp_path / name, {("x" + ATTACK.replace("/", ""), "rag"): given}, model=f"{name}{ATTACK}") for name in ("a", "b")]
    text = (ATTACK + "<|im_start|></article>{{ 7 * 7 }}") * 2_000
    hits = tuple(TextHit("javascript:alert(1)", text, text) for _ in range(5))
    turn = Turn(text, TextSearch(text), 9, True, ToolResult(ToolKind.TEXT, text, hits))
    for folder in sides:
        pairs = []
        for uid in given:
            sample, trajectory = episode(
                uid, Need.TEXT, False, (turn, turn, Turn(text, Answer(text), 9, True)), picture=b"<svg onload=alert(1)>"
            )
            pairs.append((replace(sample, question=text, answers=(text,)), replace(trajectory, question=text, answer=text)))
        (file,) = (folder / "trajectories").glob("*.parquet")
        write_trajectories(file, pairs, split="x")
    index = write_comparisons(tmp_path / "out", choose(read_evaluated(sides[0]), read_evaluated(sides[1]), Wanted()))
    for file in index.parent.glob("*.html"):
        assert file.stat().st_size < LARGEST
        page = Tags(file.read_text())
        assert page.tags.count("script") == (file.name != "index.html") and page.tags.count("h1") == 1 and "img" not in page.tags
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert all(value and re.fullmatch(r"[\w-]+(\.\d+)?\.html(#q\d+)?", value) for value in values(page, "href")), values(page, "href")


def test_pictures_lie_beside_the_pages(tmp_path: Path) -> None:
    sides = [write_run(tmp_path / name, {("x", "on_demand"): answers([(True, True)])}) for name in ("a", "b")]
    for folder in sides:
        write_trajectories(folder / "trajectories" / "x-on_demand.parquet", [searching("q0")], split="x")
    index = write_comparisons(tmp_path / "out", choose(read_evaluated(sides[0]), read_evaluated(sides[1]), Wanted()))
    page = pages(index)["x-on_demand-pairs.html"]
    pictures = {f"pictures/{file.name}" for file in (index.parent / "pictures").iterdir()}
    assert len(pictures) == 2 and set(values(page, "src")) == pictures and len(values(page, "src")) == 3


def test_rows_of_a_file_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    write_trajectories(file, [answered(f"q{number}", True, False) for number in range(50)], split="x")
    episodes = Episodes(file)
    assert [episodes[number].uid for number in (49, 0, 16, 15, 31, 32)] == ["q49", "q0", "q16", "q15", "q31", "q32"]


def test_the_command(runs: tuple[Path, Path], tmp_path: Path) -> None:
    def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "mmsr_ray.observability.compare", *map(str, words), "--out", str(tmp_path / "out")]
        return subprocess.run(line, capture_output=True, text=True, timeout=60)

    done = command(*runs, "--benchmark", "x", "--workflow", "on_demand")
    assert done.returncode == 0 and (tmp_path / "out" / "x-on_demand-pairs.3.html").is_file(), done.stderr
    refused = command(runs[0])
    assert refused.returncode == 2 and "nothing to compare" in refused.stderr
    assert command(tmp_path).returncode == 2
