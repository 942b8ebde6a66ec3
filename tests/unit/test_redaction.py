"""redaction: what was remembered is never seen again, in no form."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_executor import redaction
from agent_executor.redaction import (
    LONG,
    redact,
    redact_json,
    redact_value,
    remember,
    remember_environment,
    remember_url,
)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)


def forget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(redaction, "_known", {})
    patch.setattr(redaction, "_forms", ())
    patch.setattr(redaction, "_latest", {})


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


WRITERS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": json.dumps,
    "json in json": lambda text: json.dumps(json.dumps(text)[1:-1]),
    "json as UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "json for HTML": lambda text: json.dumps(text).replace("<", "\\u003c").replace("&", "\\u0026"),
    "repr": repr,
    "repr in json": lambda text: json.dumps(repr(text)[1:-1]),
    "percent": lambda text: quote(text, safe=""),
    "percent in a path": quote,
    "percent in lower case": lambda text: "".join(
        f"%{byte:02x}" if not chr(byte).isalnum() or byte > 127 else chr(byte) for byte in text.encode()
    ),
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "form": quote_plus,
}
SECRETS = [
    "plain-secret",
    "p@ss/w+rd=?&#%<>",
    "quo\"ted's",
    "back\\slash\\\\es",
    "two  words\tand\nlines",
    "pässwörd-😀",
    "@@@@@@",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", WRITERS)
def test_a_secret_is_found_however_it_is_written(secret: str, form: str) -> None:
    remember(secret)
    written = WRITERS[form](secret).removeprefix("'").removesuffix("'").removeprefix('"').removesuffix('"')
    assert redact(f"<{written}>") == "<[redacted]>"


@given(st.text(min_size=6, max_size=30), st.sampled_from(sorted(WRITERS)), st.sampled_from(["", "x", "ab", "user:"]))
def test_any_secret_is_found(secret: str, form: str, before: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        try:
            secret.encode()
        except UnicodeEncodeError:
            return
        remember(secret)
        written = WRITERS[form](f".{secret}.")
        assert "[redacted]" in redact(written)
        assert WRITERS[form](secret) not in redact(written)
        header = base64.b64encode(f"{before}{secret}".encode()).decode()
        assert "[redacted]" in redact(f"Basic {header}")


@pytest.mark.parametrize("user", ["", "u", "us", "user"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_the_header_of_a_user_and_a_password(user: str, encode: Callable[[bytes], bytes]) -> None:
    remember("pass>>>w??rd")
    shown = redact(f"Authorization: Basic {encode(f'{user}:pass>>>w??rd'.encode()).decode()}")
    assert "[redacted]" in shown
    assert len(shown) < len("Authorization: Basic [redacted]") + 2 * len(user) + 6


def test_passwords_of_urls() -> None:
    remember_url("nats://user:pass%20word@a:4222,nats://user:other-word@b:4222")
    remember_url("redis://plain:6379/0")
    remember_url(None)
    assert redact("pass%20word pass word other-word plain") == "[redacted] [redacted] [redacted] plain"


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("redis://:with,comma@host:6379/0", "with,comma"),
        ("redis://:with/slash@host:6379/0", "with/slash"),
        ("redis://:with@sign@host", "with@sign"),
        ("nats://a-token-alone@host:4222", "a-token-alone"),
        ("https://host/?token=in-a-query&x=1", "in-a-query"),
        ("https://host/?token=in%2Da%2Fquery", "in-a/query"),
        ("https://host/?x=long-enough-to-be-one", "long-enough-to-be-one"),
        ("redis://host/0?password=in-a-query", "in-a-query"),
        ("https://[broken:secret-word@host", "secret-word"),
    ],
)
def test_secrets_of_odd_urls(url: str, secret: str) -> None:
    remember_url(url)
    assert redact(f"it is {secret}") == "it is [redacted]"
    assert secret not in redact(f"cannot reach {url}")


def test_what_an_environment_calls_a_secret() -> None:
    remember_environment(
        {
            "POSTGRES_PASSWORD": "the-password",
            "VAULT_TOKEN": "the-token",
            "openai_api_key": "the-key",
            "AWS_SECRET_ACCESS_KEY": "the-other-key",
            "OPENAI_BASE_URL": "https://user:in-the-url@host",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20the-header, x-team=the-team",
            "POSTGRES_HOST": "some-host",
            "LANG": "some-language",
        }
    )
    told = "the-password the-token the-key the-other-key in-the-url the-header the-team some-host some-language"
    assert redact(told) == " ".join(["[redacted]"] * 7) + " some-host some-language"


@pytest.mark.parametrize("named", [{}, {"POSTGRES_USER": "postgres"}])
def test_a_password_that_is_the_users_name_is_none(named: dict[str, str]) -> None:
    remember_environment({"POSTGRES_PASSWORD": "postgres", **named})
    assert redact("postgres") == "postgres"


def test_in_what_is_not_ours_only_long_secrets_are_replaced() -> None:
    remember("password", "long-enough-to-be-no-word")
    said = {"text": ["the password is long-enough-to-be-no-word"], "n": 1}
    assert redact_value(said, LONG) == {"text": ["the password is [redacted]"], "n": 1}
    assert redact_value(said) == {"text": ["the [redacted] is [redacted]"], "n": 1}


def test_what_holds_no_secret_stays_the_same_object() -> None:
    remember("secret")
    value = {"a": [1, "b", {"c": None}]}
    assert redact_value(value) is value
    document = '{"a" :  1}'
    assert redact_json(document) is document


@pytest.mark.parametrize("secret", ['"secret', 'secret"', "nsecret", "u0041bc", ',"bc":'])
def test_json_stays_json_whatever_the_secret(secret: str) -> None:
    remember(secret)
    value = {"a": f"x{secret}", "b": "\nsecret", "c": "\u0041bc", "secret": "secret"}
    found = json.loads(redact_json(json.dumps(value)))
    assert found["a"] == "x[redacted]"


@pytest.mark.parametrize(
    "name",
    [
        *("OPENAI_API_KEY", "OPENAI_KEY", "ENCRYPTION_KEY", "DB_PWD", "DB_PASSPHRASE", "GITHUB_PAT", "APP_CREDENTIALS"),
        *("DB_PASSWORD", "PGPASSWORD", "AUTH_TOKEN", "ACCESSTOKEN", "CLIENT_SECRET", "VAULT_SECRET_ID", "db_pass"),
    ],
)
def test_a_variable_that_is_called_like_a_secret_is_one(name: str) -> None:
    remember_environment({name: "value-of-it"})
    assert redact("the value-of-it") == "the [redacted]"


@pytest.mark.parametrize("name", ["BYPASS", "PROXY_AUTH", "KEYBOARD", "COMPASS", "POSTGRES_HOST", "MONKEY"])
def test_a_variable_that_is_not_is_none(name: str) -> None:
    remember_environment({name: "value-of-it"})
    assert redact("the value-of-it") == "the value-of-it"


def test_the_user_of_a_url_is_no_secret_unless_it_is_a_token() -> None:
    remember_url("redis://default@host/0")
    assert redact("a default field") == "a default field"
    remember_url("nats://tokentoken@host")
    remember_url("https://ghp_0123456789abcdef@host/")
    assert redact("tokentoken ghp_0123456789abcdef") == "[redacted] [redacted]"


@settings(deadline=None)
@given(st.integers(1, 300_000))
def test_backslashes_take_no_more_time_than_other_text(count: int) -> None:
    """Quadratic time would show: minutes for the largest."""
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        remember("#Kx9-aaaa-1234-5678", "\\back-bbbb")
        text = "\\" * count + " aaaa bbbb"
        assert redact(text) == text


def test_of_tokens_that_follow_each_other_the_last_are_known() -> None:
    remember("kept-for-ever")
    for number in range(100):
        redaction.remember_latest("token", f"token-number-{number:03}")
    assert redact("token-number-099 token-number-092 kept-for-ever") == "[redacted] [redacted] [redacted]"
    assert redact("token-number-000") == "token-number-000"
    assert len(redaction._known) == 9
