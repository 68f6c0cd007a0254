"""What a client sees of a running episode, as it happens. Pure.

Promise: a stream is Started, then any number of Reason, Search and Results (each Search followed by its Results), then
Answer or Failed, then Finished. Two streams are shorter: a request that is not an episode (bad picture, bad question) and one
that the server breaks off are Failed as their last event. Every event is one JSON object whose `event` names its type.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mmsr_ray.types import ToolKind


@dataclass(frozen=True, slots=True)
class Event:
    def as_json(self) -> dict[str, Any]:
        """{"event": "started" | "reason" | "search" | "results" | "answer" | "failed" | "finished", and the fields}."""
        return {"event": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The question was accepted and the model or the first search was asked."""

    id: str
    workflow: str  # on_demand | direct | rag


@dataclass(frozen=True, slots=True)
class Reason(Event):
    """What the model wrote between its reason tags."""

    text: str


@dataclass(frozen=True, slots=True)
class Search(Event):
    """`query` is empty for an image search: the picture is what is searched for."""

    kind: ToolKind
    query: str


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. `thumbnail` is a data URL ("" for text), `summary` the page's summary ("" for pictures)."""

    title: str
    url: str
    thumbnail: str = ""
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Results(Event):
    """`failure` is "" or the name of a `ToolFailure`; then there are no hits."""

    kind: ToolKind
    hits: tuple[Hit, ...]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Answer(Event):
    text: str


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """`code` names one of `errors.ERRORS`; `message` is written for the client."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The books of the episode. Tokens: `completion_tokens` the model sampled, `prompt_tokens` all others of its context."""

    outcome: str  # ok | policy_error | infra_error
    prompt_tokens: int
    completion_tokens: int
    searches: int
    seconds: float
    cost_usd: float  # of searches, as their services charge
    weight_version: int  # of the last token; -1 where none was sampled
