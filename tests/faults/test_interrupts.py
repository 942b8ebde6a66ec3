"""Processes that die around a question: each answer is used once, by the question it was given to."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.definitions import agent, answer, specialist, tool
from tests.faults.fixtures.journal import delivered, ended, outcomes
from tests.faults.test_crashes import LEASE_S, died, nats_ready
from tests.integration.fixtures.migrations import rows, until
from tests.integration.fixtures.nats import publish
from tests.integration.fixtures.postgres import Database
from tests.integration.fixtures.redis import stored_events
from tests.integration.fixtures.service import Service, Starter

_SOURCE = """
import os, subprocess, time
from langchain.tools import ToolRuntime
from langchain_core.tools import tool
from langgraph.types import interrupt

JOURNAL = {journal!r}

@tool
def ask(who: str, runtime: ToolRuntime = None) -> str:
    "Asks twice, and writes down what it heard."
    def note(*words):
        with open(JOURNAL, "a") as file:
            file.write(" ".join([*words, runtime.config["configurable"]["idempotency_key"]]) + "\\n")
        try:
            os.unlink(JOURNAL + ".kill-" + words[0])
        except FileNotFoundError:
            return
        zygote = str(os.getppid())
        os.kill(int(subprocess.check_output(["ps", "-o", "ppid=", "-p", zygote])), {sigkill})
        time.sleep(60)
    note("asks", who, "-")
    first = interrupt(who + "1")
    note("first", who, first)
    second = interrupt(who + "2")
    note("second", who, second)
    return "[" + " ".join([who, first, second]) + "]"
"""
BY_WHOM = pytest.mark.parametrize("by_specialist", [False, True], ids=["root", "specialist"])
OUTPUT = "[Ann Ann1! Ann2!]"


class Asks:
    """Jobs that ask, and what their tools have heard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def job(self, *who: str, by_specialist: bool) -> dict[str, Any]:
        """Each of `who` asks two questions; all at once, by the root's calls or by specialists of that name."""
        ask = tool("ask", _SOURCE.format(journal=str(self.path), sigkill=int(signal.SIGKILL)))
        calls = [{"name": "ask", "args": {"who": each}} for each in who]
        if not by_specialist:
            return agent([{"tool_calls": calls}, {"text": "{last}"}], tools=[ask])
        helpers = [
            specialist(each, [{"tool_calls": [call]}, {"text": "{last}"}], ["ask"])
            for each, call in zip(who, calls, strict=True)
        ]
        tasks = [{"name": "task", "args": {"subagent_type": each, "description": "go"}} for each in who]
        return agent([{"tool_calls": tasks}, {"text": "{last}"}], tools=[ask], specialists=helpers)

    def kill_behind(self, word: str) -> None:
        """Whoever writes this word next kills its worker."""
        self.path.with_name(f"{self.path.name}.kill-{word}").touch()

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()]

    def check(self, *who: str) -> None:
        """Each question has heard its answer and no other, and each call has kept its key."""
        heard = {(word, name, said) for word, name, said, _ in self.lines() if word != "asks"}
        assert heard == {
            (word, each, f"{each}{number}!") for each in who for word, number in (("first", 1), ("second", 2))
        }
        assert len({(name, key) for _, name, _, key in self.lines()}) == len(who)


@pytest.fixture
def asks(tmp_path: Path) -> Asks:
    return Asks(tmp_path / "asks")


def asked(service: Service, *questions: str) -> dict[str, str]:
    """Wait until the job asks just these; returns the ids by question."""
    wanted = sorted(questions)

    def found() -> Any:
        job = service.job("job")
        assert job["status"] not in ("completed", "failed", "cancelled"), job
        pending = {each["value"]: each["id"] for each in job["interrupts"] or []}
        return job["status"] == "interrupted" and sorted(pending) == wanted and pending

    ids: dict[str, str] = service.until(found, f"{wanted} are not asked")
    return ids


def say(service: Service, question: str, interrupt_id: str | None = None) -> None:
    """Answer by NATS, twice, as a broker may deliver it."""
    for _ in range(2):
        event = answer("job", f"{question}!", event_id=f"to {question}", interrupt_id=interrupt_id)
        asyncio.run(publish(service.environment["NATS_URL"], event))


def finished(service: Service, database: Database, output: str = OUTPUT) -> None:
    """The job has ended well, once, and all of its events are there."""
    ended(database, ["job"])
    delivered(database)
    assert service.job("job")["result"]["output"] == output, service.job("job")
    announced = outcomes(service.environment["NATS_URL"])["job"]
    interruptions = rows(database, "select count(*) from outbox where subject = 'agent.status.interrupted'")[0][0]
    assert len(announced) == len(set(announced)) == interruptions + 1
    redis_url = service.environment["REDIS_URL"]
    until(lambda: stored_events(redis_url, "job")[-1]["event_type"] == "end", "no end")


def questions(service: Service) -> list[str]:
    """What readers of the job's events were asked."""
    stored = stored_events(service.environment["REDIS_URL"], "job")
    return [each["data"]["value"] for each in stored if each["event_type"] == "on_interrupt"]


@BY_WHOM
@pytest.mark.parametrize("point", ["before_interrupt", "after_interrupt"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_kill_around_the_record_of_a_question(
    start_service: Starter, asks: Asks, database: Database, point: str, number: int, by_specialist: bool
) -> None:
    """What is asked stands in the checkpoint before it stands in the ledger; readers hear it all the same."""
    service = nats_ready(start_service(LEASE_S=LEASE_S, **({"CRASH_AT": point} if number == 1 else {})))
    service.submit(asks.job("Ann", by_specialist=by_specialist), "job")
    if number == 2:
        asked(service, "Ann1")
        service.stop()
        service = nats_ready(start_service(LEASE_S=LEASE_S, CRASH_AT=point))
        say(service, "Ann1")
    died(service)
    seen = len(asks.lines())
    service = nats_ready(start_service(LEASE_S=LEASE_S))
    asked(service, f"Ann{number}")
    assert len(asks.lines()) == seen, "the tool ran again, though nobody had answered"
    until(lambda: f"Ann{number}" in questions(service), "nobody hears what is asked")
    for left in range(number, 3):
        asked(service, f"Ann{left}")
        say(service, f"Ann{left}")
    finished(service, database)
    asks.check("Ann")


@BY_WHOM
@pytest.mark.parametrize("number", [1, 2])
def test_a_kill_right_behind_the_record_of_an_answer(
    start_service: Starter, asks: Asks, database: Database, number: int, by_specialist: bool
) -> None:
    service = nats_ready(start_service(LEASE_S=LEASE_S, **({"CRASH_AT": "after_resume"} if number == 1 else {})))
    service.submit(asks.job("Ann", by_specialist=by_specialist), "job")
    asked(service, "Ann1")
    if number == 2:
        say(service, "Ann1")
        asked(service, "Ann2")
        service.stop()
        service = nats_ready(start_service(LEASE_S=LEASE_S, CRASH_AT="after_resume"))
    say(service, f"Ann{number}")
    died(service)
    service = nats_ready(start_service(LEASE_S=LEASE_S))
    if number == 1:
        asked(service, "Ann2")
        say(service, "Ann2")
    finished(service, database)
    asks.check("Ann")
    assert rows(database, "select action from audit order by id") == [("submit",), ("resume",), ("resume",)]


@BY_WHOM
@pytest.mark.parametrize("word", ["first", "second"])
def test_a_kill_in_a_tool_that_was_answered(
    start_service: Starter, asks: Asks, database: Database, word: str, by_specialist: bool
) -> None:
    """It has used the answer, and no checkpoint knows."""
    service = nats_ready(start_service(LEASE_S=LEASE_S))
    service.submit(asks.job("Ann", by_specialist=by_specialist), "job")
    for number, each in ((1, "first"), (2, "second")):
        asked(service, f"Ann{number}")
        if each == word:
            asks.kill_behind(word)
        say(service, f"Ann{number}")
        if each == word:
            died(service)
            service = nats_ready(start_service(LEASE_S=LEASE_S))
    finished(service, database)
    asks.check("Ann")
    assert rows(database, "select attempt from jobs") == [(2 if word == "second" else 1,)]


@BY_WHOM
@pytest.mark.parametrize("order", [("Ann", "Bob"), ("Bob", "Ann")], ids="-".join)
def test_kills_between_the_answers_to_two_that_ask_at_once(
    start_service: Starter, asks: Asks, database: Database, order: tuple[str, str], by_specialist: bool
) -> None:
    service = nats_ready(start_service(LEASE_S=LEASE_S))
    service.submit(asks.job("Ann", "Bob", by_specialist=by_specialist), "job")
    one, other = order
    ids = asked(service, "Ann1", "Bob1")
    asks.kill_behind("first")
    say(service, f"{one}1", ids[f"{one}1"])
    died(service)
    service = nats_ready(start_service(LEASE_S=LEASE_S, CRASH_AT="before_interrupt"))
    died(service)
    service = nats_ready(start_service(LEASE_S=LEASE_S))
    ids = asked(service, f"{one}2", f"{other}1")
    say(service, f"{other}1", ids[f"{other}1"])
    ids = asked(service, f"{one}2", f"{other}2")
    asks.kill_behind("second")
    say(service, f"{other}2", ids[f"{other}2"])
    died(service)
    service = nats_ready(start_service(LEASE_S=LEASE_S))
    ids = asked(service, f"{one}2")
    say(service, f"{one}2", ids[f"{one}2"])
    finished(service, database, "[Bob Bob1! Bob2!]")
    asks.check("Ann", "Bob")
