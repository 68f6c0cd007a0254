"""Candidates to review, some hostile, and a run folder that holds them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from mmsr_ray.data.construction.candidate import Candidate, key_of, write
from tests.observability.episodes import ATTACK

PAGE = (
    "The Halden Bridge was opened in 1931. Its architect, Mira Oswin, had worked on the harbour of the same town before.\n\n"
    "Mira Oswin won the competition against eleven others. The bridge is 412 m long and carries a road and a tramway.\n\n"
) * 6


def picture(number: int, size: tuple[int, int] = (480, 320)) -> bytes:
    image = Image.new("RGB", size, (40 + 37 * number % 180, 90 + 53 * number % 140, 150))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, size[1] * 0.7, size[0], size[1]), fill=(60, 110, 70))
    draw.arc((size[0] * 0.1, size[1] * 0.3, size[0] * 0.9, size[1] * 1.1), 180, 360, fill=(240, 230, 210), width=12)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def attempt(rollout: int) -> dict[str, object]:
    """As `attempts.to_json` writes them, hostile pages among what was found."""
    hits = [
        {"title": "Halden Bridge", "url": "https://pages.example/a", "summary": "Its architect was Mira Oswin."},
        {"title": "Bad" + ATTACK, "url": "javascript:alert(1)", "summary": ATTACK},
    ]
    image = {"tool": "image", "query": "", "failure": None, "hits": [{**hit, "summary": ""} for hit in hits]}
    text = {"tool": "text", "query": "architect of the Halden Bridge", "failure": None, "hits": hits}
    lost = {"tool": "text", "query": "Halden", "failure": "no_results", "hits": []}
    right = rollout % 3 == 0
    answer = "Mira Oswin" if right else "Ada Stone" + ATTACK
    return {"correct": right, "image_searches": 1, "text_searches": 2, "answer": answer, "searches": [image, text, lost]}


def candidate(number: int) -> Candidate:
    return Candidate(
        key_of("candidate", str(number)),
        concept="Halden Bridge",
        rank="tail",
        image=picture(number),
        image_url=f"https://pictures.example/{number}.jpg",
        page_url=f"https://pages.example/halden/{number}",
        page_title="Halden Bridge, an encyclopedia's entry",
        page_text=PAGE,
        licence="CC BY 4.0",
        source="Example Commons",
        question=f"Who designed the bridge in this picture? ({number})",
        answer="Mira Oswin",
        aliases=("M. Oswin",),
        category="Places",
        need="mix_required",
        attempts=json.dumps([attempt(rollout) for rollout in range(8)]),
    )


def hostile(number: int) -> Candidate:
    """Everything that a page or a model might write."""
    return replace(
        candidate(number),
        question=f"Who is this{ATTACK}?",
        answer="</b>'\"><svg onload=alert(1)>",
        aliases=(ATTACK,),
        concept=ATTACK,
        page_url="javascript:alert(1)",
        image_url="data:text/html,x",
        page_title=ATTACK,
        page_text="{{ 7 * 7 }}" + ATTACK + "x" * 1_000_000,
        attempts="not JSON",
        image=b"<svg onload=alert(1)>",
    )


def make_run(folder: Path, candidates: list[Candidate]) -> Path:
    write(folder / "05_balance.parquet", candidates)
    return folder
