"""models: provider and name -> chat model; keys and addresses come from the operator only."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI

from agent_executor import models
from agent_executor.definition import ModelChoice
from agent_executor.errors import InvalidInput, ModelUnavailable
from agent_executor.scripted import ScriptedChatModel

CREDENTIALS = {"api_key": "operators-key", "base_url": "http://operator.example"}
CANARY = "canary-4711"


def choice(provider: str, **options: Any) -> ModelChoice:
    return ModelChoice.model_validate({"provider": provider, "model": "some-model", **options})


def test_the_scripted_model_needs_no_key() -> None:
    model = models.create(choice("scripted", replies=[{"text": "hello"}]), {})
    assert isinstance(model, ScriptedChatModel)
    assert model.replies[0].text == "hello"


def test_openai() -> None:
    model = models.create(choice("openai", temperature=0.5), CREDENTIALS)
    assert isinstance(model, ChatOpenAI)
    assert (model.model_name, model.temperature) == ("some-model", 0.5)
    assert model.openai_api_base == "http://operator.example"
    assert model.openai_api_key.get_secret_value() == "operators-key"  # type: ignore[union-attr]


def test_anthropic() -> None:
    model = models.create(choice("anthropic", max_tokens=100), CREDENTIALS)
    assert isinstance(model, ChatAnthropic)
    assert (model.model, model.max_tokens) == ("some-model", 100)
    assert model.anthropic_api_url == "http://operator.example"
    assert model.anthropic_api_key.get_secret_value() == "operators-key"


def test_ollama_needs_no_key() -> None:
    model = models.create(choice("ollama"), {"base_url": "http://operator.example"})
    assert isinstance(model, ChatOllama)
    assert (model.model, model.base_url) == ("some-model", "http://operator.example")


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_missing_key_says_where_it_may_be_put(provider: str) -> None:
    with pytest.raises(ModelUnavailable) as raised:
        models.create(choice(provider, api_key=CANARY), {})
    message = str(raised.value)
    assert f"{provider.upper()}_API_KEY" in message
    assert f"llm-providers/{provider}" in message
    assert CANARY not in message


def test_an_unknown_provider_is_told_which_are_known() -> None:
    with pytest.raises(ModelUnavailable, match="known are anthropic, ollama, openai, scripted"):
        models.create(choice("nobody"), {})


@pytest.mark.parametrize("option", ["api_key", "base_url", "openai_api_key", "openai_api_base", "openai_proxy"])
def test_a_definition_does_not_choose_where_openais_key_goes(option: str) -> None:
    with suppress(InvalidInput):  # refused, or without effect
        model: Any = models.create(choice("openai", **{option: "http://canary.example"}), CREDENTIALS)
        assert model.openai_api_base == "http://operator.example"
        assert model.openai_api_key.get_secret_value() == "operators-key"
        assert model.openai_proxy is None


@pytest.mark.parametrize("option", ["api_key", "base_url", "anthropic_api_key", "anthropic_api_url", "anthropic_proxy"])
@pytest.mark.parametrize("credentials", [CREDENTIALS, {"api_key": "operators-key"}])
def test_a_definition_does_not_choose_where_anthropics_key_goes(option: str, credentials: dict[str, str]) -> None:
    with suppress(InvalidInput):  # refused, or without effect
        model: Any = models.create(choice("anthropic", **{option: "http://canary.example"}), credentials)
        assert model.anthropic_api_url == credentials.get("base_url", "https://api.anthropic.com")
        assert model.anthropic_api_key.get_secret_value() == "operators-key"
        assert model.anthropic_proxy is None


def test_bad_options_are_named_and_not_repeated() -> None:
    with pytest.raises(InvalidInput) as raised:
        models.create(choice("scripted", replies=[{"text": [CANARY]}, {"delay_ms": -1}]), {})
    assert [finding.field for finding in raised.value.findings] == ["model.replies[0].text"]
    assert CANARY not in str(raised.value)


def test_a_scripted_model_is_named_as_the_definition_says() -> None:
    made = models.create(choice("scripted", replies=[{"text": "x"}]), {})
    assert made.name == choice("scripted").model


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama"])
@pytest.mark.parametrize("option", ["stream_usage", "default_headers", "http_client", "custom"])
def test_an_option_that_is_not_a_definitions_is_refused_by_name(provider: str, option: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        models.create(choice(provider, **{option: CANARY}), CREDENTIALS)
    assert [finding.field for finding in raised.value.findings] == [f"model.{option}"]
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama"])
def test_sampling_is_the_definitions(provider: str) -> None:
    made: Any = models.create(choice(provider, temperature=0.5), CREDENTIALS)
    assert made.temperature == 0.5


def test_openais_models_of_other_apis_run_only_when_they_are_asked_for() -> None:
    code = """
import sys
from agent_executor import models
models.load_client("openai")
models.load("openai")
def count():
    return sum(name.startswith("openai.types.responses.") for name in sys.modules)
before = count()
from openai.types.responses import Response
import openai
print(before < 10, Response.__name__, openai.types.responses.Response is Response, count() > 100)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout == "True Response True True\n"
