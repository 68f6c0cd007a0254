"""Skills inside the RAG workflow that Atlas can tell apart because it knows every page: writing the query, reading the result.

Promise: pure arithmetic over stored episodes; an episode that infrastructure broke counts nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from mmsr_ray.atlas.world import Question, World
from mmsr_ray.evaluation.trajectories import StoredTrajectory
from mmsr_ray.rewards.match import exact_match, sub_match
from mmsr_ray.types import Outcome


def told(world: World, question: Question) -> str:
    """The answer as the web tells it, which is wrong for some known entities (`world.MISTAKEN`)."""
    return question.entity.name if question.fact == "name" else world.told(question.entity)[question.fact]


def rag_skills(world: World, questions: dict[str, Question], episodes: Iterable[StoredTrajectory]) -> dict[str, float]:
    """Shares in [0, 1] over the episodes of the RAG workflow, one a question; `questions` by uid.

    - "finds the page": the text search returned a page of the entity in the picture;
    - "says what it says": of those, the answer is what that page says, right or wrong;
    - "right in substance": the answer contains the right one, in whatever form: what a judge that reads would accept;
    - "most": what the web says is right: no reader can be right more often.
    Raises ValueError without episodes.
    """
    whole = [episode for episode in episodes if episode.outcome != Outcome.INFRA_ERROR]
    if not whole:
        raise ValueError("no episode to judge")
    found = [episode for episode in whole if _finds(questions[episode.uid], episode)]
    said = [e for e in found if e.answer is not None and exact_match(e.answer, (told(world, questions[e.uid]),))]
    contained = [episode for episode in whole if sub_match(episode.answer or "", episode.answers)]
    right = [episode for episode in whole if told(world, questions[episode.uid]) == questions[episode.uid].answer]
    return {
        "finds the page": len(found) / len(whole),
        "says what it says": len(said) / len(found) if found else 0.0,
        "right in substance": len(contained) / len(whole),
        "most": len(right) / len(whole),
    }


def _finds(question: Question, episode: StoredTrajectory) -> bool:
    slug = question.entity.slug
    return any(hit.url.rsplit("/", 1)[-1] == slug for turn in episode.turns if turn.tool == "text" for hit in turn.hits)
