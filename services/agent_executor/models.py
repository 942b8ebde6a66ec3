"""Provider and model name -> chat model.

Owns the list of providers. A provider's packages are imported when a definition first names it (they cost seconds), and
its key and address come from the environment or Vault, never from the definition.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from . import imports
from .definition import ModelChoice
from .errors import Finding, InvalidInput, ModelUnavailable
from .job import findings_of
from .model_options import wrong_options

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

Credentials = Mapping[str, str]
CredentialSource = Callable[[str], Awaitable[Credentials]]
"""provider -> {api_key, base_url}, either of which may be absent."""


def scripted(choice: ModelChoice, credentials: Credentials) -> BaseChatModel:
    """The deterministic model of demos, tests and benchmarks; needs no key."""
    from .scripted import ScriptedChatModel

    return ScriptedChatModel(replies=_options(choice)["replies"], name=choice.model)


def openai(choice: ModelChoice, credentials: Credentials) -> BaseChatModel:
    """OpenAI and everything that speaks its chat completions."""
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model=choice.model,
        api_key=_key(choice, credentials),
        base_url=credentials.get("base_url"),
        stream_usage=True,
        **_options(choice),
    )


def anthropic(choice: ModelChoice, credentials: Credentials) -> BaseChatModel:
    """Anthropic's messages API."""
    from langchain_anthropic import ChatAnthropic

    key, options = _key(choice, credentials), _options(choice)
    if "base_url" in credentials:
        options["base_url"] = credentials["base_url"]
    return ChatAnthropic(model=choice.model, api_key=key, **options)


def ollama(choice: ModelChoice, credentials: Credentials) -> BaseChatModel:
    """A local Ollama server; needs no key."""
    from langchain_ollama import ChatOllama

    return ChatOllama(model=choice.model, base_url=credentials.get("base_url"), **_options(choice))


_PACKAGES = {
    "anthropic": ("anthropic", "langchain_anthropic"),
    "ollama": ("ollama", "langchain_ollama"),
    "openai": ("openai", "langchain_openai"),
}


_UNUSED = {"openai": ("openai.types", "openai.types.responses")}
"""The models of APIs that chat completions have nothing to do with: half of the modules, and 9 MB."""


def is_loaded(provider: str) -> bool:
    """Whether its packages are imported, as far as it has any."""
    return all(name in sys.modules for name in _PACKAGES.get(provider, ()))


def load_client(provider: str) -> None:
    """Import the provider's own client, which is what takes the time."""
    imports.defer(*_UNUSED.get(provider, ()))
    importlib.import_module(_PACKAGES[provider][0])


def load(provider: str) -> None:
    """Import LangChain's side of it, which takes some hundredths of a second after `load_client`.

    deepagents looks for these modules in `sys.modules` while agents are built and run, and takes one that is half
    imported for a whole one: nothing may be built or run meanwhile.
    """
    importlib.import_module(_PACKAGES[provider][1])


PROVIDERS: Mapping[str, Callable[[ModelChoice, Credentials], BaseChatModel]] = {
    "anthropic": anthropic,
    "ollama": ollama,
    "openai": openai,
    "scripted": scripted,
}


def create(choice: ModelChoice, credentials: Credentials) -> BaseChatModel:
    """The chat model that `choice` names.

    Raises:
        ModelUnavailable: unknown provider, missing key, or options the provider's package refuses.
    """
    make = PROVIDERS.get(choice.provider)
    if make is None:
        known = ", ".join(sorted(PROVIDERS))
        raise ModelUnavailable(f"unknown model provider {choice.provider!r}; known are {known}")
    try:
        return make(choice, credentials)
    except ValidationError as error:
        raise InvalidInput(f"invalid options for provider {choice.provider}", findings_of(error, "model")) from None


def _key(choice: ModelChoice, credentials: Credentials) -> Any:
    if "api_key" not in credentials:
        name = f"{choice.provider.upper()}_API_KEY"
        path = f"llm-providers/{choice.provider}"
        raise ModelUnavailable(
            f"no key for model provider {choice.provider}: set {name}, or api_key at {path} in Vault"
        )
    return credentials["api_key"]


def _options(choice: ModelChoice) -> dict[str, Any]:
    refused = [Finding(f"model.{path}", message) for path, message in wrong_options(choice.provider, choice.options)]
    if refused:
        raise InvalidInput(f"invalid options for provider {choice.provider}", refused)
    return choice.options
