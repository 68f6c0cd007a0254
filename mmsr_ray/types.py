"""The values that travel between the rooms. Plain dataclasses: no Ray, no torch, no model library.

Data flows one way: Sample -> Trajectory (turns, sealed tokens) -> reward -> Group -> learner. Everything here is
picklable and cheap to import. Bulk (token arrays, pictures) lives in `SealedTokens` and `Picture`, which travel by
object reference; `TrajectorySummary` is all the driver ever sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np


class Need(StrEnum):
    """What a question needs before it can be answered (spec §5.3 step 7)."""

    SEARCH_FREE = "search_free"
    IMAGE = "image_required"
    TEXT = "text_required"
    MIX = "mix_required"

    @property
    def searches(self) -> int:
        """Number of search calls that are needed and enough."""
        return {Need.SEARCH_FREE: 0, Need.IMAGE: 1, Need.TEXT: 1, Need.MIX: 2}[self]


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one picture. `uid` is unique in its data set; `answers[0]` is the gold answer."""

    uid: str
    question: str
    image: bytes  # encoded picture (PNG, JPEG, WebP)
    answers: tuple[str, ...]
    source: str = ""
    image_url: str | None = None
    need: Need | None = None  # known for Atlas and for balanced sets, None elsewhere
    category: str | None = None  # the data set's own label (FVQA: search_free | search_required)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A prompt on its way to a rollout runner.

    `sample` holds one element: a Ray ObjectRef to the Sample, or the Sample itself. In a list, the reference travels
    in-band: Ray counts it, and the process that passes the ticket on never fetches the picture.
    """

    uid: str
    epoch: int
    rank: int  # position in the epoch's order
    sample: list[Any]


# ---------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class ImageSearch:
    """Reverse search of the user's picture."""


@dataclass(frozen=True, slots=True)
class TextSearch:
    query: str


@dataclass(frozen=True, slots=True)
class Answer:
    text: str


@dataclass(frozen=True, slots=True)
class Malformed:
    why: str


Action = ImageSearch | TextSearch | Answer | Malformed


# ---------------------------------------------------------------------------------------------------- tools


class ToolKind(StrEnum):
    IMAGE = "image"
    TEXT = "text"
    JUDGE = "judge"  # of the reward, not of the agent
    MODEL = "model"  # a chat service that plays the agent
    FINDER = "finder"  # pictures by words, where data sets are built
    PAGE = "page"  # one page's text, there too


class ToolFailure(StrEnum):
    """Why a tool call has no result. `infra` failures are never trained on as reward 0."""

    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"  # connection refused, 5xx, breaker open, actor died
    BAD_RESPONSE = "bad_response"  # garbage JSON, wrong shape
    REJECTED = "rejected"  # 4xx: bad key, bad request
    BUDGET = "budget"  # the money that tools.budget_usd allows is spent: nothing was asked
    TAPE_MISS = "tape_miss"  # a replay was asked for what its tape does not hold: the run has to end
    NO_RESULTS = "no_results"  # the provider answered: nothing found. The policy's affair, not infrastructure

    @property
    def infra(self) -> bool:
        return self is not ToolFailure.NO_RESULTS


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture and the hash of its bytes (hex sha256). The hash is its identity in every cache."""

    data: bytes
    sha: str


@dataclass(frozen=True, slots=True)
class ImageHit:
    title: str
    thumbnail: Picture
    url: str = ""


@dataclass(frozen=True, slots=True)
class FoundPicture(ImageHit):
    """A picture that was looked for by words: `thumbnail` is large, `url` the page that shows it. Licence and source as the service tells."""

    picture_url: str = ""
    source: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class TextHit:
    url: str
    summary: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """Typed result of one tool call; `hits` is empty exactly when `failure` is set."""

    kind: ToolKind
    query: str  # the text query, or the picture's sha
    hits: tuple[ImageHit, ...] | tuple[TextHit, ...] = ()
    failure: ToolFailure | None = None
    detail: str = ""  # for logs and reports, never for the model
    seconds: float = 0.0
    cached: bool = False
    attempts: int = 1
    cost_usd: float = 0.0
    partial: bool = False  # fewer hits than wanted, though there was more to try: time or luck ran out

    @property
    def ok(self) -> bool:
        return self.failure is None


# ---------------------------------------------------------------------------------------------------- generation


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one model turn is sampled. Training rollouts use neither top-p nor top-k: both bias the log-probs."""

    temperature: float = 1.0
    max_tokens: int = 2048
    seed: int | None = None
    logprobs: bool = True  # of the sampled tokens; only what is learned from needs them, and they cost an engine time


@dataclass(frozen=True, slots=True)
class Generation:
    """One model turn as sampled.

    `token_ids`, `logprobs` and `versions` have equal length; log-probs are natural, under the sampling temperature,
    by the weights of the version beside them, and None where `Sampling.logprobs` asked for none. `stopped` is False when the turn hit its token limit.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    versions: list[int]
    stopped: bool
    seconds: float = 0.0


# ---------------------------------------------------------------------------------------------------- trajectories


class Outcome(StrEnum):
    OK = "ok"  # ended in a well-formed answer
    POLICY_ERROR = "policy_error"  # malformed, over budget or too long: earns what the reward says
    INFRA_ERROR = "infra_error"  # tool or engine broke past its retries: never trained on


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn: its decoded text (special tokens removed), what it asked for and what came back."""

    text: str
    action: Action
    tokens: int
    stopped: bool
    tool: ToolResult | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SealedTokens:
    """The learner's view of a transcript: expanded (every image pad present), validated, immutable.

    L tokens, N pictures in order of appearance.
    """

    ids: np.ndarray  # int32 [L]
    loss_mask: np.ndarray  # bool [L], True exactly on sampled tokens
    logprobs: np.ndarray | None  # float32 [L], rollout log-prob of the token at that index; 0 where loss_mask is False. None: not learnable
    versions: np.ndarray  # int32 [L], weight version that sampled the token; -1 where loss_mask is False
    grids: np.ndarray  # int32 [N, 3], (t, h, w) in patches
    pictures: tuple[Picture, ...]  # as the model sees them (resized, RGB, PNG), one per grid

    @property
    def length(self) -> int:
        return int(self.ids.shape[0])

    @property
    def patches(self) -> int:
        """Patches of all pictures."""
        return int(self.grids.prod(axis=1).sum())


@dataclass(frozen=True, slots=True)
class Reward:
    """Parts of spec §3.1. `total` is what the learner sees, `correct` what filters and metrics see."""

    total: float
    correct: bool
    well_formed: bool
    searches_counted: int  # as the penalty counts them (spec §3.5)


@dataclass(frozen=True, slots=True)
class Trajectory:
    uid: str
    index: int  # which rollout of its group
    workflow: str
    question: str
    turns: tuple[Turn, ...]
    outcome: Outcome
    detail: str  # why, when the outcome is not OK
    answer: str | None
    tokens: SealedTokens
    reward: Reward | None = None
    verdict: ToolResult | None = None  # of the judge of its answer, where one was asked
    generate_seconds: float = 0.0
    tool_seconds: float = 0.0
    replies: tuple[ToolResult, ...] = ()  # of the chat service that played the policy, where none of our engines did

    def calls(self, kind: ToolKind) -> int:
        """Executed calls of a tool."""
        return sum(1 for t in self.turns if t.tool is not None and t.tool.kind is kind)

    @property
    def out_of_money(self) -> bool:
        """A search, a verdict or a turn was refused because the budget is spent; another attempt would be refused too."""
        return any(result.failure is ToolFailure.BUDGET for result in self.paid_calls)

    @property
    def paid_calls(self) -> list[ToolResult]:
        """Executed searches, the judge's verdict, and the turns that a chat service gave."""
        return [*(t.tool for t in self.turns if t.tool is not None), *([self.verdict] if self.verdict else []), *self.replies]


@dataclass(frozen=True, slots=True)
class TrajectorySummary:
    """What the driver sees of a trajectory: numbers, no arrays."""

    uid: str
    index: int
    outcome: Outcome
    detail: str
    reward: float
    correct: bool
    well_formed: bool
    image_searches: int
    text_searches: int
    tool_failures: int
    turns: int
    length: int  # expanded tokens
    sampled_tokens: int
    pictures: int
    version_min: int
    version_max: int
    generate_seconds: float
    tool_seconds: float
    cost_usd: float
    need: Need | None = None
    source: str = ""
    out_of_money: bool = False  # ended by ToolFailure.BUDGET
    patches: int = 0  # of all pictures, as the vision tower takes them
    category: str | None = None
    em: bool = False  # exact match, whoever decides `correct`
    subem: bool = False
    judged: bool | None = None  # the judge's verdict; None where none was given
    image_failures: int = 0  # calls without an answer of the service
    text_failures: int = 0
    image_no_results: int = 0  # calls to which the service answered that it found nothing
    text_no_results: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt, in order of `index`. Lives in the object store."""

    uid: str
    epoch: int
    sample: Sample
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True)
class GroupSummary:
    uid: str
    epoch: int
    trajectories: tuple[TrajectorySummary, ...]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def out_of_money(self) -> bool:
        """A search of one of its rollouts was refused because the budget is spent."""
        return "out_of_money" in self.metrics
