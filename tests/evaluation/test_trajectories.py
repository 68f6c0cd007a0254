"""Trajectories written and read back, pictures and searches included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmsr_ray.evaluation.trajectories import StoredHit, read_trajectories, write_groups, write_trajectories
from mmsr_ray.types import (
    Answer,
    Group,
    ImageHit,
    ImageSearch,
    Malformed,
    Need,
    Outcome,
    Picture,
    Reward,
    Sample,
    SealedTokens,
    TextHit,
    TextSearch,
    ToolFailure,
    ToolKind,
    ToolResult,
    Trajectory,
    Turn,
)

SAMPLE = Sample("u1", "Who built it?", b"\x89PNG user", ("Ada", "A. L."), "set", need=Need.MIX)
TOKENS = SealedTokens(
    np.zeros(1, np.int32), np.zeros(1, bool), np.zeros(1, np.float32), np.full(1, -1, np.int32), np.zeros((0, 3), np.int32), ()
)


def trajectory(index: int = 0) -> Trajectory:
    image = ToolResult(ToolKind.IMAGE, "sha", (ImageHit("Tower", Picture(b"thumb", "s"), "http://a"),), seconds=0.5, cached=True)
    text = ToolResult(ToolKind.TEXT, "who <built>", (TextHit("http://b", "Ada did.", "Page"),))
    turns = (
        Turn("<reason>r</reason><search><img></search>", ImageSearch(), 7, True, image),
        Turn("<text_search>who <built></text_search>", TextSearch("who <built>"), 8, True, text),
        Turn("<answer>Ada</answer>", Answer("Ada"), 3, True),
    )
    return Trajectory("u1", index, "on_demand", "Who built it?", turns, Outcome.OK, "", "Ada", TOKENS, Reward(0.91, True, True, 2))


def failed() -> Trajectory:
    tool = ToolResult(ToolKind.TEXT, "q", failure=ToolFailure.TIMEOUT, detail="60 s are over")
    turns = (Turn("t", TextSearch("q"), 1, True, tool), Turn("rambling", Malformed("no answer tag"), 99, False))
    return Trajectory("u1", 1, "rag", "Who built it?", turns, Outcome.INFRA_ERROR, "tool: timeout", None, TOKENS)


def test_all_of_an_episode_comes_back(tmp_path: Path) -> None:
    assert write_trajectories(tmp_path / "x" / "t.parquet", [(SAMPLE, trajectory()), (SAMPLE, failed())], split="test") == 2
    good, bad = read_trajectories(tmp_path / "x" / "t.parquet")
    assert (good.uid, good.index, good.split, good.step, good.workflow, good.need) == ("u1", 0, "test", None, "on_demand", "mix_required")
    assert (good.question, good.answers, good.picture) == ("Who built it?", ("Ada", "A. L."), b"\x89PNG user")
    assert (good.outcome, good.answer, good.reward, good.correct, good.well_formed) == ("ok", "Ada", 0.91, True, True)
    assert [turn.action for turn in good.turns] == ["image_search", "text_search", "answer"]
    assert good.turns[0].hits == (StoredHit("Tower", "http://a", "", b"thumb"),)
    assert (good.turns[0].cached, good.turns[0].tool_seconds, good.turns[0].tool) == (True, 0.5, "image")
    assert good.turns[1].query == "who <built>"
    assert good.turns[1].hits == (StoredHit("Page", "http://b", "Ada did.", None),)
    assert (good.turns[2].tool, good.turns[2].hits) == (None, ())
    assert (bad.outcome, bad.detail, bad.reward, bad.correct, bad.answer) == ("infra_error", "tool: timeout", None, None, None)
    assert (bad.turns[0].failure, bad.turns[0].detail) == ("timeout", "60 s are over")
    assert (bad.turns[1].action, bad.turns[1].detail) == ("malformed", "no answer tag")
    assert (good.em, good.subem, good.judged) == (True, True, None)
    assert (bad.em, bad.subem, bad.judged) == (False, False, None)


def test_what_a_call_cost_and_files_of_before_it_was_written(tmp_path: Path) -> None:
    tool = ToolResult(ToolKind.TEXT, "q", (TextHit("http://b", "Ada did."),), partial=True, attempts=3, cost_usd=0.012)
    bought = replace(trajectory(), turns=(Turn("t", TextSearch("q"), 1, True, tool),))
    new, old = tmp_path / "new.parquet", tmp_path / "old.parquet"
    write_trajectories(new, [(SAMPLE, bought)], split="test")
    turn = next(read_trajectories(new)).turns[0]
    assert (turn.partial, turn.attempts, turn.cost_usd) == (True, 3, 0.012)
    rows = pq.read_table(new).to_pylist()
    for row in rows:
        for fields in row["turns"]:
            del fields["partial"], fields["attempts"], fields["cost_usd"]
        del row["em"], row["subem"], row["judged"]
    pq.write_table(pa.Table.from_pylist(rows), old)
    before = next(read_trajectories(old))
    assert (before.answer, before.em, before.subem, before.judged) == ("Ada", None, None, None)
    turn = before.turns[0]
    assert (turn.query, turn.partial, turn.attempts, turn.cost_usd) == ("q", False, 1, 0.0)


def test_whose_weights_wrote_it_how_long_it_took_and_what_it_earned(tmp_path: Path) -> None:
    mask = np.array([False, *[True] * 18])
    tokens = replace(
        TOKENS, loss_mask=mask, versions=np.array([-1, *[3] * 7, *[3] * 4, *[4] * 4, *[4] * 3], np.int32), ids=np.zeros(19, np.int32)
    )
    verdict = ToolResult(ToolKind.JUDGE, "q", (TextHit("", "", "yes"),), cost_usd=0.5)
    told = replace(trajectory(), tokens=tokens, verdict=verdict, generate_seconds=1.5, tool_seconds=2.5)
    cut = replace(told, tokens=replace(tokens, loss_mask=~mask))  # fewer tokens are left than the turns had
    write_trajectories(tmp_path / "t.parquet", [(SAMPLE, told), (SAMPLE, cut)], split="train", step=3)
    whole, shorter = read_trajectories(tmp_path / "t.parquet")
    assert [(turn.version_min, turn.version_max) for turn in whole.turns] == [(3, 3), (3, 4), (4, 4)]
    assert (whole.length, whole.sampled_tokens, whole.version_min, whole.version_max) == (19, 18, 3, 4)
    assert (whole.searches_counted, whole.verdict, whole.generate_seconds, whole.tool_seconds, whole.cost_usd) == (2, "yes", 1.5, 2.5, 0.5)
    assert {turn.version_max for turn in shorter.turns} == {-1}


def test_a_folder_of_steps(tmp_path: Path) -> None:
    for step in (10, 2):
        write_groups(tmp_path, [Group("u1", 0, SAMPLE, tuple(trajectory(i) for i in range(20)))], step=step)
    rows = list(read_trajectories(tmp_path))
    assert [(row.step, row.index) for row in rows] == [(step, i) for step in (2, 10) for i in range(20)]
    assert len(list(read_trajectories(tmp_path, limit=3))) == 3
    (tmp_path / "nothing").mkdir()
    assert list(read_trajectories(tmp_path / "nothing")) == []
