"""Small files in the schemas of the published sets, as their public readers know them."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmsr_ray.config import DataConfig
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.types import Sample


def config(**changes: Any) -> DataConfig:
    return replace(DataConfig(train="", test=""), **changes)


def png(colour: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (colour % 256, colour // 256, 7)).save(out, "PNG")
    return out.getvalue()


def fvqa(file: Path, count: int, stem: str = "fvqa_test") -> Path:
    write_fvqa(file, (Sample(f"{stem}_{i}", f"Who is {i}?", png(i), (f"answer {i}", "other")) for i in range(count)))
    return file


def mmsearch(file: Path, pictures: int, texts: int, **changes: Any) -> Path:
    rows = [
        {
            "sample_id": f"news_{i}",
            "query": f"When was {i}?",
            "query_image": {"bytes": png(i), "path": None} if i < pictures else None,
            "image_search_result": {"bytes": png(), "path": None} if i < pictures else None,
            "area": "news",
            "subfield": "finance",
            "timestamp": "2024-08-15",
            "gt_requery": "when",
            "gt_answer": f"answer {i}",
            "alternative_gt_answers": ["other"] if i % 2 else [],
        }
        for i in range(pictures + texts)
    ]
    rows[0] |= changes
    return table(file, rows)


def simplevqa(file: Path, english: int, chinese: int, **changes: Any) -> Path:
    rows = [
        {
            "data_id": i,
            "image": base64.b64encode(png(i)).decode(),
            "image_description": "",
            "language": "EN" if i < english else "CN",
            "question": f"What is {i}?",
            "answer": f"answer {i}",
            "original_category": "x",
            "source": "http://x",
            "atomic_question": "Which?",
            "atomic_fact": "this",
            "vqa_category": f"kind {i % 3}",
        }
        for i in range(english + chinese)
    ]
    rows[0] |= changes
    return table(file, rows)


def livevqa(folder: Path, count: int, **changes: Any) -> Path:
    """The folder with qa.json and image/, whose stored paths are of the machine that made it."""
    (folder / "image").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        (folder / "image" / f"{i}_news.png").write_bytes(png(i))
        rows.append(
            {"sample_id": f"News_{i}_1", "query": f"Where is {i}?", "query_image": f"/mnt/x/image/{i}_news.png", "gt_answer": f"answer {i}"}
        )
    rows[0] |= changes
    (folder / "qa.json").write_text(json.dumps(rows))
    return folder


def table(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def jsonl(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file
