"""How the service says no: typed errors in OpenAI's shape, without a word about the inside. Pure."""

from __future__ import annotations

from typing import Any

# code: (HTTP status, OpenAI's type of error)
ERRORS = {
    "bad_request": (400, "invalid_request_error"),
    "bad_input": (400, "invalid_request_error"),  # a picture or a question that cannot be asked
    "invalid_api_key": (401, "invalid_request_error"),
    "forbidden": (403, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "weights_busy": (409, "invalid_request_error"),
    "request_too_large": (413, "invalid_request_error"),
    "rate_limit_exceeded": (429, "requests"),
    "insufficient_quota": (429, "insufficient_quota"),
    "overloaded": (429, "requests"),
    "policy_error": (200, "model_error"),  # the model broke its own protocol: an answer of the service, without one of the model
    "internal": (500, "server_error"),
    "unavailable": (503, "server_error"),
    "timeout": (504, "server_error"),
}


class NotReady(RuntimeError):
    """The service did not start; one sentence says which of its parts are missing, and why."""


class Refused(Exception):
    """A request that is not answered. `code` is one of ERRORS; `retry_after` in seconds, 0 where trying again will not help."""

    def __init__(self, code: str, message: str, *, retry_after: int = 0) -> None:
        super().__init__(message)
        self.code, self.message, self.retry_after = code, message, retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return (_again, (self.code, self.message, self.retry_after))

    @property
    def status(self) -> int:
        return ERRORS[self.code][0]

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)} if self.retry_after else {}

    def as_json(self) -> dict[str, Any]:
        """OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""
        return {"error": {"message": self.message, "type": ERRORS[self.code][1], "param": None, "code": self.code}}


def _again(code: str, message: str, retry_after: int) -> Refused:
    return Refused(code, message, retry_after=retry_after)
