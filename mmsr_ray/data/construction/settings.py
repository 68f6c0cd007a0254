"""Settings of the construction of a data set (spec §5.3). The numbers of the paper are the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmsr_ray.data.construction.balance_settings import BalanceConfig
from mmsr_ray.data.construction.balance_settings import complaint as balance_complaint

CATEGORIES = [  # spec §5.4
    "Arts: games", "Arts: movies", "Arts: comics",
    "Places: regions", "Places: countries", "Places: landmarks",
    "People: modern figures", "People: historical figures",
    "Industry: technologies", "Industry: products",
    "Science: disciplines", "Science: concepts",
    "Nature: plants", "Nature: animals",
    "Entities: brands", "Entities: companies", "Entities: groups",
    "Events: historical events", "Events: news",
]  # fmt: skip


STAGES = ("concepts", "pictures", "questions", "joined", "distinct", "classified", "sampled", "labelled", "mixed")


@dataclass
class ConstructionConfig:
    """Paths of files that are left empty leave their part of the pipeline out."""

    # visual concepts
    concepts: str = ""  # one name a line, or JSON: a list of names (MetaCLIP's metadata), or an object name -> count
    concept_counts: str = ""  # JSON: an object name -> count (MetaCLIP's), or a list; without counts there is no head and no tail
    head_share: float = 0.1  # of the entries, the most frequent of which are the head; the others are the tail
    head: int = 5_000  # concepts sampled from the head; 0 and 0: all concepts
    tail: int = 5_000
    pictures_per_concept: int = 1
    questions_per_picture: int = 1
    # questions by a model
    question_tries: int = 3  # requests for one picture, each told what was wrong with the last
    structured_output: bool = True  # the model's service takes a JSON schema as response_format; without, the prompt alone asks for it
    max_answer_words: int = 8
    page_chars: int = 12_000  # of a page, as shown to the model
    # questions of others
    textual: str = ""  # parquet in the FVQA schema: questions that need knowledge of text, as InfoSeek's
    textual_pool: int = 20_000  # so many of them, drawn by lot, are classified at most; 0: all
    manual: str = ""  # CSV: image (path, relative to the CSV), question, answer, aliases (separated by |)
    # taxonomy and sampling over it
    categories: list[str] = field(default_factory=lambda: list(CATEGORIES))
    visual_questions: int = 6_000  # 0: all
    textual_questions: int = 7_000  # 0: all
    # near-duplicates and leakage
    picture_bits: int = 12  # two pictures whose hashes of 192 bits differ in at most so many are the same
    question_likeness: float = 0.8  # Jaccard similarity of word shingles from which two questions about like pictures are the same
    test_sets: list[str] = field(default_factory=list)  # parquet, FVQA schema or stage files, that the new set must not give away
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    review: bool = False  # by people, after balancing: the set is written once their decisions are there
    until: str = ""  # name of the last stage to make, to look at what there is before more is paid for; "": all
    # work
    workers: int = 2  # Ray Data actors; each has the candidates of one row group under way at once
    failure_rate: float = 0.1  # a stage that loses a larger share of its candidates to services that fail is stopped


def complaint(config: ConstructionConfig) -> str:
    """What is impossible about these settings, and the remedy; "" when nothing is."""
    c = config
    if not 0 < c.head_share < 1:
        return f"construction.head_share={c.head_share}: choose a share of the concepts between 0 and 1"
    if min(c.head, c.tail, c.visual_questions, c.textual_questions, c.textual_pool) < 0:
        return "construction.head, tail, visual_questions, textual_questions and textual_pool must be 0 (all) or more"
    if min(c.pictures_per_concept, c.questions_per_picture, c.question_tries, c.max_answer_words, c.workers) < 1:
        return "construction.pictures_per_concept, questions_per_picture, question_tries, max_answer_words and workers must be at least 1"
    if c.page_chars < 200:
        return f"construction.page_chars={c.page_chars}: a question needs more of its page, at least 200"
    if not c.categories or len({name.casefold() for name in c.categories}) < len(c.categories):
        return "construction.categories must name at least one category, each once"
    if not 0 <= c.picture_bits <= 24:
        return f"construction.picture_bits={c.picture_bits}: choose 0 (equal) to 24; beyond that, different pictures are alike"
    if c.until not in ("", *STAGES):
        return f"construction.until={c.until!r}: choose one of {', '.join(STAGES)}, or leave it empty for all"
    if not 0 <= c.failure_rate < 1:
        return f"construction.failure_rate={c.failure_rate}: choose a share from 0 to below 1"
    if not 0 < c.question_likeness <= 1:
        return f"construction.question_likeness={c.question_likeness}: choose a value above 0 and at most 1"
    return balance_complaint(c.balance)
