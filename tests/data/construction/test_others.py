"""Questions of others: sets in the FVQA schema, and a CSV by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsr_ray.config import DataConfig
from mmsr_ray.data.construction.others import manual, textual
from mmsr_ray.data.schema import DataError, write_fvqa
from mmsr_ray.types import Sample
from tests.tools.web import png


def test_textual_questions_become_candidates_drawn_by_lot(tmp_path: Path) -> None:
    path = tmp_path / "infoseek.parquet"
    write_fvqa(path, [Sample(f"u{i}", f"What is this number {i}?", png(i), (f"a{i}", "also"), source="infoseek") for i in range(20)])
    every = list(textual(str(path), 0, DataConfig(), seed=0))
    assert len(every) == 20 and len({c.key for c in every}) == 20
    assert (every[3].origin, every[3].question, every[3].answers, every[3].source) == (
        "textual",
        "What is this number 3?",
        ("a3", "also"),
        "infoseek",
    )
    some = list(textual(str(path), 5, DataConfig(), seed=0))
    assert len(some) == 5 and set(some) <= set(every)


def test_manual_questions_come_from_a_csv_and_bad_rows_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(b"no picture")
    rows = ["image,question,answer,aliases,category", 'a.png,"Who, what is this?",tin, Sn | metal |,Science: concepts']
    rows += ["missing.png,What?,x,,", "b.png,What?,x,,", "a.png,What?,,,"]
    (tmp_path / "manual.csv").write_text("\n".join(rows))
    good, *bad = manual(str(tmp_path / "manual.csv"), DataConfig())
    assert good.kept and good.origin == "manual" and good.image == png()
    assert (good.question, good.answers, good.category) == ("Who, what is this?", ("tin", "Sn", "metal"), "Science: concepts")
    assert [c.status for c in bad] == ["manual: no image file", "manual: corrupt image", "manual: question or answer missing"]


@pytest.mark.parametrize(("content", "sentence"), [(b"image,question\n", "lacks the column answer"), (b"\xff\xfe\x00", "cannot read")])
def test_a_csv_of_something_else_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "manual.csv").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        list(manual(str(tmp_path / "manual.csv"), DataConfig()))
