"""Providers by the `kind` of their config section.

Promise: whoever asks for a section through `services` sees the address and the key's variable that will be used. A
section without a url gets the kind's own address, and with it the kind's own key variable; a section with a url of its
own keeps its `key_env`, so "" there means a service without keys.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mmsr_ray.config import CacheConfig, ProviderConfig, ToolsConfig
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.providers.base import (
    ImageHost,
    ImageSearchProvider,
    JudgeProvider,
    Keys,
    ModelProvider,
    PictureFinder,
    Provider,
    Reader,
    Summariser,
    TextSearchProvider,
    read_key,
)
from mmsr_ray.tools.providers.corpus import Bm25, CorpusReader
from mmsr_ray.tools.providers.finders import NoFinder, SerpApiImages, SerperImages
from mmsr_ray.tools.providers.fvqa_cache import FvqaCache
from mmsr_ray.tools.providers.hosts import NoHost, UploadHost
from mmsr_ray.tools.providers.image_index import ImageIndex
from mmsr_ray.tools.providers.judges import ChatJudge, NoJudge
from mmsr_ray.tools.providers.models import ChatModel, NoModel
from mmsr_ray.tools.providers.readers import JinaReader, TrafilaturaReader
from mmsr_ray.tools.providers.s3 import S3Host, read_s3_keys
from mmsr_ray.tools.providers.search import SearxNg, SerpApiGoogle, SerpApiLens, SerperGoogle, SerperLens
from mmsr_ray.tools.providers.summarisers import ChatSummariser, ExtractiveSummariser

KINDS: dict[str, dict[str, type[Provider]]] = {
    "image_search": {"serpapi_lens": SerpApiLens, "serper_lens": SerperLens, "fvqa_cache": FvqaCache, "image_index": ImageIndex},
    "image_host": {"upload": UploadHost, "s3": S3Host, "none": NoHost},
    "text_search": {"serpapi": SerpApiGoogle, "serper": SerperGoogle, "searxng": SearxNg, "bm25": Bm25},
    "reader": {"jina": JinaReader, "trafilatura": TrafilaturaReader, "corpus": CorpusReader},
    "summariser": {"chat": ChatSummariser, "extractive": ExtractiveSummariser},
    "judge": {"chat": ChatJudge, "none": NoJudge},
    "model": {"chat": ChatModel, "none": NoModel},
    "picture_finder": {"serpapi_images": SerpApiImages, "serper_images": SerperImages, "none": NoFinder},
}

SERVICES = tuple(KINDS)
THUMBNAILS = "thumbnails"
CACHE = "cache"  # the redis's password among the keys
NAMES = (*SERVICES, CACHE)  # whatever has a key


def services(config: ToolsConfig) -> dict[str, ProviderConfig]:
    """The provider sections by name, the defaults of their kinds filled in. An unknown kind is left to `kind_of`."""
    given = {
        "image_search": config.image_search,
        "image_host": config.image_host,
        "text_search": config.text_search,
        "reader": config.reader,
        "summariser": config.summariser,
        "judge": config.judge,
        "model": config.model,
        "picture_finder": config.picture_finder,
    }
    return {name: _with_defaults(KINDS[name].get(section.kind), section) for name, section in given.items()}


def _with_defaults(kind: type[Provider] | None, section: ProviderConfig) -> ProviderConfig:
    if section.url or kind is None or not kind.default_url:
        return section
    return replace(section, url=kind.default_url, key_env=section.key_env or kind.default_key_env)


def limited_services(config: ToolsConfig) -> dict[str, ProviderConfig]:
    """What gets a guard and a bucket: all services, unlimited where nothing leaves this process, and the thumbnails' hosts."""
    limited = {
        name: section if kind_of(name, section).remote else replace(section, rate_per_second=0.0, timeout_seconds=math.inf)
        for name, section in services(config).items()
    }
    timeout = config.image_search.timeout_seconds
    return limited | {
        THUMBNAILS: ProviderConfig(kind=THUMBNAILS, rate_per_second=0.0, timeout_seconds=timeout)
    }  # none of them ours to limit


def kind_of(service: str, config: ProviderConfig) -> type[Provider]:
    """The class that `kind` names. Raises ToolsError for an unknown kind, a missing URL or a path where nothing lies."""
    known = KINDS[service]
    if config.kind not in known:
        raise ToolsError(f"tools.{service}.kind={config.kind!r} is unknown: choose {' or '.join(known)}")
    if known[config.kind].needs_url and not config.url.startswith(("http://", "https://")):
        raise ToolsError(f"tools.{service}.url={config.url!r} is no http(s) URL: set it to the address of the {config.kind} service")
    if known[config.kind].needs_path and not (config.path and Path(config.path).exists()):
        raise ToolsError(f"tools.{service}.path={config.path!r}: nothing lies there; name what kind={config.kind} searches")
    return known[config.kind]


def read_keys(config: ToolsConfig, names: Collection[str] = NAMES) -> Keys:
    """The keys of the services `names` (CACHE: the redis's password) from this process's environment.

    Raises ToolsError, one sentence, for the first that is missing; also for an unknown kind.
    """
    sections = {name: section for name, section in services(config).items() if name in names}
    keys = {name: read_key(name, section, kind_of(name, section).key_required) for name, section in sections.items()}
    if CACHE in names and config.cache.redis:
        keys[CACHE] = _redis_password(config.cache)
    return Keys(keys | (read_s3_keys(config.s3) if "image_host" in names and config.image_host.kind == "s3" else {}))


def _redis_password(config: CacheConfig) -> str:
    password = os.environ.get(config.redis_password_env, "") if config.redis_password_env else ""
    if config.redis_password_env and not password:
        raise ToolsError(
            f"tools.cache.redis needs a password: set the environment variable {config.redis_password_env}, "
            "or set tools.cache.redis_password_env='' if the redis takes none"
        )
    return password


@dataclass(frozen=True, slots=True)
class Providers:
    image_search: ImageSearchProvider
    image_host: ImageHost
    text_search: TextSearchProvider
    reader: Reader
    summariser: Summariser
    judge: JudgeProvider
    model: ModelProvider
    picture_finder: PictureFinder


def make(name: str, config: ToolsConfig, http: Http, keys: Keys) -> Provider:
    """The provider of one service. Raises ToolsError as `kind_of` and the kind itself do."""
    section = services(config)[name]
    kind = kind_of(name, section)
    return S3Host(section, http, config.s3, keys) if kind is S3Host else kind(section, http, keys.get(name))


def build(config: ToolsConfig, http: Http, keys: Keys) -> Providers:
    """All of them. Raises ToolsError as `make` does."""
    made = {name: make(name, config, http, keys) for name in SERVICES}
    return Providers(
        cast(ImageSearchProvider, made["image_search"]),
        cast(ImageHost, made["image_host"]),
        cast(TextSearchProvider, made["text_search"]),
        cast(Reader, made["reader"]),
        cast(Summariser, made["summariser"]),
        cast(JudgeProvider, made["judge"]),
        cast(ModelProvider, made["model"]),
        cast(PictureFinder, made["picture_finder"]),
    )
