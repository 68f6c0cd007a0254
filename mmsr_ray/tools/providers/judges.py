"""Judges of answers: a case in, a verdict out (`rewards.judge`)."""

from __future__ import annotations

import json

from mmsr_ray.config import ProviderConfig
from mmsr_ray.rewards import judge
from mmsr_ray.rewards.judge import Case
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.providers.base import Provider, Summary
from mmsr_ray.tools.providers.chat import ChatService, inert, without_thoughts
from mmsr_ray.types import ToolFailure


class ChatJudge(ChatService):
    """Any OpenAI-compatible service."""

    role = "judge"
    about = "case"

    def __init__(self, config: ProviderConfig, http: Http, key: str) -> None:
        super().__init__(config, http, key)
        self.identity += f"|{judge.VERSION}"

    async def decide(self, case: Case) -> Summary:
        """JSON of [right, reason]. Raises BAD_RESPONSE for an output without exactly one verdict."""
        answer = await self.complete(judge.messages(case, inert), max_tokens=judge.MAX_TOKENS, top_p=judge.TOP_P)
        verdict = judge.read_verdict(without_thoughts(answer.text))
        if verdict is None:
            why = f"{judge.MAX_TOKENS} tokens went into thoughts" if answer.cut else "no verdict, or more than one"
            raise ProviderError(ToolFailure.BAD_RESPONSE, f"{self._service}: {why}", retry=not answer.cut)
        return Summary(json.dumps(verdict), answer.usage)


class NoJudge(Provider):
    """Rules alone decide."""

    needs_url = False
    remote = False
    key_required = False

    async def decide(self, case: Case) -> Summary:
        raise ProviderError(ToolFailure.REJECTED, "there is no judge: set tools.judge.kind=chat", retry=False)
