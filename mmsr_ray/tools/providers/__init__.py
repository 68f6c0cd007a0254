"""Providers by the `kind` of their config section.

Promise: whoever asks for a section through `services` sees the address and the key's variable that will be used. A
section without a url gets the kind's own address, and with it the kind's own key variable; a section with a url of its
own keeps its `key_env`, so "" there means a service without keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from mmsr_ray.config import ProviderConfig, ToolsConfig
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.providers.base import ImageHost, ImageSearchProvider, Keys, Provider, Reader, Summariser, TextSearchProvider, read_key
from mmsr_ray.tools.providers.hosts import NoHost, UploadHost
from mmsr_ray.tools.providers.readers import JinaReader, TrafilaturaReader
from mmsr_ray.tools.providers.search import SearxNg, SerpApiGoogle, SerpApiLens, SerperGoogle, SerperLens
from mmsr_ray.tools.providers.summarisers import ChatSummariser, ExtractiveSummariser

KINDS: dict[str, dict[str, type[Provider]]] = {
    "image_search": {"serpapi_lens": SerpApiLens, "serper_lens": SerperLens},
    "image_host": {"upload": UploadHost, "none": NoHost},
    "text_search": {"serpapi": SerpApiGoogle, "serper": SerperGoogle, "searxng": SearxNg},
    "reader": {"jina": JinaReader, "trafilatura": TrafilaturaReader},
    "summariser": {"chat": ChatSummariser, "extractive": ExtractiveSummariser},
}


def services(config: ToolsConfig) -> dict[str, ProviderConfig]:
    """The five provider sections by name, the defaults of their kinds filled in. An unknown kind is left to `kind_of`."""
    given = {
        "image_search": config.image_search,
        "image_host": config.image_host,
        "text_search": config.text_search,
        "reader": config.reader,
        "summariser": config.summariser,
    }
    return {name: _with_defaults(KINDS[name].get(section.kind), section) for name, section in given.items()}


def _with_defaults(kind: type[Provider] | None, section: ProviderConfig) -> ProviderConfig:
    if section.url or kind is None or not kind.default_url:
        return section
    return replace(section, url=kind.default_url, key_env=section.key_env or kind.default_key_env)


THUMBNAILS = "thumbnails"


def limited_services(config: ToolsConfig) -> dict[str, ProviderConfig]:
    """What gets a guard and a bucket: the five, unlimited where nothing leaves this process, and the thumbnails' hosts."""
    limited = {
        name: section if kind_of(name, section).remote else replace(section, rate_per_second=0.0)
        for name, section in services(config).items()
    }
    return limited | {THUMBNAILS: ProviderConfig(kind=THUMBNAILS, rate_per_second=0.0)}  # many hosts, none of them ours to limit


def kind_of(service: str, config: ProviderConfig) -> type[Provider]:
    """The class that `kind` names. Raises ToolsError for an unknown kind or a missing URL."""
    known = KINDS[service]
    if config.kind not in known:
        raise ToolsError(f"tools.{service}.kind={config.kind!r} is unknown: choose {' or '.join(known)}")
    if known[config.kind].needs_url and not config.url.startswith(("http://", "https://")):
        raise ToolsError(f"tools.{service}.url={config.url!r} is no http(s) URL: set it to the address of the {config.kind} service")
    return known[config.kind]


def read_keys(config: ToolsConfig) -> Keys:
    """All keys from this process's environment. Raises ToolsError, one sentence, for the first that is missing."""
    return Keys({name: read_key(name, section, kind_of(name, section).key_required) for name, section in services(config).items()})


@dataclass(frozen=True, slots=True)
class Providers:
    image_search: ImageSearchProvider
    image_host: ImageHost
    text_search: TextSearchProvider
    reader: Reader
    summariser: Summariser


def build(config: ToolsConfig, http: Http, keys: Keys) -> Providers:
    """Raises ToolsError as `kind_of` does."""
    made = {name: kind_of(name, section)(section, http, keys.get(name)) for name, section in services(config).items()}
    return Providers(
        cast(ImageSearchProvider, made["image_search"]),
        cast(ImageHost, made["image_host"]),
        cast(TextSearchProvider, made["text_search"]),
        cast(Reader, made["reader"]),
        cast(Summariser, made["summariser"]),
    )
