"""The README.md of a built set: what it is, how it was made, what is in it, whom to credit. Pure but for the writing.

Promise: no paths, addresses or keys of the machine that built it: of the settings only numbers are told. What services on the web
said about pictures (sites, licences) is shown as text and cannot become markup.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from mmsr_ray.data.construction.settings import ConstructionConfig
from mmsr_ray.data.construction.statistics import Statistics, counts_of, mean, most_frequent

TAGS = ["mmsr-ray", "multimodal-search", "search-balanced", "fvqa"]
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
MOST = 25  # values in a table; the others are one line
METHOD = "[MMSearch-R1](https://arxiv.org/abs/2506.20670)"


@dataclass(frozen=True)
class About:
    """What a card says beyond counts. `name` is a short name for `data_source`; names of models and services are shown as given."""

    name: str
    construction: ConstructionConfig
    title: str = ""
    licence: str = ""  # of the set, as the hub abbreviates it; "": not chosen yet
    languages: Sequence[str] = ("en",)
    made_with: Mapping[str, str] = field(default_factory=dict)  # such as "questions written by" -> a model's name
    stages: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # stage -> candidates by status


def write_card(path: Path, splits: Mapping[str, Statistics], figures: Mapping[str, Path], about: About) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(card(splits, {title: file.relative_to(path.parent).as_posix() for title, file in figures.items()}, about))
    partial.replace(path)


def card(splits: Mapping[str, Statistics], figures: Mapping[str, str], about: About) -> str:
    """The text, front matter first. `figures`: title -> address relative to the card."""
    parts = [
        f"---\n{_front_matter(splits, about)}\n---",
        f"# {about.title or about.name}",
        _what(splits),
        _counts("Search", "category", splits),
        _counts("What a question needs", "need", splits),
        _counts("Knowledge categories", "taxonomy", splits),
        _counts("Where questions come from", "origin", splits),
        _lengths(splits),
        _columns(),
        _made(about),
        _settings(about.construction),
        _counts("Sites of the pictures", "source", splits),
        _counts("Licences of the pictures, as the search service told them", "licence", splits),
        _counts("Review", "review", splits),
        *(f"![{title}]({address})" for title, address in figures.items()),
        _licence(about),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(splits: Mapping[str, Statistics], about: About) -> str:
    total = sum(statistics.questions for statistics in splits.values())
    files = [{"split": split, "path": f"{split}.parquet"} for split in splits]
    return DatasetCardData(
        language=list(about.languages),
        license=about.licence or None,
        pretty_name=about.title or about.name,
        task_categories=["visual-question-answering"],
        size_categories=[next((name for limit, name in SIZES if total < limit), "n>10M")],
        tags=TAGS,
        configs=[{"config_name": "default", "data_files": files}],
    ).to_yaml()


def _what(splits: Mapping[str, Statistics]) -> str:
    sizes = " and ".join(f"{statistics.questions:,} for {split}" for split, statistics in splits.items())
    return (
        f"Factual questions about pictures, {sizes}, built by the method of {METHOD} with mmsr-ray. Each is labelled with what a policy needed "
        "to answer it: nothing, a search of the picture, a search of the web, or both, so that a model can learn when to search."
    )


def _counts(title: str, name: str, splits: Mapping[str, Statistics]) -> str:
    """A table of one kind of values, the frequent ones first."""
    counters: list[Counter[str]] = [getattr(statistics, name) for statistics in splits.values()]
    names = most_frequent(counters, MOST)
    columns = [counts_of(names, counts) for counts in counters]
    rows = [[value, *(f"{count:,}" for count in row)] for value, *row in zip(names, *columns, strict=True)]
    return f"## {title}\n\n{_table(['', *splits], rows)}" if rows else ""


def _lengths(splits: Mapping[str, Statistics]) -> str:
    rows = [[split, f"{mean(s.question_words):.1f}", f"{mean(s.answer_words):.1f}"] for split, s in splits.items()]
    return f"## Lengths\n\n{_table(['', 'words of a question, mean', 'words of an answer, mean'], rows)}"


def _columns() -> str:
    return """## Files

`<split>.parquet` has the columns of FVQA: `prompt` (the question), `images` (one picture), `reward_model` (`ground_truth`,
`candidate_answers` as JSON), `data_source`, `image_urls`, `data_id`, `category` (`search_free` or `search_required`), and one more: `need`
(`search_free`, `image_required`, `text_required`, `mix_required`). `provenance.parquet` has, by `data_id`, where picture and page lie, who
shows them under which licence, the knowledge category, and the share of rollouts that support the label (`confidence`)."""


def _made(about: About) -> str:
    lines = [f"- {name}: {_text(value)}" for name, value in about.made_with.items()]
    rows = [[stage, counts.get("kept", 0), _reasons(counts)] for stage, counts in about.stages.items()]
    table = _table(["stage", "kept", "dropped"], rows) if rows else ""
    body = "\n\n".join(part for part in ("\n".join(lines), table) if part)
    return f"## How it was made\n\n{body}" if body else ""


def _reasons(counts: Mapping[str, int]) -> str:
    dropped = sorted(((reason, count) for reason, count in counts.items() if reason != "kept"), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{reason}: {count:,}" for reason, count in dropped)


def _settings(construction: ConstructionConfig) -> str:
    rows = [[name, f"{value:g}" if isinstance(value, float) else value] for name, value in _numbers(asdict(construction))]
    return f"## Settings of the construction\n\n{_table(['', ''], rows)}"


def _numbers(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float | int | bool]]:
    """A text among settings may be a path or an address: only numbers are told."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", value


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_text(str(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    """Text of others inside a line of Markdown."""
    escaped = html.escape(" ".join(value.split()), quote=False)
    for mark in "\\`|[]*":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped


def _licence(about: About) -> str:
    return "" if about.licence else "## Licence\n\nNot chosen yet. It has to be one that the pictures and pages allow."
