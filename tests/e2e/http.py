"""HTTP as a caller uses it: with a key, trying again while nobody answers, and going on with a stream that was cut."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import stamina

_LATER = {429, 502, 503, 504}
_ANSWER_S = 30.0

T = TypeVar("T")


class Away(Exception):
    """The service did not take the request: it starts, goes down, or nobody is there."""


class Http:
    """A client of the deployed service. Every request may be repeated: an id tells that it was here before."""

    def __init__(self, client: httpx.AsyncClient, patience_s: float) -> None:
        self._client = client
        self._patience_s = patience_s

    async def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request, until it is answered by the service."""

        async def once() -> httpx.Response:
            answer = await self._client.request(method, path, **request)
            if answer.status_code in _LATER:
                raise Away(f"{method} {path}: {answer.status_code}")
            return answer

        return await self._persist(once)

    async def result(self, event: dict[str, Any]) -> dict[str, Any]:
        """Send an event and wait for its outcome by `Prefer: wait`; a process that goes down answers 202."""
        headers = {"content-type": "application/cloudevents+json", "prefer": f"wait={_ANSWER_S:g}"}

        async def once() -> dict[str, Any]:
            answer = await self.ask("POST", "/", content=json.dumps(event), headers=headers)
            if answer.status_code == httpx.codes.ACCEPTED:
                raise Away("the result is not there yet")
            assert answer.status_code == httpx.codes.OK, answer.text
            assert answer.headers["content-type"].startswith("application/cloudevents+json")
            outcome: dict[str, Any] = answer.json()
            return outcome

        return await self._persist(once)

    async def follow(self, job_id: str, last_event_id: str | None = None, until: str = "end") -> list[dict[str, Any]]:
        """The job's events after one, by Server-Sent Events, until one of type `until`; cut off, it goes on."""
        events: list[dict[str, Any]] = []
        position = last_event_id

        async def once() -> list[dict[str, Any]]:
            nonlocal position
            headers = {} if position is None else {"last-event-id": position}
            async with self._client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
                if answer.status_code in _LATER:
                    raise Away(f"events of {job_id}: {answer.status_code}")
                assert answer.status_code == httpx.codes.OK, await answer.aread()
                async for line in answer.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name == "id":
                        position = value
                    elif name == "data":
                        events.append(json.loads(value))
                        if events[-1]["event_type"] == until:
                            return events
            raise Away(f"the events of {job_id} ended without {until}")

        return await self._persist(once)

    async def _persist(self, once: Callable[[], Awaitable[T]]) -> T:
        retries = stamina.retry_context(
            on=(Away, httpx.TransportError), attempts=None, timeout=self._patience_s, wait_max=1.0
        )
        async for attempt in retries:
            with attempt:
                return await once()
        raise AssertionError
