"""The pages of a run: everything kept is there, hostile text stays text, no page is large, and little is written twice."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mmsr_ray.evaluation.trajectories import write_groups, write_trajectories
from mmsr_ray.observability import folder as folder_of_pages
from mmsr_ray.observability.browse import PAGE, write_browser
from mmsr_ray.types import Answer, Group, Need, Outcome, Sample, TextHit, TextSearch, ToolKind, ToolResult, Trajectory, Turn
from tests.observability.episodes import ATTACK, Tags, episode, png, searching

HOSTILE = [
    ATTACK,
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "</details></article><h1>mine",
    "{{ 7 * 7 }}",
    "</script><!--",
    "\x00\u202e",
]
ADDRESSES = [
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "file:///etc/passwd",
    "//evil.example",
    'https://a.example/"onclick="x',
]
LARGEST = 2_000_000


def group(uid: str, size: int = 8) -> Group:
    sample, trajectory = searching(uid)
    return Group(uid, 0, sample, tuple(replace(trajectory, index=index) for index in range(size)))


def pages(folder: Path) -> dict[str, Tags]:
    return {file.name: Tags(file.read_text()) for file in folder.glob("*.html")}


def hrefs(page: Tags) -> set[str]:
    return {value for name, value in page.attributes if name == "href" and value}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    for step in (1, 2):
        write_groups(folder / "trajectories", [group(f"q{step}-{number}") for number in range(3)], step=step)
    write_trajectories(folder / "trajectories" / "after_RL-on_demand.parquet", [episode("e0", Need.IMAGE, True)], split="test")
    return folder


def test_every_episode_has_its_place(run: Path) -> None:
    index = write_browser(run)
    found = pages(index.parent)
    assert set(found) == {
        "index.html", "episodes.html", "after_RL-on_demand.html",
        "step_000001.html", "step_000001.2.html", "step_000002.html", "step_000002.2.html",
    }  # fmt: skip
    assert {"after_RL-on_demand.html", "step_000001.html", "step_000002.html"} <= hrefs(found["index.html"])
    rows = [address for address in hrefs(found["episodes.html"]) if "#" in address]
    assert len(rows) == 2 * 24 + 1
    for address in rows:
        page, anchor = address.split("#")
        assert ("id", anchor) in found[page].attributes
    assert "step_000001.2.html" in hrefs(found["step_000001.html"]) and "step_000002.html" in hrefs(found["step_000001.html"])
    text = (index.parent / "step_000001.html").read_text()
    for words in ("Who is q1-0?", "8 of 8 right", "mix required", "She wrote.", "timeout: 10 s", "malformed: no tag", "expected “Ada”"):
        assert words in text
    # All ways out of the folder: the report, and what a search found.
    outside = {address for page in found.values() for address in hrefs(page) if address.split("#")[0] not in found}
    assert outside == {"../report.html", "https://ada.example/a"}


def test_what_can_be_asked_for_stands_at_each_episode(run: Path) -> None:
    found = pages(write_browser(run).parent)
    for name in ("episodes.html", "step_000002.html"):
        attributes = found[name].attributes
        assert {value for key, value in attributes if key == "data-searched"} >= {"image text"}
        assert {"data-uid", "data-step", "data-outcome", "data-correct", "data-searched", "data-need", "data-behaviour", "data-error"} <= {
            key for key, _ in attributes
        }
        assert [
            key
            for key, value in attributes
            if key == "name" and value in ("correct", "behaviour", "error", "searched", "need", "outcome", "uid")
        ]
    assert sum(key == "data-uid" for key, _ in found["episodes.html"].attributes) == 49


def test_pictures_lie_beside_the_pages_once_each(run: Path) -> None:
    folder = write_browser(run).parent
    pictures = {f"pictures/{file.name}" for file in (folder / "pictures").iterdir()}
    assert len(pictures) == 2  # the question's and the thumbnail of all of them
    shown = [value for page in pages(folder).values() for key, value in page.attributes if key == "src"]
    assert set(shown) == pictures
    assert "base64," not in (folder / "step_000001.html").read_text()


def hostile(number: int, text: str) -> tuple[Sample, Trajectory]:
    hits = tuple(TextHit(address, text, text) for address in ADDRESSES)
    turns = (
        Turn(text, TextSearch(text), 3, True, ToolResult(ToolKind.TEXT, text, hits)),
        Turn(text, Answer(text), 3, True),
    )
    sample, trajectory = episode(f"{number}{text}", Need.TEXT, False, turns, picture=b"<svg onload=alert(1)>")
    sample = replace(sample, question=text, answers=(text,), source=text)
    return sample, replace(trajectory, question=text, answer=text, detail=text, outcome=Outcome.POLICY_ERROR)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    pairs = [hostile(number, text) for number, text in enumerate(HOSTILE)]
    write_trajectories(tmp_path / "trajectories" / "step_000001.parquet", pairs, split="train", step=1)
    folder = write_browser(tmp_path).parent
    for name, page in pages(folder).items():
        assert page.tags.count("script") == (name != "index.html"), name
        assert not [key for key, _ in page.attributes if key.startswith("on")]
        assert page.tags.count("h1") == 1
        allowed = re.compile(r"(index|episodes|step_000001)\.html(#e\d+)?|\.\./report\.html|https://a\.example/\"onclick=\"x")
        assert all(allowed.fullmatch(address) for address in hrefs(page)), hrefs(page)
        assert not [value for key, value in page.attributes if key == "src"]
    text = (folder / "step_000001.html").read_text()
    assert "{{ 7 * 7 }}" in text and "&lt;script&gt;alert(1)" in text
    assert re.findall(r'<a href="https://a[^>]*>', text)[0].endswith('rel="noopener noreferrer nofollow">')
    assert "The picture cannot be shown" in text


def test_the_only_script_that_may_run_is_ours(run: Path) -> None:
    for file in write_browser(run).parent.glob("*.html"):
        text = file.read_text()
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
        assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1].split("script-src")[1]
        for script in re.findall(r"<script>(.*?)</script>", text, flags=re.S):
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"script-src 'sha256-{digest}'" in policy[1]


def long(length: int, hits: int, character: str) -> Sequence[Turn]:
    text = character * length
    found = tuple(TextHit("https://x.example/" + character * 1_900, text, text) for _ in range(hits))
    return [Turn(text, TextSearch(text), 3, True, ToolResult(ToolKind.TEXT, text, found)) for _ in range(6)]


@pytest.mark.parametrize(("length", "hits", "character"), [(8_000, 5, "x"), (30_000, 5, "<"), (4_000, 40, "💥")])
def test_no_page_is_large(tmp_path: Path, length: int, hits: int, character: str) -> None:
    sample, trajectory = episode(character * 500, Need.TEXT, False, tuple(long(length, hits, character)))
    sample = replace(sample, question=character * 100_000, answers=(character * 10_000,) * 50)
    pairs = [
        (sample, replace(trajectory, question=sample.question, answer=sample.question, detail=sample.question, index=i))
        for i in range(2 * PAGE)
    ]
    write_trajectories(tmp_path / "trajectories" / "step_000001.parquet", pairs, split="train", step=1)
    folder = write_browser(tmp_path).parent
    assert max(file.stat().st_size for file in folder.glob("*.html")) < LARGEST
    assert (folder / "step_000001.2.html").is_file()


def test_long_lists_are_cut_into_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_of_pages, "ROWS", 2)
    for step in range(1, 4):
        write_trajectories(
            tmp_path / "trajectories" / f"step_{step:06d}.parquet", [episode(f"q{step}", Need.TEXT, True)], split="train", step=step
        )
    found = pages(write_browser(tmp_path).parent)
    assert {"step_000003.html", "step_000002.html", "index.2.html"} <= hrefs(found["index.html"])
    assert {"step_000001.html", "index.html"} <= hrefs(found["index.2.html"])
    assert {"step_000001.html#e0", "episodes.html"} <= hrefs(found["episodes.2.html"])


def test_only_what_changed_is_written_again(run: Path) -> None:
    folder = write_browser(run).parent
    before = {file.name: file.stat().st_ino for file in folder.glob("step_*.html")}
    write_groups(run / "trajectories", [group("new", 4)], step=2)  # done again after a resume, now shorter
    write_groups(run / "trajectories", [group("newer")], step=3)
    write_browser(run)
    after = {file.name: file.stat().st_ino for file in folder.glob("step_*.html")}
    assert set(after) == {"step_000001.html", "step_000001.2.html", "step_000002.html", "step_000003.html"}
    assert after["step_000001.html"] == before["step_000001.html"] and after["step_000002.html"] != before["step_000002.html"]
    assert "step_000003.html" in hrefs(pages(folder)["step_000002.html"])


def test_a_run_without_episodes(tmp_path: Path) -> None:
    assert "No episodes were kept" in write_browser(tmp_path).read_text()


def test_a_small_picture_in_a_large_file_is_made_small(tmp_path: Path) -> None:
    bloated = png((1, 2, 3)) + b"x" * 3_000_000
    write_trajectories(
        tmp_path / "trajectories" / "step_000001.parquet", [episode("q", Need.TEXT, True, picture=bloated)], split="train", step=1
    )
    folder = write_browser(tmp_path).parent
    assert max(file.stat().st_size for file in (folder / "pictures").iterdir()) < 10_000
