"""retries: which failures may pass."""

from __future__ import annotations

import anthropic
import httpx
import httpx2
import openai
import pytest

from agent_executor.errors import ToolScriptError
from agent_executor.retries import may_pass

REQUEST = httpx2.Request("POST", "http://provider.example")

OURS = httpx.Request("POST", "http://provider.example")


def answered(status: int, code: str | None = None) -> openai.APIStatusError:
    return openai.APIStatusError("no", response=httpx2.Response(status, request=REQUEST), body={"code": code})


def caused(cause: BaseException) -> Exception:
    error = RuntimeError("wrapped")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        *(answered(status) for status in (408, 425, 429, 500, 502, 503, 529)),
        anthropic.APIStatusError("no", response=httpx2.Response(529, request=REQUEST), body=None),
        httpx.HTTPStatusError("no", request=OURS, response=httpx.Response(503, request=OURS)),
        caused(answered(503)),
        TimeoutError(),
        ConnectionResetError(),
        httpx.ConnectError("no"),
        httpx.ReadTimeout("no"),
        httpx2.ConnectError("no"),
        caused(httpx.RemoteProtocolError("no")),
    ],
)
def test_what_may_pass(error: BaseException) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        *(answered(status) for status in (400, 401, 403, 404, 409, 413, 422)),
        answered(429, "insufficient_quota"),
        caused(answered(400)),
        ValueError("no"),
        FileNotFoundError("no"),
        ToolScriptError("no"),
        KeyError("no"),
    ],
)
def test_what_does_not_pass(error: BaseException) -> None:
    assert not may_pass(error)


def test_how_the_clients_of_providers_tell_of_a_lost_connection() -> None:
    for kind in (openai.APIConnectionError, openai.APITimeoutError, anthropic.APIConnectionError):
        error = kind(request=REQUEST)
        error.__cause__ = httpx2.ConnectError("no")
        assert may_pass(error)


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert not may_pass(first)


def test_what_was_handled_before_is_no_cause() -> None:
    error = ValueError("a bug in the handler")
    error.__context__ = TimeoutError()
    assert not may_pass(error)
