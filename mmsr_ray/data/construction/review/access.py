"""Who may write: annotators, each by a link with a secret token.

Promise: the file of the review holds hashes of tokens alone, so it can be copied and shared; a new link ends the old one. A page of
another site can neither read nor write here: the cookie is not sent along with its requests (SameSite), and a write needs a header
that only our own page knows.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from urllib.parse import urlsplit

from aiohttp import web

from mmsr_ray.data.construction.review.store import Store
from mmsr_ray.data.construction.review.verdicts import ReviewError

HEADER = "X-Review"  # carries `form_token` with each write
COOKIE_SECONDS = 90 * 24 * 3600
_NAME = re.compile(r"[\w.@+-]{1,64}")


def invite(store: Store, name: str) -> str:
    """A new token of an annotator, which is told once. Raises ReviewError for an impossible name."""
    if not _NAME.fullmatch(name):
        raise ReviewError(f"{name!r} cannot be an annotator's name: use up to 64 letters, digits and . _ - + @")
    token = secrets.token_urlsafe(32)
    store.add_annotator(name, hashed(token))
    return token


def hashed(token: str) -> str:
    """Tokens have 256 random bits: a plain hash of one cannot be guessed back."""
    return hashlib.sha256(token.encode()).hexdigest()


def form_token(token: str) -> str:
    """What a write must bring besides the cookie."""
    return hmac.new(token.encode(), b"write", hashlib.sha256).hexdigest()


def refuse_foreign(request: web.Request, token: str) -> None:
    """Raises HTTPForbidden for a write that does not come from a page of ours."""
    origin = request.headers.get("Origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("Host", "")
    if foreign or not hmac.compare_digest(request.headers.get(HEADER, "").encode(), form_token(token).encode()):
        raise web.HTTPForbidden(text="this write does not come from the review page: load it again")
