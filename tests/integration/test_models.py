"""The providers' own packages against a server that speaks their APIs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hvac
import pytest
from llmock.scenarios import Behavior, Fail, Reply, ToolCall
from llmock.testing import LLMockServer

from tests.definitions import adder
from tests.integration.fixtures.nats import messages
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Service, surroundings
from tier3.stack import Nats, Redis, Stack


class ModelServer:
    """An OpenAI- and Anthropic-compatible server that answers with a script, one turn a request."""

    def __init__(self, server: LLMockServer) -> None:
        self._server = server
        self.openai_url = server.base_url("openai")
        self.anthropic_url = server.base_url("anthropic")

    def script(self, *turns: Behavior) -> None:
        """Answer the coming requests with these turns."""
        self._server.state.scenarios.clear()
        self._server.state.journal.clear()
        self._server.state.scenarios.add(*turns)

    @property
    def requests(self) -> list[Any]:
        """Request bodies received, in order."""
        return [record.body for record in self._server.state.journal.records(wait=2.0)]


@pytest.fixture(scope="module")
def model_server() -> Iterator[ModelServer]:
    with LLMockServer() as server:
        yield ModelServer(server)


@pytest.fixture(scope="module")
def service(
    stack: Stack, template: str, model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service that has keys: OpenAI's in Vault, Anthropic's in its environment. It shares nothing of its own."""
    stack.postgres.create_database("models", template)
    client = hvac.Client(url=stack.vault.addr, token=stack.vault.token)
    secret = {"api_key": OPENAI_KEY, "base_url": model_server.openai_url}
    client.secrets.kv.v2.create_or_update_secret("of-models/llm-providers/openai", secret=secret)
    environment = {
        "VAULT_PATH": "of-models",
        "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
        "ANTHROPIC_BASE_URL": model_server.anthropic_url,
    }
    directory = tmp_path_factory.mktemp("models")
    with Nats(directory) as nats, Redis(directory) as redis:
        place = surroundings(Database(stack.postgres, "models"), nats, redis, stack)
        one = Service(place | environment, directory / "service.log")
        yield one.ready()
        one.close()


def asking(provider: str) -> dict[str, Any]:
    """The adder with this provider's models."""
    definition = adder()
    for node in definition["nodes"]:
        node["config"]["model"] = {"provider": provider, "model": "mock-1"}
    return definition


pytestmark = pytest.mark.xdist_group("models")
OPENAI_KEY = "key-of-openai"
ANTHROPIC_KEY = "key-of-anthropic"
TURNS = (
    Reply(tool_calls=(ToolCall("task", {"subagent_type": "Calculator", "description": "2+3?"}),)),
    Reply(tool_calls=(ToolCall("add_numbers", {"a": 2, "b": 3}),)),
    Reply(text="It is 5, said the Calculator"),
    Reply(text="The sum of both is 5"),
)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_provider_streams_and_calls_tools(service: Service, model_server: ModelServer, provider: str) -> None:
    model_server.script(*TURNS)
    done = service.run(asking(provider), f"by-{provider}")
    assert done["status"] == "completed", done["error"]
    assert done["result"]["output"] == "The sum of both is 5"
    events = stored_events(service.environment["REDIS_URL"], f"by-{provider}")
    tokens = [each["data"] for each in events if each["event_type"] == "on_llm_stream" and not each["data"]["path"]]
    assert len([each for each in tokens if each["content"]]) > 1
    assert [each["data"]["name"] for each in events if each["event_type"] == "on_tool_end"] == ["add_numbers", "task"]
    requests = model_server.requests
    assert len(requests) == len(TURNS)
    assert all(request["stream"] for request in requests)
    assert not {OPENAI_KEY, ANTHROPIC_KEY} & set(service.log.read_text().split('"'))


def contract(name: str) -> Any:
    """One of the definitions that callers rely on, word for word."""
    return json.loads((Path(__file__).parent / "contract" / f"{name}.json").read_text())


def test_the_greeter_greets(service: Service, model_server: ModelServer) -> None:
    model_server.script(Reply(text="Hello!"))
    assert service.run(contract("greeter"), "greeter")["result"] == {"output": "Hello!", "status": "completed"}
    [request] = model_server.requests
    assert request["model"] == "gpt-4.1-mini"
    assert "Reply with one short greeting." in str(request["messages"])


def test_the_adder_adds_with_models_of_two_providers(service: Service, model_server: ModelServer) -> None:
    model_server.script(*TURNS)
    done = service.run(contract("adder"), "contract-adder")
    assert done["status"] == "completed", done["error"]
    assert done["result"]["output"] == "The sum of both is 5"
    haiku, gpt = "claude-3-5-haiku-latest", "gpt-4.1-mini"
    assert [request["model"] for request in model_server.requests] == [gpt, haiku, haiku, gpt]
    assert "5" in str(model_server.requests[2]["messages"][-1])


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_names_hold_spaces_and_are_used_as_they_are(service: Service, model_server: ModelServer, provider: str) -> None:
    ask = ToolCall("task", {"subagent_type": "My Calculator (v2)", "description": "2+3?"})
    model_server.script(Reply(tool_calls=(ask,)), *TURNS[1:])
    definition = asking(provider)
    definition["nodes"][0]["config"]["name"] = "Team Lead"
    definition["nodes"][1]["config"]["name"] = "My Calculator (v2)"
    done = service.run(definition, f"spaces-{provider}")
    assert done["status"] == "completed", done["error"]


def test_a_key_that_a_provider_repeats_is_seen_nowhere(service: Service, model_server: ModelServer) -> None:
    for key in (OPENAI_KEY, ANTHROPIC_KEY):
        model_server.script(Fail(401, message=f"Incorrect API key provided: {key}"))
        done = service.run(asking("openai" if key == OPENAI_KEY else "anthropic"), f"repeats-{key}"[:16])
        assert "Incorrect API key provided: [redacted]" in done["error"]["message"]
        shown = service.http.get(f"/v1/jobs/{done['job_id']}/events").text
        assert key not in str(done) + shown + service.log.read_text()


def test_a_refused_key_fails_the_job_at_once(service: Service, model_server: ModelServer) -> None:
    model_server.script(Fail(401))
    done = service.run(asking("openai"), "bad-key")
    assert done["status"] == "failed"
    assert done["error"]["type"] == "OpenAIAuthenticationError"
    assert done["attempt"] == 1
    assert len(model_server.requests) == 1
    assert OPENAI_KEY not in str(done)


def impatient() -> dict[str, Any]:
    """The adder with a provider whose package does not try again by itself."""
    definition = asking("openai")
    for node in definition["nodes"]:
        node["config"]["model"]["max_retries"] = 0
    return definition


@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_provider_is_asked_again_and_nothing_else_is_repeated(
    service: Service, model_server: ModelServer, status: int
) -> None:
    model_server.script(*TURNS[:2], Fail(status), *TURNS[2:])
    done = service.run(impatient(), f"overloaded-{status}")
    assert (done["status"], done["attempt"], done["error"]) == ("completed", 2, None)
    assert len(model_server.requests) == len(TURNS) + 1
    events = stored_events(service.environment["REDIS_URL"], f"overloaded-{status}")
    tools = [each["data"]["name"] for each in events if each["event_type"] == "on_tool_end"]
    assert tools.count("add_numbers") == 1
    [warning] = [each["data"] for each in events if each["event_type"] == "warning"]
    assert warning["about"] == "retry"
    assert warning["message"].startswith("attempt 1 of 3 failed, and the job is tried again: ")


def test_while_it_waits_for_its_next_try_a_job_says_why_and_when(service: Service, model_server: ModelServer) -> None:
    model_server.script(Fail(503), Fail(503), *TURNS)
    service.submit(impatient(), "waiting")
    service.until(lambda: service.job("waiting")["error"], "the job does not fail")
    waiting = service.job("waiting")
    assert (waiting["status"], waiting["attempt"]) == ("queued", 1)
    assert waiting["due_at"] > waiting["updated_at"]
    assert service.ended("waiting")["attempt"] == 3


async def test_a_provider_that_stays_overloaded_fails_the_job_for_good(
    service: Service, model_server: ModelServer
) -> None:
    model_server.script(Fail(503), Fail(503), Fail(503))
    done = await asyncio.to_thread(service.run, impatient(), "given-up")
    assert (done["status"], done["attempt"]) == ("failed", 3)
    assert len(model_server.requests) == 3
    [(dead, headers)] = await messages(service.environment["NATS_URL"], "AGENT_DEAD", "agent.dead.attempts", "given-up")
    assert dead["data"]["agent_definition"] == impatient()
    assert "503" in headers["Agent-Error"]
    model_server.script(*TURNS)
    assert service.http.post("/v1/jobs/given-up/redrive").status_code == 202
    again = await asyncio.to_thread(service.ended, "given-up")
    assert (again["status"], again["attempt"]) == ("completed", 1)
