"""Questions that somebody else wrote: textual-knowledge questions of another set, and manual ones from a CSV (spec §5.3 steps 5, 6).

Promise: each becomes a candidate with its own picture; a row that cannot be used is a dropped candidate with its reason, or, where not
even that can be made of it, is counted and logged.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from mmsr_ray.config import DataConfig
from mmsr_ray.data.construction.candidate import Candidate, Origin, key_of
from mmsr_ray.data.reader import iter_samples
from mmsr_ray.data.schema import BadRow, DataError, check_image

COLUMNS = ("image", "question", "answer")  # that a CSV must have; further ones: aliases, concept, category, licence, source


def textual(path: str, pool: int, config: DataConfig, seed: int) -> Iterator[Candidate]:
    """Candidates of a parquet set in the FVQA schema, at most `pool` of them drawn by lot (0: all). Raises DataError."""
    for sample in iter_samples(path, config, questions=pool, seed=seed):
        yield Candidate(
            key_of(Origin.TEXTUAL, sample.image, sample.question),
            origin=Origin.TEXTUAL,
            image=sample.image,
            image_url=sample.image_url or "",
            source=sample.source,
            question=sample.question,
            answer=sample.answers[0],
            aliases=sample.answers[1:],
        )


def manual(path: str, config: DataConfig) -> Iterator[Candidate]:
    """Candidates of a CSV: the picture's path (relative to the CSV), question, answer, aliases separated by |. Raises DataError."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise DataError(
                    f"{path} lacks the column {', '.join(missing)}: a CSV of questions has {', '.join(COLUMNS)} in its first line"
                )
            for row in rows:
                yield _manual(
                    {name: (value or "").strip() for name, value in row.items() if isinstance(name, str)}, Path(path).parent, config
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} ({error}): name a CSV in UTF-8 (setting construction.manual)") from error


def _manual(row: dict[str, str], folder: Path, config: DataConfig) -> Candidate:
    image, problem = _picture(folder / row["image"], config)
    candidate = Candidate(
        key_of(Origin.MANUAL, image or row["image"], row["question"]),
        origin=Origin.MANUAL,
        concept=row.get("concept", ""),
        image=image,
        question=row["question"],
        answer=row["answer"],
        aliases=tuple(filter(None, (alias.strip() for alias in row.get("aliases", "").split("|")))),
        category=row.get("category", ""),
        licence=row.get("licence", ""),
        source=row.get("source", ""),
    )
    if problem:
        return candidate.dropped(f"manual: {problem}", row["image"])
    return candidate if row["question"] and row["answer"] else candidate.dropped("manual: question or answer missing")


def _picture(path: Path, config: DataConfig) -> tuple[bytes, str]:
    """The picture, or b"" and what is wrong with it."""
    try:
        image = path.read_bytes()
        check_image(image, config)
    except OSError:
        return b"", "no image file"
    except BadRow as bad:
        return b"", bad.kind
    return image, ""
