"""Jobs that wait for people: asked by a tool, by a graph or for an approval, and answered by every way in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.definitions import EXAMPLES, agent, answer, specialist, tool
from tests.integration.fixtures.migrations import rows
from tests.integration.fixtures.nats import messages, publish
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Service, Starter
from tests.integration.test_control import events

ASKS = """
from langchain.tools import ToolRuntime
from langchain_core.tools import tool
from langgraph.types import interrupt

@tool
def ask(question: str, times: int = 1, runtime: ToolRuntime = None) -> str:
    "Ask a person, so many times."
    key = runtime.config["configurable"]["idempotency_key"]
    answers = [interrupt({"question": question, "number": number, "key": key}) for number in range(1, times + 1)]
    return f"{question}: {answers} {key}"
"""
PAYS = """
from langchain_core.tools import tool

@tool
def pay(to: str, amount: int) -> str:
    "Pay somebody."
    return f"paid {amount} to {to}"
"""
ASK, PAY = tool("ask", ASKS), tool("pay", PAYS)
GRAPH = """
import operator
from typing import Annotated, TypedDict
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from pydantic import BaseModel

class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]

class Price(BaseModel):
    amount: int

def price(state):
    return {"said": [f"price: {interrupt('how much', response_schema=Price).amount}"]}

def node(name, times):
    return lambda state: {"said": [f"{name}: {[interrupt(f'{name}{number}') for number in range(times)]}"]}

class Inner(TypedDict, total=False):
    said: list[str]

inner = StateGraph(Inner)
inner.add_node("deep", node("deep", 2))
inner.add_edge(START, "deep")
graph = StateGraph(State)
graph.add_node("one", node("one", 1))
graph.add_node("two", inner.compile())
graph.add_edge(START, "one")
graph.add_node("price", price)
graph.add_edge("one", "two")
graph.add_edge("two", "price")
"""
APPROVE, REJECT = {"type": "approve"}, {"type": "reject", "message": "too much"}


def asking(question: str = "how", times: int = 1) -> dict[str, Any]:
    """A definition whose root asks with a tool and says what that returned."""
    call = {"name": "ask", "args": {"question": question, "times": times}}
    return agent([{"tool_calls": [call]}, {"text": "{last}"}], tools=[ASK])


def paying(*calls: dict[str, Any], interrupt_on: Any = ("pay",)) -> dict[str, Any]:
    """A definition whose root pays, if it may."""
    wanted = [{"name": "pay", "args": call} for call in calls or [{"to": "Ann", "amount": 5}]]
    return agent([{"tool_calls": wanted}, {"text": "{last}"}], tools=[PAY], interrupt_on=interrupt_on)


def asked_next(service: Service, job_id: str, before: list[Any]) -> dict[str, Any]:
    """The one thing that the job asks once it asks something else than `before`."""
    found: dict[str, Any] = service.until(
        lambda: next((each for each in service.interrupted(job_id) if each["value"] not in before), None),
        f"{job_id} asks nothing more",
    )
    return found


def by_http(service: Service, job_id: str, value: Any, **more: Any) -> None:
    response = service.resume(job_id, value, **more)
    assert (response.status_code, response.json()) == (202, {"job_id": job_id, "status": "queued"})


def by_event(service: Service, job_id: str, value: Any) -> None:
    response = service.http.post(
        "/", json=answer(job_id, value), headers={"Content-Type": "application/cloudevents+json"}
    )
    assert (response.status_code, response.headers["location"]) == (202, f"/v1/jobs/{job_id}")


def by_binary_event(service: Service, job_id: str, value: Any) -> None:
    event = answer(job_id, value)
    headers = {f"ce-{name}": word for name, word in event.items() if name != "data"}
    assert service.http.post("/", json=event["data"], headers=headers).status_code == 202


def by_nats(service: Service, job_id: str, value: Any) -> None:
    asyncio.run(publish(service.environment["NATS_URL"], answer(job_id, value)))


WAYS: list[Callable[[Service, str, Any], None]] = [by_http, by_event, by_binary_event, by_nats]


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_asks_and_goes_on_with_the_answer(service: Service, way: Callable[[Service, str, Any], None]) -> None:
    job_id = f"asks-{way.__name__}"
    service.submit(asking(), job_id)
    [asked] = service.interrupted(job_id)
    assert asked["value"].keys() == {"question", "number", "key"}
    assert service.job(job_id)["finished_at"] is None
    way(service, job_id, {"so": "well"})
    done = service.ended(job_id)
    assert done["result"]["output"] == f"how: [{{'so': 'well'}}] {asked['value']['key']}"
    assert done["interrupts"] is None
    assert 'agent_executor_jobs_total{status="interrupted"}' in service.http.get("/metrics").text


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}, "x", {"a" * 32: 1}])
def test_any_json_is_an_answer(service: Service, value: Any) -> None:
    job_id = f"any-{json.dumps(value)}"
    service.submit(asking(), job_id)
    service.interrupted(job_id)
    assert service.resume(job_id, value).status_code == 202
    assert service.ended(job_id)["result"]["output"].startswith(f"how: [{value!r}] ")


def test_two_questions_of_one_tool_are_answered_in_their_order(service: Service) -> None:
    service.submit(asking(times=2), "twice")
    [first] = service.interrupted("twice")
    by_http(service, "twice", "a", interrupt_id=first["id"])
    second = asked_next(service, "twice", [first["value"]])
    assert (first["value"]["number"], second["value"]["number"]) == (1, 2)
    assert first["id"] != second["id"]
    assert service.resume("twice", "a", first["id"]).json()["status"] == "interrupted"  # the same again
    refused = service.resume("twice", "b", first["id"])
    assert (refused.status_code, refused.json()["error"]["type"]) == (409, "Conflict")
    by_http(service, "twice", "b", interrupt_id=second["id"])
    assert service.ended("twice")["result"]["output"].startswith("how: ['a', 'b'] ")


def in_parallel() -> dict[str, Any]:
    def helper(name: str) -> dict[str, Any]:
        call = {"name": "ask", "args": {"question": name}}
        return specialist(name, [{"tool_calls": [call]}, {"text": f"{name} says {{last}}"}], ["ask"])

    tasks = [
        {"name": "task", "args": {"subagent_type": name, "description": "go"}, "id": name} for name in ("Ann", "Bob")
    ]
    calls = [{key: value for key, value in task.items() if key != "id"} for task in tasks]
    return agent([{"tool_calls": calls}, {"text": "done"}], tools=[ASK], specialists=[helper("Ann"), helper("Bob")])


@pytest.mark.parametrize("order", [("Ann", "Bob"), ("Bob", "Ann")], ids="-".join)
@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
def test_two_specialists_ask_at_once(service: Service, order: tuple[str, str], together: bool) -> None:
    job_id = f"parallel-{order[0]}-{together}"
    service.submit(in_parallel(), job_id)
    asked = {each["value"]["question"]: each for each in service.interrupted(job_id, 2)}
    refused = service.resume(job_id, "x")
    assert refused.status_code == 400
    [field] = refused.json()["error"]["fields"]
    assert field["field"] == "interrupt_id"
    assert all(each["id"] in field["message"] for each in asked.values())
    first, second = order
    by_http(service, job_id, f"to {first}", interrupt_id=asked[first]["id"])
    if not together:
        assert service.interrupted(job_id) == [asked[second]]
    response = service.resume(job_id, f"to {second}", asked[second]["id"])
    assert response.status_code == 202, response.text
    assert service.ended(job_id)["result"]["output"] == "done"
    messages = [each for each in events(service, job_id) if each["event_type"] == "on_state_update"][-1]["data"]
    said = [each["content"] for each in messages["messages"] if each["role"] == "tool"]
    for name, words in zip(("Ann", "Bob"), said, strict=True):
        assert words == f"{name} says {name}: ['to {name}'] {asked[name]['value']['key']}"


@pytest.mark.parametrize(
    ("decision", "output"),
    [
        (APPROVE, "paid 5 to Ann"),
        ({"decisions": [APPROVE]}, "paid 5 to Ann"),
        (
            {"type": "edit", "edited_action": {"name": "pay", "args": {"to": "Ann", "amount": 4}}},
            "paid 4 to Ann",
        ),
        (REJECT, "User rejected the tool call for `pay` with reason: too much"),
        ({"type": "respond", "message": "it was paid"}, "it was paid"),
    ],
)
def test_a_call_is_approved_edited_rejected_or_answered(service: Service, decision: Any, output: str) -> None:
    job_id = f"pay-{json.dumps(decision)[:30]}-{output[:9]}"
    service.submit(paying(), job_id)
    [asked] = service.interrupted(job_id)
    assert asked["value"] == {
        "action_requests": [
            {
                "name": "pay",
                "args": {"to": "Ann", "amount": 5},
                "description": "Tool execution requires approval\n\nTool: pay\nArgs: {'to': 'Ann', 'amount': 5}",
            }
        ],
        "review_configs": [{"action_name": "pay", "allowed_decisions": ["approve", "edit", "reject", "respond"]}],
    }
    by_nats(service, job_id, decision)
    assert service.ended(job_id)["result"]["output"].endswith(output)


def test_calls_of_one_turn_are_decided_together(service: Service) -> None:
    asked = {"pay": {"allowed_decisions": ["approve", "reject"], "description": "Pay?"}}
    service.submit(paying({"to": "Ann", "amount": 1}, {"to": "Bob", "amount": 2}, interrupt_on=asked), "batch")
    [interrupt] = service.interrupted("batch")
    assert [each["description"] for each in interrupt["value"]["action_requests"]] == ["Pay?", "Pay?"]
    for wrong, fields in (
        (APPROVE, ["value"]),
        ({"decisions": [APPROVE]}, ["value.decisions"]),
        ({"decisions": [APPROVE, {"type": "respond", "message": "canary"}]}, ["value.decisions[1].type"]),
        (None, ["value"]),
    ):
        refused = service.resume("batch", wrong)
        assert refused.status_code == 400
        assert [each["field"] for each in refused.json()["error"]["fields"]] == fields
        assert "canary" not in refused.text
    assert service.interrupted("batch") == [interrupt]
    by_http(service, "batch", {"decisions": [REJECT, APPROVE]})
    done = service.ended("batch")
    assert done["status"] == "completed"
    seen = [each for each in events(service, "batch") if each["event_type"] == "on_tool_end"]
    assert [each["data"]["result"] for each in seen] == ["paid 2 to Bob"]


@pytest.mark.parametrize(("own", "asks"), [({}, True), ({"interrupt_on": []}, False)], ids=["the root's", "its own"])
def test_a_specialist_asks_as_the_root_does_unless_it_says_otherwise(
    service: Service, own: dict[str, Any], asks: bool
) -> None:
    job_id = f"inherits-{asks}"
    call = {"name": "pay", "args": {"to": "Ann", "amount": 5}}
    helper = specialist("Helper", [{"tool_calls": [call]}, {"text": "{last}"}], ["pay"], **own)
    task = {"name": "task", "args": {"subagent_type": "Helper", "description": "go"}}
    definition = agent(
        [{"tool_calls": [task]}, {"text": "{last}"}], tools=[PAY], specialists=[helper], interrupt_on=["pay"]
    )
    service.submit(definition, job_id)
    if asks:
        service.interrupted(job_id)
        by_http(service, job_id, APPROVE)
    assert service.ended(job_id)["result"]["output"] == "paid 5 to Ann"
    interrupts = [each for each in events(service, job_id) if each["event_type"] == "on_interrupt"]
    assert len(interrupts) == asks


def test_a_call_of_a_specialist_is_approved_too(service: Service) -> None:
    helper = specialist("Helper", [{"text": "helped"}])
    task = {"name": "task", "args": {"subagent_type": "Helper", "description": "go"}}
    definition = agent([{"tool_calls": [task]}, {"text": "{last}"}], specialists=[helper], interrupt_on=["task"])
    service.submit(definition, "built-in")
    [asked] = service.interrupted("built-in")
    assert asked["value"]["action_requests"][0]["args"] == task["args"]
    by_http(service, "built-in", APPROVE)
    assert service.ended("built-in")["result"]["output"] == "helped"


def test_the_general_purpose_specialist_asks_as_the_root_does(service: Service) -> None:
    """It plays the root's script, and has no task to call."""
    task = {"name": "task", "args": {"subagent_type": "general-purpose", "description": "go"}}
    pay = {"name": "pay", "args": {"to": "Ann", "amount": 5}}
    replies: list[dict[str, Any]] = [{"tool_calls": [task]}, {"tool_calls": [pay]}, {"text": "{last}"}]
    service.submit(agent(replies, tools=[PAY], interrupt_on=["pay"]), "general")
    [of_general] = service.interrupted("general")
    by_http(service, "general", APPROVE, interrupt_id=of_general["id"])
    service.until(lambda: (service.job("general")["interrupts"] or [of_general]) != [of_general], "the root asks not")
    [of_root] = service.interrupted("general")
    by_http(service, "general", REJECT, interrupt_id=of_root["id"])
    assert "too much" in service.ended("general")["result"]["output"]
    ends = [each["data"] for each in events(service, "general") if each["event_type"] == "on_tool_end"]
    paid = [each for each in ends if each["name"] == "pay"]
    assert [(each["path"], each["result"]) for each in paid] == [(["general-purpose"], "paid 5 to Ann")]


def test_the_example_asks(service: Service) -> None:
    job = json.loads((EXAMPLES / "approval.json").read_text())
    assert service.http.post("/v1/jobs", json=job).status_code == 202
    [asked] = service.interrupted(job["job_id"])
    assert asked["value"]["action_requests"][0]["description"] == "May I pay this?"
    by_http(service, job["job_id"], APPROVE)
    assert service.ended(job["job_id"])["result"]["output"] == "Done: paid 50 to Ann"


async def test_a_question_that_nats_does_not_take_goes_by_reference(service: Service) -> None:
    service.submit(paying({"to": "x" * 2**20, "amount": 5}), "large-question")
    [asked] = await asyncio.to_thread(service.interrupted, "large-question")
    assert len(asked["value"]["action_requests"][0]["args"]["to"]) == 2**20
    [(announced, _)] = await messages(
        service.environment["NATS_URL"], "AGENT_STATUS", "agent.status.interrupted", "large-question"
    )
    assert announced["dataref"] == "/v1/jobs/large-question"
    assert announced["data"] == {"job_id": "large-question", "interrupts": [{"id": asked["id"]}]}
    by_http(service, "large-question", REJECT)
    assert (await asyncio.to_thread(service.ended, "large-question"))["status"] == "completed"


async def test_everybody_hears_what_is_asked_and_streams_go_on(service: Service) -> None:
    environment = service.environment
    with Redis.from_url(environment["REDIS_URL"]) as client, client.pubsub() as pubsub:
        pubsub.subscribe("langgraph:stream:heard")
        service.submit(asking(), "heard")
        reading = asyncio.create_task(asyncio.to_thread(events, service, "heard"))
        [asked] = await asyncio.to_thread(service.interrupted, "heard")
        [(announced, headers)] = await messages(
            environment["NATS_URL"], "AGENT_STATUS", "agent.status.interrupted", '"heard"'
        )
        assert announced["type"] == "dev.my-platform.agent.interrupted"
        assert announced["data"] == {"job_id": "heard", "interrupts": [asked]}
        assert headers["Nats-Msg-Id"] == announced["id"]
        assert not reading.done()
        by_http(service, "heard", "x")
        seen = await reading
        published: list[dict[str, Any]] = []
        while not published or published[-1]["event_type"] != "end":
            message: Any = await asyncio.to_thread(pubsub.get_message, timeout=5)
            if message["type"] == "message":
                published.append(json.loads(message["data"]))
    assert published == seen
    kinds = [each["event_type"] for each in seen]
    [at] = [index for index, kind in enumerate(kinds) if kind == "on_interrupt"]
    assert seen[at]["data"] == asked
    assert kinds.count("end") == 1
    assert (kinds[:at].count("on_tool_start"), kinds[:at].count("on_tool_end")) == (1, 0)
    assert (kinds[at:].count("on_tool_start"), kinds[at:].count("on_tool_end")) == (1, 1)
    assert "__interrupt__" not in json.dumps(seen)
    assert "Interrupt(" not in json.dumps(seen)


def test_a_repeated_answer_changes_nothing_even_when_more_is_asked(service: Service) -> None:
    """By its event or its request id; without either it is an answer to what is pending then."""
    environment = service.environment
    service.submit(asking(times=3), "repeated")
    [first] = service.interrupted("repeated")
    by_nats(service, "repeated", "a")
    second = asked_next(service, "repeated", [first["value"]])
    by_nats(service, "repeated", "a")
    by_event(service, "repeated", "a")
    assert service.interrupted("repeated") == [second]
    refused = service.http.post(
        "/", json=answer("repeated", "b"), headers={"Content-Type": "application/cloudevents+json"}
    )
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "Conflict")
    by_http(service, "repeated", "b", request_id="r-1")
    asked_next(service, "repeated", [first["value"], second["value"]])
    assert service.resume("repeated", "b", request_id="r-1").json()["status"] == "interrupted"
    by_http(service, "repeated", "c", request_id="r-2")
    assert service.ended("repeated")["result"]["output"].startswith("how: ['a', 'b', 'c'] ")
    assert service.resume("repeated", "c", request_id="r-2").json()["status"] == "completed"
    assert service.resume("repeated", "c").status_code == 409
    assert environment["NATS_URL"]


async def test_answers_that_cannot_be_used_are_buried_and_announce_nothing(service: Service) -> None:
    nats_url = service.environment["NATS_URL"]
    await asyncio.to_thread(service.run, agent([{"text": "x"}]), "no-question")
    service.submit(paying(), "undecided")
    await asyncio.to_thread(service.interrupted, "undecided")
    await publish(nats_url, answer("nobody-there", 1))
    await publish(nats_url, answer("no-question", 1))
    await publish(nats_url, answer("undecided", {"type": "perhaps"}))
    for job_id, reason in (("nobody-there", "not-found"), ("no-question", "conflict"), ("undecided", "invalid")):
        [(buried, headers)] = await messages(nats_url, "AGENT_DEAD", f"agent.dead.{reason}", job_id)
        assert buried["data"]["job_id"] == job_id
        assert headers["Agent-Error"]
    assert "data.value.type: must be one of approve, edit, reject, respond" in headers["Agent-Error"]
    assert service.http.get("/v1/jobs/nobody-there").status_code == 404
    await publish(nats_url, answer("undecided", APPROVE, event_id="another"))
    assert (await asyncio.to_thread(service.ended, "undecided"))["status"] == "completed"
    failed = await asyncio.to_thread(service.run, agent([{"error": "last"}]), "last-to-fail")
    assert failed["status"] == "failed"
    await messages(nats_url, "AGENT_STATUS", "agent.status.failed", "last-to-fail")
    assert "nobody-there" not in str(await announced(nats_url))


async def announced(nats_url: str) -> list[str]:
    """The jobs of all failed events so far."""
    from tests.faults.fixtures.journal import outcomes

    return [*await asyncio.to_thread(outcomes, nats_url)]


def test_what_is_no_answer_is_refused(service: Service) -> None:
    service.submit(asking(), "refuses")
    [asked] = service.interrupted("refuses")
    assert service.resume("nowhere", 1).status_code == 404
    for body, fields in (
        ({}, ["value"]),
        ([1], ["body"]),
        ({"value": 1, "interrupt_id": 5}, ["interrupt_id"]),
        ({"value": 1, "interrupt_id": " ", "request_id": []}, ["interrupt_id", "request_id"]),
    ):
        refused = service.http.post("/v1/jobs/refuses/resume", json=body)
        assert refused.status_code == 400, body
        assert [each["field"] for each in refused.json()["error"]["fields"]] == fields
    assert service.http.post("/v1/jobs/refuses/resume", content=b"{").status_code == 400
    refused = service.resume("refuses", 1, "another")
    assert (refused.status_code, "is interrupted" in refused.text) == (409, True)
    assert service.interrupted("refuses") == [asked]
    by_http(service, "refuses", 1)
    assert service.ended("refuses")["status"] == "completed"


def test_an_interrupted_job_is_cancelled(service: Service) -> None:
    service.submit(asking(), "given-up")
    service.interrupted("given-up")
    assert service.http.post("/v1/jobs/given-up/cancel").json()["status"] == "cancelled"
    refused = service.resume("given-up", 1)
    assert (refused.status_code, "cancelled" in refused.text) == (409, True)
    assert service.job("given-up")["interrupts"] is None
    assert [each["event_type"] for each in events(service, "given-up")][-3:] == ["on_interrupt", "error", "end"]


def test_who_waits_for_the_result_waits_on(service: Service) -> None:
    service.submit(asking(), "waited-for")
    service.interrupted("waited-for")
    headers = {"Content-Type": "application/cloudevents+json"}
    response = service.http.post("/?wait=20", json=answer("waited-for", "x"), headers=headers)
    assert response.status_code == 200
    assert response.json()["data"]["result"]["output"].startswith("how: ['x'] ")


def test_an_interrupted_job_survives_a_restart(start_service: Starter) -> None:
    first = start_service().ready()
    first.submit(asking(times=2), "survives")
    [asked] = first.interrupted("survives")
    first.stop()
    second = start_service().ready()
    assert second.interrupted("survives") == [asked]
    by_http(second, "survives", "a")
    asked_next(second, "survives", [asked["value"]])
    second.stop()
    third = start_service().ready()
    by_http(third, "survives", "b")
    output = third.ended("survives")["result"]["output"]
    assert output == f"how: ['a', 'b'] {asked['value']['key']}"
    kinds = [each["event_type"] for each in stored_events(third.environment["REDIS_URL"], "survives")]
    assert (kinds.count("on_interrupt"), kinds.count("end")) == (2, 1)


HALVES = """
from typing import TypedDict
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt

class State(TypedDict, total=False):
    asks: str
    fails: str

failed = []

def fails(state):
    if not failed:
        failed.append(1)
        raise ConnectionError
    return {"fails": interrupt("fails")}

graph = StateGraph(State)
graph.add_node("asks_first", lambda state: {"asks": interrupt("asks")})
graph.add_node("fails_first", fails)
graph.add_edge(START, "asks_first")
graph.add_edge(START, "fails_first")
"""


def test_who_is_cut_off_goes_on_while_another_asks(start_service: Starter, database: Database) -> None:
    wanted = [{"name": "task", "args": {"description": each, "subagent_type": each}} for each in ("asks", "slow")]
    asks, slow = ({"name": "ask", "args": {"question": each}} for each in ("asks", "slow"))
    document = agent(
        [{"tool_calls": wanted}, {"text": "both"}],
        tools=[ASK],
        specialists=[
            specialist("asks", [{"tool_calls": [asks]}, {"text": "{last}"}], tools=["ask"]),
            specialist("slow", [{"tool_calls": [slow], "delay_ms": 5000}, {"text": "{last}"}], tools=["ask"]),
        ],
    )
    first = start_service(SHUTDOWN_GRACE_S="1").ready()
    first.submit(document, "halves")
    stored = "select count(*) from checkpoint_writes where channel = '__interrupt__' and checkpoint_ns = ''"
    first.until(lambda: rows(database, stored) == [(1,)], "nobody asks")
    first.stop()
    second = start_service().ready()
    assert {each["value"]["question"] for each in second.interrupted("halves", 2)} == {"asks", "slow"}


def test_who_failed_is_tried_again_while_another_asks(start_service: Starter, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(HALVES)
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": {"halves": "./code.py:graph"}}))
    service = start_service(LANGGRAPH_CONFIG=str(tmp_path / "langgraph.json")).ready()
    service.submit({"graph": "halves"}, "retried", input_payload={"asks": ""})
    asked = service.interrupted("retried", 2)
    assert {each["value"] for each in asked} == {"asks", "fails"}
    for each in asked:
        service.resume("retried", each["value"].upper(), interrupt_id=each["id"])
    assert service.ended("retried")["result"]["output"] == {"asks": "ASKS", "fails": "FAILS"}


def test_a_graph_from_code_asks_too(start_service: Starter, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(GRAPH)
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": {"asks": "./code.py:graph"}}))
    service = start_service(LANGGRAPH_CONFIG=str(tmp_path / "langgraph.json")).ready()
    service.submit({"graph": "asks"}, "graph", input_payload={"said": []})
    asked: list[str] = []
    for question in ("one0", "deep0", "deep1"):
        asked.append(asked_next(service, "graph", [*asked])["value"])
        by_http(service, "graph", question.upper())
    assert asked == ["one0", "deep0", "deep1"]
    priced = asked_next(service, "graph", asked)
    assert priced["response_schema"]["properties"] == {"amount": {"title": "Amount", "type": "integer"}}
    by_http(service, "graph", {"amount": "canary"}, request_id="wrong")
    service.until(lambda: service.log.read_text().count('"job_interrupted"') == 5, "it is not asked again")
    assert asked_next(service, "graph", asked) == priced
    by_http(service, "graph", {"amount": 5}, interrupt_id=priced["id"])
    said = ["one: ['ONE0']", "deep: ['DEEP0', 'DEEP1']", "price: 5"]
    assert service.ended("graph")["result"]["output"]["said"] == said
    warnings = [each["data"] for each in events(service, "graph") if each["event_type"] == "warning"]
    [message] = [each["message"] for each in warnings if each["about"] == "interrupt"]
    assert message.startswith("an answer was not taken: value.amount: ")
    assert "canary" not in message
