"""What is served for the page, without a browser."""

from __future__ import annotations

import re

import pytest

from mmsr_ray.serving.page import HEADERS, PATHS, page_file


def test_the_page_loads_its_own_files_and_no_others() -> None:
    html = page_file("/").body.decode()
    loaded = re.findall(r"""<(?:script|link|img)[^>]*?(?:src|href)="([^"]*)\"""", html)
    assert {f"/{path}" for path in loaded if path != "data:,"} == set(PATHS) - {"/"}
    assert not re.search(r"""\son\w+=|\sstyle=|<style|<script(?![^>]*src=)|javascript:""", html)


def test_the_policy_allows_the_page_and_nothing_else() -> None:
    policy = [part.strip() for part in HEADERS["Content-Security-Policy"].split(";")]
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:"} <= set(policy)
    assert "unsafe" not in "".join(policy)


def test_the_script_makes_no_html_of_strings() -> None:
    script = page_file("/page/page.js").body.decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)
    assert page_file("/page/page.js").media_type == "text/javascript"  # modules are refused otherwise


def test_other_paths_are_unknown() -> None:
    with pytest.raises(KeyError):
        page_file("/page/../settings.py")
