"""populate_secrets' input: .env files and JSON, with everything that is wrong named and nothing repeated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_executor.models import PROVIDERS
from agent_executor.settings import Settings
from tier3.vault import fields
from tier3.vault.errors import Refused
from tier3.vault.fields import SECRETS, VARIABLES, ill
from tier3.vault.sources import decoded, from_env, from_json

CANARY = "canary4711"
POSTGRES = {"host": "db.example", "port": "5432", "database": "d", "username": "u", "password": "p w$#'"}
CREDS = "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\ny\n"


def refusal(document: Any) -> str:
    with pytest.raises(Refused) as raised:
        from_json(document if isinstance(document, bytes) else json.dumps(document).encode())
    assert CANARY not in str(raised.value)
    return str(raised.value)


def test_json_has_the_shape_of_the_paths() -> None:
    given = {"postgres": POSTGRES | {"port": 5432}, "llm-providers/openai": {"api_key": "k"}}
    assert from_json(json.dumps(given).encode()) == {"postgres": POSTGRES, "llm-providers/openai": {"api_key": "k"}}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "malformed|Expecting"),
        (b"{}", "holds no secret"),
        (b"[]", "must be a JSON object"),
        (b'{"redis": {"url": "redis://h"}, "redis": {}}', "same key twice"),
        (b'{"redis": {"url": NaN}}', "NaN"),
        (b"\xff", "UTF-8"),
        ({"redsi": {"url": CANARY}}, "redsi is no path"),
        ({CANARY: {"url": "x"}}, "name that is none"),
        ({"postgres": CANARY}, "postgres must be an object"),
        ({"postgres": {}}, "postgres must be an object"),
        ({"postgres": {"pasword": CANARY}}, "postgres has no field pasword"),
        ({"postgres": {CANARY: "x"}}, "name that is none"),
        ({"postgres": {"password": None}}, "postgres.password must be a string"),
        ({"postgres": {"password": 4711}}, "postgres.password must be a string"),
        ({"postgres": {"password": ""}}, "postgres.password must be one line"),
        ({"postgres": {"password": f"{CANARY}\n"}}, "postgres.password must be one line"),
        ({"postgres": {"port": True}}, "postgres.port must be a string or a number"),
        ({"postgres": {"port": 0}}, "postgres.port must be a number from"),
        ({"postgres": {"port": "٣"}}, "postgres.port must be a number from"),
        ({"postgres": {"host": "http://h"}}, "postgres.host must be"),
        ({"redis": {"url": f"http://{CANARY}"}}, "redis.url must be"),
        ({"redis": {"url": f"redis://{CANARY}:port"}}, "redis.url must be"),
        ({"nats": {"url": f"nats://h,http://{CANARY}"}}, "nats.url must be"),
        ({"nats": {"url": f"nats://h, nats://{CANARY}"}}, "nats.url must be"),
        ({"nats": {"credentials": CANARY}}, "nats.credentials must be"),
        ({"e2e": {"api_key": f"{CANARY} "}}, "e2e.api_key must be"),
        ({"llm-providers/opanai": {"api_key": CANARY}}, "llm-providers/opanai is no path"),
        ({"llm-providers/openai": {"base_url": f"https://:{CANARY}@h"}}, "llm-providers/openai.base_url must be"),
        ({"llm-providers/openai": {"base_url": f"//{CANARY}"}}, "llm-providers/openai.base_url must be"),
    ],
)
def test_json_that_is_refused(document: Any, said: str) -> None:
    assert any(part in refusal(document) for part in said.split("|"))


def test_everything_that_is_wrong_is_said_at_once() -> None:
    said = refusal({"redsi": {}, "postgres": {"hst": "x", "port": CANARY}, "e2e": {"api_key": ""}})
    assert [part for part in ("redsi", "hst", "postgres.port", "e2e.api_key") if part not in said] == []


def test_a_env_file_names_the_services_variables() -> None:
    text = """
# a comment
export POSTGRES_HOST=db.example
POSTGRES_PORT=5432
POSTGRES_DB="d"
POSTGRES_USER=u  # theirs
POSTGRES_PASSWORD='p w$#\\''
REDIS_URL=rediss://:${HOME}@h:6379/0
NATS_CREDENTIALS="{creds}"
OPENAI_API_KEY=sk-1
OPENAI_BASE_URL=
LOG_LEVEL=debug
PORT=1
""".replace("{creds}", CREDS)
    given, passed = from_env(text)
    assert given == {
        "postgres": POSTGRES,
        "redis": {"url": "rediss://:${HOME}@h:6379/0"},
        "nats": {"credentials": CREDS},
        "llm-providers/openai": {"api_key": "sk-1"},
    }
    assert passed == ["LOG_LEVEL", "PORT"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"POSTGRES_PASWORD={CANARY}", "line 1: POSTGRES_PASWORD is no variable"),
        (f"A=1\n{CANARY}\n", "line 2 is not NAME=VALUE"),
        (f"OPENAI_API_KEY='{CANARY}", "line 1 is not NAME=VALUE"),
        (f"{CANARY}=1", "name that is none"),
        (f"E2E_API_KEY={CANARY}\nE2E_API_KEY=b", "line 2: E2E_API_KEY is there already"),
        (f"POSTGRES_PORT={CANARY}", "POSTGRES_PORT must be a number"),
        ("LOG_LEVEL=info\nE2E_API_KEY=", "holds no secret"),
        ("", "holds no secret"),
    ],
)
def test_a_env_file_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(Refused) as raised:
        from_env(text)
    assert said in str(raised.value)
    assert CANARY not in str(raised.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    assert decoded(b"\xef\xbb\xbfA=1") == "A=1"
    with pytest.raises(Refused, match="byte 1"):
        decoded(b"A\xff")


def test_a_whole_secret_is_judged_field_by_field() -> None:
    assert ill("postgres", POSTGRES) == []
    assert ill("postgres", {"host": "h", "port": CANARY, "database": 1, "username": "u"}) == [
        "password is missing",
        "port must be a number from 1 to 65535",
    ]
    assert ill("llm-providers/ollama", {"base_url": "http://h:11434"}) == []


def test_the_providers_are_those_of_the_service() -> None:
    assert {*fields.PROVIDERS, "scripted"} == {*PROVIDERS}


def test_the_variables_are_those_of_the_service() -> None:
    named = {name.upper() for name in Settings.model_fields}
    own = {"NATS_CREDENTIALS", "E2E_API_KEY"}
    assert {
        name for name in VARIABLES if name not in named and not name.startswith(("OPENAI", "ANTHROPIC", "OLLAMA"))
    } == own
    assert len(VARIABLES) == sum(map(len, SECRETS.values()))
