"""Other providers, foreign text, redaction, Retry-After."""

from __future__ import annotations

import pytest

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools import foreign
from mmsr_ray.tools.errors import ProviderError, Redactor
from mmsr_ray.tools.http import Http, public, retry_after
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.providers.base import Keys
from mmsr_ray.tools.providers.readers import JinaReader
from mmsr_ray.tools.providers.summarisers import extract
from tests.tools.web import KEY, Web, configure, png


def free(kind: str, url: str = "", key_env: str = "") -> ProviderConfig:
    return ProviderConfig(kind=kind, url=url, key_env=key_env, rate_per_second=0)


async def test_serper_searxng_trafilatura_extractive(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SERPER_KEY", KEY)
    serper = {"url": f"{web.root}/serper/", "key_env": "TEST_SERPER_KEY"}
    config = configure(web.root, image_search=free("serper_lens", **serper), text_search=free("serper", **serper))
    config.tools.reader, config.tools.summariser = free("trafilatura"), free("extractive")
    async with LocalTools(config) as tools:
        image, text = await tools.image_search(png(), None, "x"), await tools.text_search("q", "When was it built in 1805?")
        assert image.ok
        assert text.ok
        assert {q["key"] for q in web.queries} == {KEY}
        assert "1805" in text.hits[0].summary  # type: ignore[union-attr]
        assert "menu" not in text.hits[0].summary  # type: ignore[union-attr]
    config.tools.text_search = free("searxng", f"{web.root}/searxng")
    async with LocalTools(config) as tools:
        assert len((await tools.text_search("q", "built")).hits) == 5


async def test_reader_url_reaches_the_service_whole(web: Web) -> None:
    config = configure(web.root)
    async with Http(Redactor()) as client:
        page = await JinaReader(config.tools.reader, client, "").read("https://example.org/ä/b%2Fc?x=1&y=a b#part")
    assert "https://example.org/%C3%A4/b%2Fc?x=1&y=a" in page.text


def test_extract_prefers_sentences_of_the_question_and_keeps_their_order() -> None:
    page = "Cats sleep. The bridge opened in 1932. Dogs bark. Fish swim. Birds sing. Cows graze. The bridge is 500 m long.\nEnd of page."
    assert extract(page, "How long is the bridge?", 2) == "The bridge opened in 1932. The bridge is 500 m long."
    assert extract("One. Two. Three.", "unrelated", 2) == "One. Two."
    assert extract("  \n ", "q") == ""


def test_foreign_text_is_tamed() -> None:
    assert foreign.clean_line("a\x00b\n\tc\u202e d\u200b\ud800", 100) == "a b c d"
    assert foreign.clean_line("x" * 1000, 10) == "x" * 10
    assert foreign.clean_line(None, 10) == foreign.clean_line({"a": 1}, 10) == foreign.clean_text(3, 10) == ""
    assert foreign.clean_text("a\r\n\n\n\n\nb\x1b[31m", 100) == "a\n\nb[31m"
    assert [foreign.web_url(u) for u in ("http://a/b", "ftp://a", "javascript:x", "http://a b", "http://" + "a" * 3000, None)] == [
        "http://a/b",
        "",
        "",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize("data", [b"", b"GIF89a", png()[:60], b"\x89PNG\r\n\x1a\n" + bytes(50), b"<svg/>"])
def test_broken_pictures(data: bytes) -> None:
    with pytest.raises(ProviderError):
        foreign.thumbnail(data, 262_144)


def test_pixel_bombs_and_long_data_urls() -> None:
    with pytest.raises(ProviderError, match="pixels"):
        foreign.thumbnail(png(side=4_100), 262_144)
    with pytest.raises(ProviderError):
        foreign.data_url("data:image/png;base64," + "A" * 10_000, 100)
    with pytest.raises(ProviderError):
        foreign.data_url("data:image/png;base64,@@@", 100)


def test_secrets_are_hidden_in_any_form() -> None:
    redact = Redactor([KEY, ""])
    assert redact(f"x {KEY} y s3cret%2Bkey%2Fwith%3Dodd%26chars z") == "x *** y *** z"
    assert KEY not in repr(Keys({"text_search": KEY}))
    assert public(f"http://user:pw@host:1/p?api_key={KEY}#f") == "http://host:1/p"


def test_retry_after_in_seconds_or_as_a_date() -> None:
    assert retry_after("2.5", 0.0) == 2.5
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    assert [retry_after(h, 0.0) for h in ("", "soon", "nan")] == [None, None, None]
    assert [retry_after(h, 0.0) for h in ("-5", "1e9", "inf")] == [0.0, 3600.0, 3600.0]
