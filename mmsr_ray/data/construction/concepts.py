"""The concepts that questions are asked about: read from a list, sampled from its head and its tail (spec §5.3 step 1).

Promise: the sample depends on the names, their counts, the settings and the seed alone; not on the order of the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr_ray.data.construction.candidate import Candidate, Origin, key_of
from mmsr_ray.data.construction.settings import ConstructionConfig
from mmsr_ray.data.schema import DataError

logger = logging.getLogger(__name__)

HEAD, TAIL = "head", "tail"
MAX_CHARS = 200  # of a name; what is longer is no concept


@dataclass(frozen=True, slots=True)
class Concept:
    name: str
    count: int | None = None  # how often the corpus that the list comes from names it


def read_concepts(path: str, counts_path: str = "") -> list[Concept]:
    """The concepts of a file, each name once. Raises DataError.

    The file is text, one name a line, or JSON: a list of names, or an object name -> count. `counts_path` is JSON as MetaCLIP has it:
    an object name -> count, or a list of counts in the order of the names.
    """
    content = _json(path) if path.endswith(".json") else _text(path).splitlines()
    counts = _json(counts_path) if counts_path else (content if isinstance(content, dict) else {})
    names = list(content)
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} is no list of concepts: write names, or an object name -> count (setting construction.concepts)")
    if isinstance(counts, list):
        if len(counts) != len(names):
            raise DataError(f"{counts_path} has {len(counts)} counts for the {len(names)} names of {path}: they must be of one release")
        counts = dict(zip(names, counts, strict=True))
    if not all(isinstance(count, int) for count in counts.values()):
        raise DataError(f"{counts_path or path} has counts that are no whole numbers (setting construction.concept_counts)")
    cleaned: dict[str, Concept] = {}
    for name in names:
        clean = " ".join(name.split())
        if clean and len(clean) <= MAX_CHARS:
            cleaned.setdefault(clean.casefold(), Concept(clean, counts.get(name)))
    if not cleaned:
        raise DataError(f"{path} names no concept: write one name a line (setting construction.concepts)")
    if len(cleaned) < len(names):
        logger.info("%d of %d entries of %s are empty, too long or named twice", len(names) - len(cleaned), len(names), path)
    return list(cleaned.values())


def sample(concepts: Sequence[Concept], config: ConstructionConfig, seed: int) -> Iterator[Candidate]:
    """`head` concepts of the most frequent `head_share`, then `tail` of the others. Without counts: as many of all."""
    wanted = config.head + config.tail
    counted = sorted((c for c in concepts if c.count is not None), key=lambda c: (-(c.count or 0), c.name))
    if not counted:
        yield from (_candidate(c, "") for c in _drawn(concepts, wanted or len(concepts), seed))
        return
    border = max(1, round(len(counted) * config.head_share))
    parts = ((HEAD, counted[:border], config.head), (TAIL, counted[border:], config.tail))
    for rank, part, count in parts:
        yield from (_candidate(c, rank) for c in _drawn(part, count if wanted else len(part), seed))


def _drawn(concepts: Sequence[Concept], count: int, seed: int) -> list[Concept]:
    def lot(concept: Concept) -> bytes:
        return hashlib.blake2b(f"{seed}/{concept.name}".encode(), digest_size=8).digest()

    return sorted(concepts, key=lot)[:count]


def _candidate(concept: Concept, rank: str) -> Candidate:
    return Candidate(key_of(Origin.VISUAL, concept.name), concept=concept.name, rank=rank)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error}): name a text or JSON file of concepts (setting construction.concepts)") from error


def _json(path: str) -> Any:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no JSON ({error}): name a file without .json for a plain list") from error
    if not isinstance(content, list | dict):
        raise DataError(f"{path} holds neither a list nor an object (settings construction.concepts and concept_counts)")
    return content
