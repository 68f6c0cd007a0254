"""The three ways to answer (spec §6.2): on demand, direct, and the fixed RAG workflow.

Promise: a workflow returns the answer or raises `Ended`; it reads like the protocol. Only `on_demand` uses the tag
grammar; the others take the bare text of a turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mmsr_ray.agent.conversation import Conversation, Ended
from mmsr_ray.agent.grammar import parse_turn
from mmsr_ray.config import AgentConfig
from mmsr_ray.types import Action, Answer, ImageSearch, Malformed, Outcome, TextSearch

Workflow = Callable[[Conversation], Awaitable[str]]


async def on_demand(talk: Conversation) -> str:
    """The model decides: search the picture, search the web, or answer, within its budgets."""
    prompts = talk.parts.prompts
    talk.ask(prompts.round_1(talk.question, await talk.picture()))
    while True:
        action = parse_turn(await talk.reply())
        talk.acted(action)
        if isinstance(action, Answer):
            return action.text
        if isinstance(action, Malformed):
            raise Ended(Outcome.POLICY_ERROR, action.why)
        if refusal := _over_budget([turn.action for turn in talk.turns], talk.parts.limits):
            raise Ended(Outcome.POLICY_ERROR, refusal)
        results = await talk.search()
        observation = prompts.image_observation if isinstance(action, ImageSearch) else prompts.text_observation
        talk.tell(observation(talk.question, results))


def _over_budget(actions: list[Action], limits: AgentConfig) -> str:
    """Why the search asked for last may not be done; "" when it may. `actions` are those of all turns so far."""
    images = sum(isinstance(action, ImageSearch) for action in actions)
    texts = sum(isinstance(action, TextSearch) for action in actions)
    if len(actions) >= limits.max_turns:
        return f"searched in the last of {limits.max_turns} turns"
    if images > limits.image_search_limit:
        return f"more than {limits.image_search_limit} image searches"
    if texts > limits.text_search_limit:
        return f"more than {limits.text_search_limit} text searches"
    if images + texts > limits.search_limit:
        return f"more than {limits.search_limit} searches"
    return ""


async def direct(talk: Conversation) -> str:
    """Picture and question, an answer in a few words, no tools."""
    talk.ask(talk.parts.prompts.direct(talk.question, await talk.picture()))
    return _bare_answer(talk, await talk.reply())


async def rag(talk: Conversation) -> str:
    """Image search always, then a bare text query by the model, text search always, then an answer in a few words."""
    prompts = talk.parts.prompts
    picture = await talk.picture()
    talk.admit(prompts.rag_query(talk.question, picture, []))  # an over-long question costs no search
    talk.given(ImageSearch())
    talk.tell(prompts.rag_query(talk.question, picture, await talk.search()))
    query = " ".join((await talk.reply()).split()).strip("\"' ")
    if not query:
        raise Ended(Outcome.POLICY_ERROR, "empty search query")
    talk.acted(TextSearch(query))
    talk.tell(prompts.rag_answer(talk.question, await talk.search()))
    return _bare_answer(talk, await talk.reply())


def _bare_answer(talk: Conversation, text: str) -> str:
    answer = text.strip()
    if not answer:
        raise Ended(Outcome.POLICY_ERROR, "empty answer")
    talk.acted(Answer(answer))
    return answer


WORKFLOWS: dict[str, Workflow] = {"on_demand": on_demand, "direct": direct, "rag": rag}
