"""Which column of a file says what.

Promise: a layout either fits a file or says in one sentence which column is missing; a row that fits becomes `Fields` by the one
parser of the FVQA schema (`data.schema.parse_row`), so that bad rows have the same kinds everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmsr_ray.config import DataConfig
from mmsr_ray.data.schema import OPTIONAL, REQUIRED, DataError, Fields, parse_row

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Names of columns; "" where a set has none. A list of answers has the expected one first.

    `only` keeps rows whose column holds one of the values, `needs_picture` leaves questions without a picture out: parts of a set
    that are not meant, and no bad rows. `folders` beside the file hold pictures whose stored path is of another machine.
    """

    question: str
    answer: str
    picture: str
    uid: str = ""
    also: str = ""  # other accepted answers: a list, JSON of one, or one
    category: str = ""
    need: str = ""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs_picture: bool = False
    folders: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        return (self.question, self.answer, self.picture, *self.only)

    def columns(self, there: Collection[str]) -> list[str]:
        """What of a file's columns is read with every row; pictures are not."""
        wanted = (self.question, self.answer, self.uid, self.also, self.category, self.need, *self.only)
        return [name for name in dict.fromkeys(wanted) if name and name in there]

    def meant(self, cells: Mapping[str, Any], has_picture: bool) -> str:
        """ "" for a row of the part that is meant, else why it is left out."""
        for column, values in self.only.items():
            if str(cells.get(column) or "").strip() not in values:
                return f"{column} is not {values[0]}"
        return "no picture: a text-only question" if self.needs_picture and not has_picture else ""

    def fields(self, cells: Mapping[str, Any], uid: str, config: DataConfig, source: str) -> Fields:
        """Raises BadRow."""
        answers = cells[self.answer] if isinstance(cells[self.answer], list) else [cells[self.answer]]
        given = [answer for answer in answers if answer is not None and str(answer).strip()]
        also = cells.get(self.also)
        others = also if isinstance(also, list) or (isinstance(also, str) and also.lstrip().startswith("[")) else [also]
        row = {
            "prompt": cells[self.question],
            "reward_model": {"ground_truth": given[0] if given else None, "candidate_answers": given[1:] or others},
            "data_source": source,
            "category": cells.get(self.category),
            "need": cells.get(self.need),
        }
        return parse_row(row, uid, config)


class FvqaLayout(Layout):
    """The schema of FVQA itself (`data.schema`), in which InfoSeek's subset is distributed too."""

    def __init__(self) -> None:
        super().__init__(question="prompt", answer="reward_model", picture="images", uid="data_id")

    @property
    def required(self) -> tuple[str, ...]:
        return REQUIRED

    def columns(self, there: Collection[str]) -> list[str]:
        return [name for name in (*REQUIRED, *OPTIONAL) if name in there and name != self.picture]

    def fields(self, cells: Mapping[str, Any], uid: str, config: DataConfig, source: str) -> Fields:
        return parse_row({**cells, "data_source": cells.get("data_source") or source}, uid, config)


FVQA = FvqaLayout()

KNOWN = {
    "question": ("question", "query", "problem", "prompt"),
    "answer": ("answer", "answers", "gt_answer", "ground_truth", "gold_answer", "gold", "target"),
    "picture": ("image", "images", "picture", "image_path", "picture_path", "image_file", "file_name", "query_image", "image_url", "img"),
    "uid": ("uid", "id", "data_id", "question_id", "sample_id"),
    "also": ("candidate_answers", "alternative_answers", "alternative_gt_answers", "aliases", "also_accepted"),
    "category": ("category", "kind", "type"),
    "need": ("need",),
}
"""Names of columns that a user's own file may have, whatever their case; of several the first one here is read."""


def fitting(layouts: Sequence[Layout], columns: Collection[str], name: str, file: str) -> Layout:
    """The first layout whose columns are all there. Raises DataError that says what the first one misses."""
    for layout in layouts:
        if not _missing(layout, columns):
            return layout
    raise DataError(
        f"{file} is not in the schema of {name}: it has no column {', '.join(_missing(layouts[0], columns))} (it has "
        f"{', '.join(sorted(columns)) or 'no columns'}); name the released file, or bring it to the FVQA schema"
    )


def recognise(columns: Sequence[str], file: str) -> Layout:
    """The layout of a user's own file, told in one sentence of the log. Raises DataError where a role has no column."""
    if not _missing(FVQA, columns):
        logger.info("%s has the FVQA schema", file)
        return FVQA
    lower = {name.lower(): name for name in reversed(columns)}
    found = {role: next((lower[name] for name in names if name in lower), "") for role, names in KNOWN.items()}
    has = f"(it has {', '.join(columns) or 'no columns'})"
    for role in ("question", "answer"):
        if not found[role]:
            raise DataError(f"{file} has no column with the {role} {has}: call it {role}")
    if not found["picture"]:
        raise DataError(
            f"{file} has no column with pictures {has}: every question here is about a picture, text-only sets cannot be asked; add a "
            "column image with the picture itself or with its path relative to the file"
        )
    ignored = [name for name in columns if name not in found.values()]
    understood = ", ".join(f"{role} from {name}" for role, name in found.items() if name)
    logger.info("%s: %s%s", file, understood, f"; not read: {', '.join(ignored)}" if ignored else "")
    return Layout(
        found["question"],
        found["answer"],
        found["picture"],
        uid=found["uid"],
        also=found["also"],
        category=found["category"],
        need=found["need"],
    )


def _missing(layout: Layout, columns: Collection[str]) -> list[str]:
    return [name for name in layout.required if name not in columns]
