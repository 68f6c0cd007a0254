"""findings.html shows what it was given: every number, every figure, every verdict; hostile text stays text, gaps are named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mmsr_ray.observability.figures import over_seeds
from mmsr_ray.observability.findings import table_1, write_findings
from mmsr_ray.observability.seeds import Spread, spread
from tests.observability.episodes import ATTACK, Tags

KINDS = ("average", "search_free", "image_required", "text_required", "mix_required")


def row(model: str, workflow: str, accuracy: float, ratio: float) -> dict[str, Any]:
    cells = {
        kind: {"accuracy": [accuracy - 0.02 + 0.01 * n, accuracy, accuracy + 0.03], "search_ratio": [ratio, ratio, min(1.0, ratio + 0.1)]}
        for n, kind in enumerate(KINDS)
    }
    return {"model": model, "workflow": workflow, "cells": cells}


def curve(top: float, ratio: float, steps: int = 60) -> list[dict[str, Any]]:
    rise = [1 - math.exp(-step / 15) for step in range(1, steps + 1)]
    return [
        {"step": n, "reward": top * part, "search_ratio": 0.3 + (ratio - 0.3) * part, "held_out": ratio if n % 20 == 0 else None}
        for n, part in enumerate(rise, start=1)
    ]


def made_up() -> dict[str, Any]:
    number = {
        "name": "accuracy on demand − RAG",
        "per_seed": [0.031, None, 0.012],
        "mean": 0.0215,
        "low": 0.012,
        "high": 0.031,
        "unit": "%",
    }
    ratio = {"name": "log-odds", "per_seed": [1.25, 1.5], "mean": 1.375, "low": 1.25, "high": 1.5, "unit": ""}
    claims = [
        "RL on demand ties or beats RAG with 30 % fewer searches.",
        "RL improves the fixed workflow." + ATTACK,
        "Collapse without balancing.",
    ]
    verdicts = [(True, "held"), (False, "did not hold"), (False, "held with some seeds")]
    return {
        "findings": [
            {"id": n, "claim": claim, "held": held, "verdict": verdict, "numbers": [number, ratio], "seeds": [0, 1, 2], "reason": "Small world. " + ATTACK}
            for n, (claim, (held, verdict)) in enumerate(zip(claims, verdicts, strict=True), start=1)
        ],
        "table": [
            row("before RL", "direct", 0.2, 0.0), row("before RL", "rag", 0.5, 1.0), row("after RL" + ATTACK, "rag", 0.58, 1.0),
            row("after RL", "on_demand", 0.6, 0.55),
        ],
        "behaviour": {
            "before RL": {"correct_search": [0.07, 0.08], "correct_no_search": [0.18, 0.2], "wrong_search": [0.22, 0.2], "wrong_no_search": [0.53, 0.52]},
            "after RL": {"correct_search": [0.33, 0.3], "correct_no_search": [0.21, 0.25], "wrong_search": [0.3, 0.3], "wrong_no_search": [0.16, 0.15]},
        },
        "rag": {"before RL": {"seen kinds": [0.53, 0.51, 0.55], "unseen $a$ & $b$": [0.49, 0.5, 0.48]},
                "after RL": {"seen kinds": [0.6, 0.58, 0.61], "unseen $a$ & $b$": [0.55, None, 0.56]}},
        "sft": [{"name": "SFT", "questions": 8000, "accuracy": [0.44, 0.45, 0.42], "search_ratio": [0.37, 0.4, 0.35]},
                {"name": "RL", "questions": 4000, "accuracy": [0.58, 0.57, 0.6], "search_ratio": [0.6, 0.62, 0.66]}],
        "curves": {"full": [curve(0.76, 0.6), curve(0.7, 0.55, 50)], "no balancing": [curve(0.74, 1.0)], "no penalty": [curve(0.8, 0.97), curve(0.78, 0.99)]},
        "needed": 0.5,
        "machine": {"cpu": "Some CPU", "cores": 2, "versions": {"ray": "2.60"}},
        "seconds": 4321.0,
    }  # fmt: skip


def test_everything_given_is_shown(tmp_path: Path) -> None:
    page = write_findings(tmp_path, made_up()).read_text()
    parsed = Tags(page)
    assert parsed.tags.count("svg") == 1 + 1 + 2 + 2
    assert parsed.tags.count("section") == 3
    for words in (
        ">held<", ">did not hold<", "mixed\">held with some seeds<", "Took 1 h 12 min", "cores 2", "ray 2.60",
        "3.1 %", "1.375", "8,000 questions", "what is needed", "no balancing", "correct, did not search", "unseen $a$ &amp; $b$",
        "<b>60.3</b>", "54.1 to 66.6", "1.2 % to 3.1 %",
    ):  # fmt: skip
        assert words in page, words
    assert {value for name, value in parsed.attributes if name == "href" and value and value.startswith("#finding")} == {
        "#finding-1", "#finding-2", "#finding-3"
    }  # fmt: skip


def test_it_is_inert(tmp_path: Path) -> None:
    page = write_findings(tmp_path, made_up()).read_text()
    parsed = Tags(page)
    assert "script" not in parsed.tags and "img" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert all(value and value.startswith("#") for name, value in parsed.attributes if name in ("href", "xlink:href"))
    assert "default-src 'none'" in page and "#010203" not in page


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    page = write_findings(tmp_path / "new", {}).read_text()
    assert page.count("Not measured.") == 5 and "No finding was measured." in page
    empty = {
        "sft": [{"name": "SFT", "questions": 0, "accuracy": [], "search_ratio": [None]}],
        "rag": {"before RL": {"all": [None]}},
        "curves": {"full": [[]]},
    }
    assert Tags(write_findings(tmp_path, empty).read_text()).tags.count("svg") == 5


def test_table_1_groups_by_workflow_and_marks_the_best() -> None:
    cell = {"accuracy": [0.5, 0.7], "search_ratio": [0.2, 0.4]}
    worse = {"accuracy": [0.1], "search_ratio": [None]}
    rows = [
        {"model": "a", "workflow": "rag", "cells": {"average": worse}},
        {"model": "b", "workflow": "on_demand", "cells": {"average": cell, "free": worse}},
        {"model": "c", "workflow": "rag", "cells": {"free": cell}},
    ]
    columns, blocks = table_1(rows)
    assert columns == ["average", "free"] and list(blocks) == ["rag", "on_demand"]
    assert [line.model for line in blocks["rag"]] == ["a", "c"]
    first, second = blocks["on_demand"][0].cells
    assert first.best and first.accuracy is not None and first.accuracy["mean"] == pytest.approx(0.6) and not second.best
    assert blocks["rag"][0].cells[1].accuracy is None and blocks["rag"][0].cells[0].search_ratio is None


def test_a_curve_ends_with_its_shortest_seed() -> None:
    steps, spreads = over_seeds([curve(0.7, 0.5, 30), curve(0.6, 0.5, 20), []], "reward")
    assert steps == list(range(1, 21))
    assert all(found.low < found.mean < found.high for found in spreads)
    assert over_seeds([[]], "reward") == ([], [])


def test_spread_leaves_out_seeds_without_the_number() -> None:
    assert spread([None, 0.25, 0.75]) == Spread(0.5, 0.25, 0.75)
    assert spread([None]) is None and spread([]) is None
