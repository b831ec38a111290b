"""What went wrong at the LLM endpoint, as our errors. The key is never in a message.

cannot connect, connection lost, timeout      UNAVAILABLE
401, 403                                      FAILED_PRECONDITION   the key is wrong: nothing a caller can do
404                                           FAILED_PRECONDITION   no such model or path
429                                           RESOURCE_EXHAUSTED    with the endpoint's own retry time
408, 409, 5xx, an error inside the stream     UNAVAILABLE
other 4xx                                     FAILED_PRECONDITION   the endpoint refuses what we send
unreadable stream, empty or unfinished answer UNAVAILABLE
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import urlsplit

import openai

from services.runtime.config import ConfigError
from services.runtime.errors import FailedPrecondition, MeshError, ResourceExhausted, Unavailable

RETRY_MS_DEFAULT = 1_000
"""Advice when the endpoint gives none."""
RETRY_MS_MAX = 60_000
_DETAIL_CHARS_MAX = 200
_TRANSIENT = frozenset({408, 409})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible endpoint, as it may be shown."""

    address: str
    """Scheme, host and port; no path, no credentials."""
    key_name: str
    """Environment variable that holds the key."""
    key: str | None
    """The key, to take it out of messages."""

    @classmethod
    def of(cls, base_url: str, key_name: str, key: str | None) -> Endpoint:
        """Raises ConfigError when `base_url` is not an http or https URL."""
        try:
            parts = urlsplit(base_url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError("generator.base_url must look like https://host/v1")
        return cls(f"{parts.scheme}://{host}" + (f":{port}" if port else ""), key_name, key or None)

    def error(self, error: Exception) -> MeshError:
        """The error to answer with when a call to this endpoint raised `error`."""
        if isinstance(error, openai.APIStatusError):
            return self._status(error)
        if isinstance(error, openai.APITimeoutError):
            return Unavailable(f"the LLM at {self.address} did not answer in time", retry_ms=RETRY_MS_DEFAULT)
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__
            why = self._redact(str(cause)) if cause is not None and str(cause) else "connection lost"
            return Unavailable(f"cannot talk to the LLM at {self.address}: {why}", retry_ms=RETRY_MS_DEFAULT)
        if isinstance(error, openai.APIError):
            return Unavailable(f"the LLM at {self.address} failed: {self._redact(error.message)}")
        return self.unreadable(type(error).__name__)

    def unreadable(self, why: str) -> MeshError:
        """The error for a reply that is not what the protocol promises."""
        return Unavailable(f"the LLM at {self.address} sent a reply that cannot be used: {why}")

    def _status(self, error: openai.APIStatusError) -> MeshError:
        code = error.status_code
        detail = self._redact(error.message)
        if code in (401, 403):
            # Its text is left out: endpoints like to quote part of the key.
            held = f"the key in {self.key_name}" if self.key else f"a call without a key ({self.key_name} is not set)"
            return FailedPrecondition(f"the LLM at {self.address} refuses {held} (HTTP {code})", reason="LLM_KEY")
        if code == 429:
            return ResourceExhausted(
                f"the LLM at {self.address} limits our rate (HTTP 429): {detail}", retry_ms=_retry_ms(error)
            )
        if code in _TRANSIENT or code >= 500:
            return Unavailable(f"the LLM at {self.address} failed (HTTP {code}): {detail}", retry_ms=_retry_ms(error))
        return FailedPrecondition(f"the LLM at {self.address} refuses the request (HTTP {code}): {detail}")

    def _redact(self, text: str) -> str:
        if self.key:
            text = text.replace(self.key, "***")
        line = " ".join(text.split())
        return line if len(line) <= _DETAIL_CHARS_MAX else line[:_DETAIL_CHARS_MAX] + "..."


def _retry_ms(error: openai.APIStatusError) -> int:
    """Retry-After in seconds; a date or nonsense counts as not given."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return RETRY_MS_DEFAULT
    if not math.isfinite(seconds):
        return RETRY_MS_DEFAULT
    return round(min(max(seconds * 1_000, 1), RETRY_MS_MAX))
