"""What a provider is: one request to one service, typed on both sides.

Promise: a provider neither waits, retries, caches nor counts (the guard does); it raises only ProviderError. `identity`
tells two services apart in the cache. A provider that says NO_RESULTS has answered.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from yarl import URL

from mmsr_ray.config import ProviderConfig
from mmsr_ray.rewards.judge import Case
from mmsr_ray.tools.errors import ProviderError, ToolsError
from mmsr_ray.tools.http import Http, public, reachable
from mmsr_ray.types import ToolFailure

if TYPE_CHECKING:
    from mmsr_ray.tools.providers.finders import Find
    from mmsr_ray.tools.providers.models import Request


@dataclass(frozen=True, slots=True)
class Lead:
    """A search hit before its page or thumbnail is fetched. `thumbnail` is an http(s) or data: URL, "" for text."""

    title: str
    url: str
    thumbnail: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that the service says it counted; zeros where it bills by call."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    text: str
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Summary:
    text: str
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Photo:
    """The user's picture."""

    sha: str  # hex sha256 of `data`
    data: bytes
    url: str = ""  # a public address of it; "" where the provider does not want one


class Provider:
    """`key` is "" where the service takes none."""

    default_url: ClassVar[str] = ""  # used where config names none
    default_key_env: ClassVar[str] = ""
    needs_url: ClassVar[bool] = True  # one service at `url`, which can be down
    needs_path: ClassVar[bool] = False  # searches a file or folder at `path`
    wants_photo_url: ClassVar[bool] = False  # image search: the service fetches the picture itself
    remote: ClassVar[bool] = True  # sends requests out of this process
    many_hosts: ClassVar[bool] = False  # asks another server each time: one that is dead says nothing about the next
    key_required: ClassVar[bool] = True  # where config names a key_env; False: the key only raises the limits

    def __init__(self, config: ProviderConfig, http: Http, key: str) -> None:
        self.config, self.http, self._key = config, http, key
        self.identity = f"{config.kind}|{config.url}|{config.model}"

    async def probe(self, timeout: float) -> str:
        """What is wrong with the service or with its key, and the remedy; "" when nothing is. Costs nothing, ends by `timeout`."""
        why = await reachable(self.http, self.config.url, timeout) if self.needs_url else ""
        return self._silent(why) if why else ""

    async def _probe_key(
        self, url: str | URL, timeout: float, *, params: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """`probe` by a free request that the service answers to a right key only; with its answer, {} where it has none."""
        try:
            answer = await self.http.json("GET", url, timeout=timeout, params=params, headers=headers)
        except ProviderError as error:
            if error.status in (401, 403):
                return f"{public(self.config.url)} refuses the key (HTTP {error.status}): correct the variable {self.config.key_env}", {}
            silent = not error.status and error.failure in (ToolFailure.TIMEOUT, ToolFailure.UNAVAILABLE)
            return (self._silent(error.detail) if silent else ""), {}
        return "", answer

    def _silent(self, why: str) -> str:
        return f"nothing answers at {public(self.config.url)} ({why}): start the {self.config.kind} service or correct its url"


class ImageSearchProvider(Protocol):
    identity: str
    wants_photo_url: ClassVar[bool]

    async def search(self, photo: Photo) -> list[Lead]: ...


class TextSearchProvider(Protocol):
    identity: str

    async def search(self, query: str, limit: int) -> list[Lead]: ...


class Reader(Protocol):
    identity: str

    async def read(self, url: str) -> Page: ...


class Summariser(Protocol):
    identity: str

    async def summarise(self, page: str, question: str) -> Summary: ...


class JudgeProvider(Protocol):
    identity: str

    async def decide(self, case: Case) -> Summary: ...


class ModelProvider(Protocol):
    identity: str

    async def turn(self, request: Request) -> Summary: ...


class PictureFinder(Protocol):
    identity: str

    async def find(self, query: str) -> list[Find]: ...


class ImageHost(Protocol):
    identity: str

    @property
    def lasts(self) -> float | None:
        """Seconds for which an uploaded picture's address works; None: for good."""
        ...

    async def upload(self, data: bytes) -> str: ...


class Keys:
    """Keys by service name; never shows them. Picklable: the driver reads its environment once, for all actors."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._values)})"

    def get(self, service: str) -> str:
        return self._values.get(service, "")

    def secrets(self) -> list[str]:
        return list(self._values.values())


def read_key(service: str, config: ProviderConfig, required: bool) -> str:
    """The key from the variable that `key_env` names. Raises ToolsError when it is needed and missing."""
    key = os.environ.get(config.key_env, "").strip() if config.key_env else ""
    if required and config.key_env and not key:
        raise ToolsError(
            f"tools.{service} ({config.kind}) needs a key: set the environment variable {config.key_env}, "
            f"or name a service without keys in tools.{service}.url and leave key_env empty"
        )
    return key


def rows(answer: dict[str, Any], field: str, service: str, *, expected: bool) -> list[dict[str, Any]]:
    """The list of objects in `field`. Raises BAD_RESPONSE for another shape, or when it is `expected` and missing."""
    value = answer.get(field, None if expected else [])
    if not isinstance(value, list):
        raise ProviderError(ToolFailure.BAD_RESPONSE, f"{service}: no list {field!r} in the answer")
    return [row for row in value if isinstance(row, dict)]
