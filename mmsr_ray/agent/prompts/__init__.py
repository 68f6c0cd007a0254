"""The words the agent is prompted with: plain text files in a folder, one set per folder.

Promise: a loaded `PromptSet` is complete, and each template holds exactly the slots its place needs. Foreign text is
put into slots as `Foreign` pieces and never parsed, so braces or tags inside it mean nothing. `standard/` carries the
wire shapes of spec §1.4 and §1.5; `brief/` is the same protocol in a few words, for a tiny policy.

One trailing newline of each file is dropped. Slots are `{question}`, `{results}`, `{followup}`, `{i}`, `{title}`,
`{url}`, `{summary}` and `<image>`; other braces are literal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsr_ray.agent.pieces import Foreign, Own, Piece, SizedPicture

_SLOT = re.compile(r"\{(question|results|followup|i|title|url|summary)\}|(<image>)")

# file -> (slots it must hold once, slots it may hold once)
_FILES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(required.split()), frozenset(optional.split()))
    for name, required, optional in (
        ("round_1", "image question", ""),
        ("after_image_search", "", ""),
        ("after_text_search", "", ""),
        ("observation", "results followup", "question"),
        ("image_results_header", "", ""),
        ("text_results_header", "", ""),
        ("image_hit", "image title", "i"),
        ("text_hit", "summary", "i url title"),
        ("image_no_results", "", ""),
        ("text_no_results", "", ""),
        ("direct", "image question", ""),
        ("rag_query", "image question results", ""),
        ("rag_answer", "question results", ""),
    )
}


class PromptError(ValueError):
    """A prompt set that is missing or has the wrong slots; the message names the file."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed prompt file: literal texts and slot names in turn."""

    parts: tuple[tuple[str, str], ...]  # ("text", literal) or ("slot", name)

    @classmethod
    def parse(cls, text: str) -> Template:
        parts: list[tuple[str, str]] = []
        at = 0
        for match in _SLOT.finditer(text):
            parts.append(("text", text[at : match.start()]))
            parts.append(("slot", match.group(1) or "image"))
            at = match.end()
        parts.append(("text", text[at:]))
        return cls(tuple(part for part in parts if part[1]))

    @property
    def slots(self) -> list[str]:
        return [value for kind, value in self.parts if kind == "slot"]

    def fill(self, values: Mapping[str, Sequence[Piece]] | None = None) -> list[Piece]:
        """The pieces of this template with `values` in its slots."""
        pieces: list[Piece] = []
        for kind, value in self.parts:
            if kind == "text":
                pieces.append(Own(value))
            else:
                pieces.extend((values or {})[value])
        return pieces


@dataclass(frozen=True, slots=True)
class PromptSet:
    """A complete set of templates by file name, and the messages made from them."""

    name: str
    templates: Mapping[str, Template]

    @classmethod
    def load(cls, name_or_folder: str | Path) -> PromptSet:
        """A set shipped here by its name, or a folder of one's own. Raises PromptError."""
        shipped = Path(__file__).parent / str(name_or_folder)
        folder = shipped if shipped.is_dir() else Path(name_or_folder)
        if not folder.is_dir():
            raise PromptError(f"there is no prompt set {str(name_or_folder)!r}: name one under mmsr_ray/agent/prompts or give a folder")
        templates = {}
        for name, (required, optional) in _FILES.items():
            file = folder / f"{name}.txt"
            if not file.is_file():
                raise PromptError(f"prompt set {folder} lacks {file.name}: copy it from the standard set and change it")
            templates[name] = Template.parse(file.read_text(encoding="utf-8").removesuffix("\n"))
            _check_slots(file, templates[name].slots, required, optional)
        return cls(str(name_or_folder), templates)

    def texts(self) -> list[str]:
        """All literal text of the set, for those who train a tokenizer on it."""
        return [value for template in self.templates.values() for kind, value in template.parts if kind == "text"]

    def round_1(self, question: str, picture: SizedPicture) -> list[Piece]:
        """First message of the on-demand workflow."""
        return self.templates["round_1"].fill({"question": [Foreign(question)], "image": [picture]})

    def direct(self, question: str, picture: SizedPicture) -> list[Piece]:
        """The only message of the direct workflow."""
        return self.templates["direct"].fill({"question": [Foreign(question)], "image": [picture]})

    def rag_query(self, question: str, picture: SizedPicture, results: Sequence[Piece]) -> list[Piece]:
        """First message of the RAG workflow; `results` from `image_results`."""
        return self.templates["rag_query"].fill({"question": [Foreign(question)], "image": [picture], "results": results})

    def rag_answer(self, question: str, results: Sequence[Piece]) -> list[Piece]:
        """Second message of the RAG workflow; `results` from `text_results`."""
        return self.templates["rag_answer"].fill({"question": [Foreign(question)], "results": results})

    def image_observation(self, question: str, results: Sequence[Piece]) -> list[Piece]:
        """Message after an image search; `results` from `image_results`."""
        return self._observation("after_image_search", question, results)

    def text_observation(self, question: str, results: Sequence[Piece]) -> list[Piece]:
        """Message after a text search; `results` from `text_results`."""
        return self._observation("after_text_search", question, results)

    def image_results(self, hits: Sequence[tuple[str, SizedPicture]]) -> list[Piece]:
        """Image-search results (title, thumbnail) in descending relevance; none gives the no-results sentence."""
        filled = [{"title": [Foreign(title)], "image": [thumbnail]} for title, thumbnail in hits]
        return self._results("image", filled)

    def text_results(self, hits: Sequence[tuple[str, str, str]]) -> list[Piece]:
        """Text-search results (url, title, summary) in descending relevance; none gives the no-results sentence."""
        filled = [{"url": [Foreign(url)], "title": [Foreign(title)], "summary": [Foreign(summary)]} for url, title, summary in hits]
        return self._results("text", filled)

    def _observation(self, followup: str, question: str, results: Sequence[Piece]) -> list[Piece]:
        return self.templates["observation"].fill(
            {"results": results, "question": [Foreign(question)], "followup": self.templates[followup].fill()}
        )

    def _results(self, kind: str, hits: Sequence[Mapping[str, Sequence[Piece]]]) -> list[Piece]:
        if not hits:
            return self.templates[f"{kind}_no_results"].fill()
        pieces = self.templates[f"{kind}_results_header"].fill()
        for i, hit in enumerate(hits, start=1):
            if pieces:
                pieces.append(Own("\n"))
            pieces.extend(self.templates[f"{kind}_hit"].fill({"i": [Own(str(i))], **hit}))
        return pieces


def _check_slots(file: Path, slots: list[str], required: frozenset[str], optional: frozenset[str]) -> None:
    shown = {slot: "<image>" if slot == "image" else "{" + slot + "}" for slot in (*slots, *required)}
    for slot in required:
        if slots.count(slot) != 1:
            raise PromptError(f"{file} must hold {shown[slot]} exactly once")
    for slot in slots:
        if slot not in required | optional or slots.count(slot) > 1:
            raise PromptError(f"{file} may not hold {shown[slot]} {'there' if slots.count(slot) == 1 else 'more than once'}")
