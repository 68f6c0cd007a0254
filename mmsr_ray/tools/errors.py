"""How a provider says no: one exception type that becomes a typed `ToolFailure` at the edge of the tools.

Promise: the text of these errors never holds a secret (`Redactor`), because it ends up in logs and reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

from mmsr_ray.types import ToolFailure

_TRANSIENT = {ToolFailure.TIMEOUT, ToolFailure.RATE_LIMITED, ToolFailure.UNAVAILABLE, ToolFailure.BAD_RESPONSE}


class ToolsError(RuntimeError):
    """The tools cannot start: a missing key, an unknown kind, a service that is down. One sentence with the remedy."""


class BudgetSpent(RuntimeError):
    """tools.budget_usd does not pay for what comes next. Work stops here, and goes on from here under a higher budget."""


class ProviderError(Exception):
    """One request to one provider failed.

    `retry` says whether the same request may succeed later (default: by kind of failure); `retry_after` is what the
    service asked for, in seconds; `status` the HTTP status, 0 when there was none.
    """

    def __init__(
        self, failure: ToolFailure, detail: str, *, retry: bool | None = None, retry_after: float | None = None, status: int = 0
    ) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure, self.detail, self.retry_after, self.status = failure, detail, retry_after, status
        self.retry = failure in _TRANSIENT if retry is None else retry


class AccountError(ProviderError):
    """The account is refused: a wrong key, or nothing left to pay with. No other request with it will fare better."""

    def __init__(self, detail: str, *, status: int = 0) -> None:
        super().__init__(ToolFailure.REJECTED, detail, retry=False, status=status)


# What makes a signed URL a key to its object; "=" and "&" may be percent-encoded inside another URL.
_SIGNED = re.compile(r"(X-Amz-(?:Signature|Credential|Security-Token))(=|%3D)[\w%/+.~-]+", re.IGNORECASE)


class Redactor:
    """Replaces known secrets, plain or percent-encoded, and the signatures of signed URLs by `***`."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if secret for form in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret))}
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, "***")
        return _SIGNED.sub(r"\1\2***", text)
