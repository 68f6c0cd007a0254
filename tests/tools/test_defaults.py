"""Sections that name no address: the kind's own address and key variable, seen alike by keys, guards and providers."""

from __future__ import annotations

import pytest

from mmsr_ray.config import Config, load
from mmsr_ray.tools.errors import Redactor, ToolsError
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.providers import build, limited_services, read_keys, services

MODEL = ["model.path=m", "data.train=t", "data.test=t"]


def config(*overrides: str) -> Config:
    return load(None, [*MODEL, *overrides])


def test_a_kind_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "serper-key")
    monkeypatch.setenv("SERPAPI_API_KEY", "serpapi-key")
    tools = config("tools.text_search.kind=serper", "tools.text_search.rate_per_second=7").tools
    section = services(tools)["text_search"]
    assert (section.url, section.key_env) == ("https://google.serper.dev", "SERPER_API_KEY")
    assert limited_services(tools)["text_search"] == section
    keys = read_keys(tools)
    assert (keys.get("text_search"), keys.get("image_search")) == ("serper-key", "serpapi-key")
    assert build(tools, Http(Redactor()), keys).text_search.identity.startswith("serper|https://google.serper.dev")


def test_an_address_of_ones_own_keeps_its_key_setting() -> None:
    bare = services(config("tools.text_search.kind=serper", "tools.text_search.url=http://127.0.0.1:1/s").tools)["text_search"]
    assert (bare.url, bare.key_env) == ("http://127.0.0.1:1/s", "")
    named = services(config("tools.text_search.key_env=MINE").tools)["text_search"]
    assert (named.url, named.key_env) == ("https://serpapi.com/search.json", "MINE")


def test_a_missing_default_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    monkeypatch.setenv("SERPAPI_API_KEY", "k")
    with pytest.raises(ToolsError, match=r"tools\.text_search \(serper\) needs a key: set the environment variable SERPER_API_KEY"):
        read_keys(config("tools.text_search.kind=serper").tools)


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ToolsError, match=r"kind='bing' is unknown: choose serpapi or serper or"):
        limited_services(config("tools.text_search.kind=bing").tools)


def test_an_empty_value_on_the_command_line_is_the_empty_string() -> None:
    section = config("tools.reader.url=http://127.0.0.1:1/", "tools.reader.key_env=").tools.reader  # what a shell leaves of key_env=''
    assert section.key_env == ""
