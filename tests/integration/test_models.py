"""The providers' own packages against a server that speaks their APIs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hvac
import pytest
from llmock.scenarios import Behavior, Fail, Reply, ToolCall
from llmock.testing import LLMockServer

from tests.definitions import adder
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Starter
from tier3.stack import Stack


class ModelServer:
    """An OpenAI- and Anthropic-compatible server that answers with a script, one turn a request."""

    def __init__(self, server: LLMockServer) -> None:
        self._server = server
        self.openai_url = server.base_url("openai")
        self.anthropic_url = server.base_url("anthropic")

    def script(self, *turns: Behavior) -> None:
        """Answer the coming requests with these turns."""
        self._server.state.scenarios.clear()
        self._server.state.scenarios.add(*turns)

    @property
    def requests(self) -> list[Any]:
        """Request bodies received, in order."""
        return [record.body for record in self._server.state.journal.records(wait=2.0)]


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    with LLMockServer() as server:
        yield ModelServer(server)


def asking(provider: str) -> dict[str, Any]:
    """The adder with this provider's models."""
    definition = adder()
    for node in definition["nodes"]:
        node["config"]["model"] = {"provider": provider, "model": "mock-1"}
    return definition


TURNS = (
    Reply(tool_calls=(ToolCall("task", {"subagent_type": "Calculator", "description": "2+3?"}),)),
    Reply(tool_calls=(ToolCall("add_numbers", {"a": 2, "b": 3}),)),
    Reply(text="It is 5, said the Calculator"),
    Reply(text="The sum of both is 5"),
)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_provider_streams_and_calls_tools(start_service: Starter, model_server: ModelServer, provider: str) -> None:
    address = {"openai": model_server.openai_url, "anthropic": model_server.anthropic_url}[provider]
    name = provider.upper()
    service = start_service(**{f"{name}_BASE_URL": address, f"{name}_API_KEY": "key-1"}).ready()
    model_server.script(*TURNS)
    done = service.run(asking(provider), f"by-{provider}")
    assert done["status"] == "completed", done["error"]
    assert done["result"]["output"] == "The sum of both is 5"
    events = stored_events(service.environment["REDIS_URL"], f"by-{provider}")
    tokens = [each["data"] for each in events if each["event_type"] == "on_llm_stream" and not each["data"]["path"]]
    assert len([each for each in tokens if each["content"]]) > 1
    assert [each["data"]["name"] for each in events if each["event_type"] == "on_tool_end"] == ["add_numbers", "task"]
    assert len(model_server.requests) == len(TURNS)
    assert all(request["stream"] for request in model_server.requests)
    assert "key-1" not in service.log.read_text()


def test_key_and_address_from_vault(start_service: Starter, model_server: ModelServer, stack: Stack) -> None:
    client = hvac.Client(url=stack.vault.addr, token=stack.vault.token)
    secret = {"api_key": "key-2", "base_url": model_server.openai_url}
    client.secrets.kv.v2.create_or_update_secret("agent-executor/llm-providers/openai", secret=secret)
    try:
        service = start_service().ready()
        model_server.script(*TURNS)
        assert service.run(asking("openai"), "by-vault")["result"]["output"] == "The sum of both is 5"
        assert "key-2" not in service.log.read_text()
    finally:
        client.secrets.kv.v2.delete_metadata_and_all_versions("agent-executor/llm-providers/openai")


def test_a_refused_key_fails_the_job_at_once(start_service: Starter, model_server: ModelServer) -> None:
    service = start_service(OPENAI_BASE_URL=model_server.openai_url, OPENAI_API_KEY="key-3").ready()
    model_server.script(Fail(401))
    done = service.run(asking("openai"), "bad-key")
    assert done["status"] == "failed"
    assert done["error"]["type"] == "OpenAIAuthenticationError"
    assert done["attempt"] == 1
    assert len(model_server.requests) == 1
