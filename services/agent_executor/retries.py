"""Which failures of a run may pass when it is tried again.

Owns the distinction. What a provider or a network did may pass: timeouts, lost connections, 429 and 5xx, also where a
tool meets them. What lies in the definition, in a request that is refused (other 4xx) or in a tool's own code does not.
"""

from __future__ import annotations

from collections.abc import Iterator

_STATUSES = frozenset({408, 425, 429})
_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_TYPES = (TimeoutError, ConnectionError)


def may_pass(error: BaseException) -> bool:
    """Whether `error`, or what it was raised from, is of a kind that passes."""
    for each in _chain(error):
        if isinstance(passes := getattr(each, "may_pass", None), bool):
            return passes  # a tool's; decided by this very function, where the exception still was itself
        status = getattr(each, "status_code", None) or getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(status, int):  # the clients of openai, anthropic and ollama, and httpx, all say it so
            return (status >= 500 or status in _STATUSES) and getattr(each, "code", None) not in _SPENT
        if isinstance(each, _TYPES) or _is_of_transport(each):
            return True
    return False


def _is_of_transport(error: BaseException) -> bool:
    """httpx' TransportError; by name, because providers' packages bring httpx under several names (httpx2)."""
    kinds = type(error).__mro__
    return any(kind.__name__ == "TransportError" and kind.__module__.startswith("httpx") for kind in kinds)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes; `__context__` does not count, since it may be of no concern."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__
