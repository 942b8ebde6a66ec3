"""A JetStream consumer's messages, as they come: the pull protocol (github.com/nats-io/nats-architecture-and-design,
ADR-37).

Owns the one request that stands at the server, for so many messages and so long. nats-py's own `fetch` makes two for
each batch, and may keep the first message back until its time is over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.errors import APIError

_GRACE_S = 0.5  # what the server's word that a request is over may take
_PASSING = ("404", "408")
"""Statuses that end a request and mean no harm: nothing is there, its time is over."""


class Pull:
    """One per consumer and connection; `fetch` is called by one task."""

    def __init__(self, client: Client, stream: str, consumer: str) -> None:
        self.client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._arrived: deque[Msg] = deque()
        self._awake = asyncio.Event()
        self._error: Msg | None = None
        self._requests = 0
        self._outstanding = 0
        self._until = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing is here, and nothing comes without another request."""
        return not self._arrived and not self._is_standing

    async def fetch(self, batch: int, expiry_s: float) -> list[Msg]:
        """From 1 to `batch` messages, as soon as one is here; none if the request, standing or new, brought none.

        Raises:
            NatsError, APIError, OSError: the server, or the consumer, is not there.
        """
        if self.is_over:
            await self._ask(batch, expiry_s)
        await self._wait()
        return [self._arrived.popleft() for _ in range(min(batch, len(self._arrived)))]

    async def rest(self) -> list[Msg]:
        """What is here, or comes yet of the request that stands."""
        await self._wait()
        return self.left()

    def left(self) -> list[Msg]:
        """What is here, without a wait."""
        left, self._arrived = self._arrived, deque()
        return list(left)

    @property
    def _is_standing(self) -> bool:
        return self._outstanding > 0 and time.monotonic() < self._until

    async def _wait(self) -> None:
        while not self._arrived and self._is_standing:
            self._awake.clear()
            try:
                async with asyncio.timeout(self._until - time.monotonic()):
                    await self._awake.wait()
            except TimeoutError:  # the server was restarted, and does not know of it
                self._outstanding = 0
            if self._error is not None:
                refused, self._error = self._error, None
                APIError.from_msg(refused)

    async def _ask(self, batch: int, expiry_s: float) -> None:
        if self._subscription is None:
            self._subscription = await self.client.subscribe(f"{self._inbox}.*", cb=self._on_message)
        self._requests += 1
        self._outstanding, self._until = batch, time.monotonic() + expiry_s + _GRACE_S
        request = {"batch": batch, "expires": int(expiry_s * 1e9)}
        await self.client.publish(self._next, json.dumps(request).encode(), f"{self._inbox}.{self._requests}")

    async def _on_message(self, message: Msg) -> None:
        status = JetStreamContext.is_status_msg(message)
        if status is None:
            self._arrived.append(message)
            self._outstanding -= 1
        elif status.startswith("1") or not message.subject.endswith(f".{self._requests}"):
            return  # a heartbeat, or about a request that we know is over
        else:
            self._outstanding = 0
            if status not in _PASSING:
                self._error = message
        self._awake.set()
