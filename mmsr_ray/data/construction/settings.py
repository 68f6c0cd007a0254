"""Settings of the construction of a data set (spec §5.3). The numbers of the paper are the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmsr_ray.data.construction.balance_settings import BalanceConfig
from mmsr_ray.data.construction.balance_settings import complaint as balance_complaint


@dataclass
class ConstructionConfig:
    """Paths of files that are left empty leave their part of the pipeline out."""

    # visual concepts
    concepts: str = ""  # one name a line, or JSON: a list of names, or an object name -> count (MetaCLIP's metadata, with counts)
    concept_counts: str = ""  # JSON list of counts, in the order of a plain `concepts`; without counts there is no head and no tail
    head_share: float = 0.1  # of the entries, the most frequent of which are the head; the others are the tail
    head: int = 5_000  # concepts sampled from the head; 0 and 0: all concepts
    tail: int = 5_000
    pictures_per_concept: int = 1
    questions_per_picture: int = 1
    # questions by a model
    question_tries: int = 3  # requests for one picture, each told what was wrong with the last
    max_answer_words: int = 8
    page_chars: int = 12_000  # of a page, as shown to the model
    # questions of others
    textual: str = ""  # parquet in the FVQA schema: questions that need knowledge of text, as InfoSeek's
    manual: str = ""  # CSV: image (path, relative to the CSV), question, answer, aliases (separated by |)
    # taxonomy and sampling over it
    visual_questions: int = 6_000  # 0: all
    textual_questions: int = 7_000  # 0: all
    # near-duplicates and leakage
    picture_bits: int = 6  # two pictures whose 64-bit hashes differ in at most so many are the same
    question_likeness: float = 0.8  # Jaccard similarity of word shingles from which two questions about like pictures are the same
    test_sets: list[str] = field(default_factory=list)  # parquet files in the FVQA schema that the new set must not give away
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    # work
    in_flight: int = 32  # candidates that one worker has under way at once
    workers: int = 2  # Ray Data actors


def complaint(config: ConstructionConfig) -> str:
    """What is impossible about these settings, and the remedy; "" when nothing is."""
    c = config
    if not 0 < c.head_share < 1:
        return f"construction.head_share={c.head_share}: choose a share of the concepts between 0 and 1"
    if min(c.head, c.tail, c.visual_questions, c.textual_questions) < 0:
        return "construction.head, tail, visual_questions and textual_questions must be 0 (all) or more"
    if min(c.pictures_per_concept, c.questions_per_picture, c.question_tries, c.max_answer_words, c.in_flight, c.workers) < 1:
        return (
            "construction.pictures_per_concept, questions_per_picture, question_tries, max_answer_words, in_flight and workers "
            "must be at least 1"
        )
    if c.page_chars < 200:
        return f"construction.page_chars={c.page_chars}: a question needs more of its page, at least 200"
    if not 0 <= c.picture_bits <= 15:
        return f"construction.picture_bits={c.picture_bits}: choose 0 (equal) to 15; beyond that, different pictures are alike"
    if not 0 < c.question_likeness <= 1:
        return f"construction.question_likeness={c.question_likeness}: choose a value above 0 and at most 1"
    return balance_complaint(c.balance)
