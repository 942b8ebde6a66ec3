"""redaction: what was remembered is never seen again."""

from __future__ import annotations

import pytest

from agent_executor import redaction
from agent_executor.redaction import redact, remember, remember_url


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())


def test_a_remembered_secret_is_replaced_wherever_it_stands() -> None:
    remember("sk-secret", "other-secret")
    assert redact("refused: sk-secret (sk-secret), other-secret") == "refused: [redacted] ([redacted]), [redacted]"


def test_a_secret_that_holds_another_goes_first() -> None:
    remember("secret", "secret-and-more")
    assert redact("secret-and-more") == "[redacted]"


@pytest.mark.parametrize("secret", [None, "", "ab", "short"])
def test_what_is_too_short_tears_no_words_apart(secret: str | None) -> None:
    remember(secret)
    assert redact("a short table") == "a short table"


def test_passwords_of_urls() -> None:
    remember_url("nats://user:pass%20word@a:4222,nats://user:other-word@b:4222")
    remember_url("redis://plain:6379/0")
    remember_url(None)
    assert redact("pass%20word pass word other-word plain") == "[redacted] [redacted] [redacted] plain"
