"""One request to an OpenAI-compatible chat service: what its answer says, what it counted, and how it refuses.

Promise: `complete` gives text or raises ProviderError, `ask` lets a refusal of the model through as an answer; an account that is
refused is told apart from a request that is. A service that takes no `max_tokens` or no `temperature` says so once: the
request is sent again, and from then on all go without.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools.errors import AccountError, ProviderError
from mmsr_ray.tools.http import Http, public
from mmsr_ray.tools.providers.base import Provider, Usage
from mmsr_ray.types import ToolFailure

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    text: str  # as sent, thoughts included
    cut: bool  # it hit the limit of tokens
    usage: Usage
    refused: bool = False  # the model, or a filter before it, would not


class ChatService(Provider):
    """`url` ends in /v1, or names .../chat/completions itself."""

    role: ClassVar[str]  # the service's name in the config and in messages
    about: ClassVar[str]  # what a request shows to the model

    def __init__(self, config: ProviderConfig, http: Http, key: str) -> None:
        super().__init__(config, http, key)
        root = config.url.rstrip("/")
        self._url = root if root.endswith("/chat/completions") else f"{root}/chat/completions"
        self._service = f"{self.role} {public(self._url)}"
        self._limit = "max_tokens"  # what the service calls it
        self._takes_temperature = True

    async def probe(self, timeout: float) -> str:
        """By GET /models, which is free."""
        if not self._key:
            return await super().probe(timeout)
        models = f"{self._url.removesuffix('/chat/completions')}/models"
        return (await self._probe_key(models, timeout, headers={"Authorization": f"Bearer {self._key}"}))[0]

    async def complete(self, messages: Sequence[dict[str, Any]], *, max_tokens: int, **more: Any) -> Message:
        """As `ask`; where the model refused it raises a BAD_RESPONSE that is not retried."""
        answer = await self.ask(messages, max_tokens=max_tokens, **more)
        if answer.refused:
            raise ProviderError(ToolFailure.BAD_RESPONSE, f"{self._service}: the model refuses this {self.about}", retry=False)
        return answer

    async def ask(self, messages: Sequence[dict[str, Any]], *, max_tokens: int, **more: Any) -> Message:
        """The answer, at temperature 0 unless `more` says otherwise; `more` goes into the request. A refusal's text is its words."""
        payload: dict[str, Any] = {"model": self.config.model, "messages": list(messages), "temperature": 0.0, **more}
        payload[self._limit] = max_tokens
        if not self._takes_temperature:
            del payload["temperature"]
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            answer = await self.http.json("POST", self._url, payload=payload, headers=headers, timeout=self.config.timeout_seconds)
        except ProviderError as error:
            if self._learns(error, payload):  # another attempt of the guard, so that limits and deadline hold
                raise ProviderError(error.failure, error.detail, retry=True, status=error.status) from None
            raise self._refusal(error) from None
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            content, refusal, finish = _joined(message.get("content")), message.get("refusal"), choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ProviderError(ToolFailure.BAD_RESPONSE, f"{self._service}: no choices[0].message in the answer") from None
        refused = bool(refusal) or finish == "content_filter"
        return Message(content or _joined(refusal), finish == "length", _usage(answer.get("usage")), refused)

    def _learns(self, error: ProviderError, payload: dict[str, Any]) -> bool:
        """Whether the service took no parameter that it will not be sent again, as OpenAI's newer models take neither of these."""
        if error.status != 400 or not _UNSUPPORTED.search(error.detail):
            return False
        if "max_tokens" in payload and _THE_LIMIT.search(error.detail):
            self._limit = "max_completion_tokens"
            return True
        if "temperature" in payload and _THE_TEMPERATURE.search(error.detail):
            if self._takes_temperature:
                logger.warning("%s takes no temperature: its answers are not greedy, and another run's may differ", self._service)
            self._takes_temperature = False
            return True
        return False

    def _refusal(self, error: ProviderError) -> ProviderError:
        if error.status == 402 or _SPENT.search(error.detail):
            return AccountError(f"{self._service}: the account has nothing left: top it up ({error.detail})", status=error.status)
        if error.status in (401, 403):
            name = self.config.key_env or f"the variable that tools.{self.role}.key_env is to name"
            return AccountError(f"{self._service} refuses the key: correct {name} ({error.detail})", status=error.status)
        return error


def without_thoughts(text: str) -> str:
    """What a model says after thinking. A block that never opens began in the prompt, one that never closes was cut off."""
    for tag in ("think", "thinking", "thought", "reasoning"):
        text = text.rpartition(f"</{tag}>")[2]
        text = text.partition(f"<{tag}>")[0]
    return text


def inert(text: str) -> str:
    """Text with the special tokens of chat templates broken by a space: servers read them even inside a message."""
    return _SPECIAL.sub(lambda match: f"{match[0]} " if match[0] != ">" else " >", text)


_SPECIAL = re.compile(r"<(?=[|｜])|(?<=[|｜])>|(?<=\[)(?=/?INST\])|<(?=/?(?:s|bos|eos|start_of_turn|end_of_turn|think)>)")
_UNSUPPORTED = re.compile(r"unsupported|not supported|does not support|deprecated|unrecognized", re.I)
_THE_LIMIT = re.compile(r"[\"'`]max_tokens\b", re.I)
_THE_TEMPERATURE = re.compile(r"[\"'`]temperature\b", re.I)
_SPENT = re.compile(r"insufficient[_ ](?:quota|balance|credits|funds)|exceeded your current quota", re.I)


def _joined(content: object) -> str:
    """A message's content: a string, or a list of parts of which the texts count."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))


def _usage(value: object) -> Usage:
    counts: Any = value if isinstance(value, dict) else {}
    spent = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
    given, made = (n if isinstance(n, int) and n > 0 else 0 for n in spent)
    return Usage(given, made)
