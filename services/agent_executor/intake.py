"""JetStream -> ledger.

Owns what happens to a message: acked once its job, or its answer to one, is committed; kept in AGENT_DEAD and
terminated when it can never be either; put back when the database is away. A fetch is short, so that a restarted server
is noticed, and an idle process is drained, within a second.

While the tenant is at one of its limits, messages wait in the stream: what was fetched is put back, and one is tried at
a time, then twice as many each time that all are taken, so that few count against the consumer's `max_ack_pending`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js.errors import APIError

from . import crash, job, metrics, quotas, strict_json, tracing, validation
from .announcements import DEAD_SUBJECT, refusal
from .audit import Refusal, Refusals
from .broker import Broker
from .errors import (
    AgentExecutorError,
    Conflict,
    InternalError,
    InvalidInput,
    NotFound,
    PayloadTooLarge,
    TooManyRequests,
    Unavailable,
)
from .job import Answer, Origin, Submission
from .ledger import Ledger
from .pull import Pull
from .threads import by_size

_FETCH_S = 0.5
_BATCH = 32
_RETRY_S = 1.0
_PAUSE_S = 1.0
_REASONS: Mapping[type[AgentExecutorError], str] = {
    InvalidInput: "invalid",
    PayloadTooLarge: "too-large",
    Conflict: "conflict",
    NotFound: "not-found",
    InternalError: "internal",
}
_ORIGIN = Origin("nats")
_BUG = InternalError("an unexpected error; the service's log has it")

log = structlog.get_logger()


class Intake:
    """One per process; any number of processes share the durable consumer."""

    def __init__(
        self,
        broker: Broker,
        ledger: Ledger,
        refusals: Refusals,
        *,
        tenant: str,
        max_body_bytes: Callable[[], int],
        graphs: Collection[str] = (),
    ) -> None:
        """`tenant` has all jobs that arrive; `graphs`: the names of the graphs from code that a definition may name."""
        self._broker = broker
        self._ledger = ledger
        self._refusals = refusals
        self._tenant = tenant
        self._max_body_bytes = max_body_bytes
        self._graphs = graphs
        self._draining = asyncio.Event()
        self._stopped = asyncio.Event()
        self._batch = _BATCH
        self._is_paused = False

    async def run(self) -> None:
        """Take messages in until drained or cancelled."""
        self._stopped.clear()
        try:
            await self._broker.ready.wait()
            pull: Pull | None = None
            while not self._draining.is_set() or (pull is not None and not pull.is_over):
                try:
                    if pull is None or pull.client is not self._broker.client:  # a server that refused us closed it
                        pull = self._broker.pull()
                    messages = await (pull.rest() if self._draining.is_set() else pull.fetch(self._batch, _FETCH_S))
                except (NatsError, APIError, OSError) as error:
                    log.warning("fetch_failed", error=type(error).__name__)
                    await asyncio.sleep(_RETRY_S)
                    await self._broker.repair()
                    continue
                if messages:
                    crash.point("after_fetch")
                    await self._keep_pace(await asyncio.gather(*map(self._take, messages)), pull)
        finally:
            self._stopped.set()

    async def drain(self) -> None:
        """Fetch nothing more; returns when what was fetched is dealt with, at most one fetch later."""
        self._draining.set()
        if self._broker.ready.is_set():
            await self._stopped.wait()

    async def _keep_pace(self, limits: Collection[TooManyRequests | None], pull: Pull) -> None:
        """Where a message met a limit, wait, put back what comes meanwhile, and fetch fewer next time; or else more."""
        met = next(filter(None, limits), None)
        if met is None:
            self._batch = min(2 * self._batch, _BATCH)
            if self._is_paused and self._batch == _BATCH:
                self._is_paused = False
                log.info("intake_resumed", tenant=self._tenant)
        else:
            self._batch = 1
            if not self._is_paused:
                self._is_paused = True
                log.warning("intake_paused", tenant=self._tenant, reason=str(met))
        metrics.intake_paused.set(self._is_paused)
        if met is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await self._draining.wait()
            await asyncio.gather(*(self._nak(message, 0) for message in pull.left()))

    async def _take(self, message: Msg) -> TooManyRequests | None:
        """Deal with a message; returns the limit that it met, after which it is in the stream again."""
        try:
            await self._accept(message)
            crash.point("after_accept")
            await message.ack()
            crash.point("after_ack")
            metrics.nats_processed.inc()
        except TooManyRequests as limit:
            await self._nak(message, _PAUSE_S)
            return limit
        except (InvalidInput, PayloadTooLarge, Conflict, NotFound) as error:
            metrics.nats_failed.inc()
            await self._bury(message, error)
        except Unavailable as error:
            metrics.nats_failed.inc()
            log.warning("message_put_back", error=str(error))
            await self._put_back(message)
        except (
            NatsError,
            OSError,
            TimeoutError,
        ) as error:  # not acked: it comes again, and is found to be here already
            log.warning("ack_failed", error=type(error).__name__)
        except Exception:  # it would come again for ever, and take the rest of its batch down each time
            metrics.nats_failed.inc()
            log.exception("message_crashed")
            await self._bury(message, _BUG)
        return None

    async def _accept(self, message: Msg) -> None:
        if len(message.data) > (most := self._max_body_bytes()):
            raise quotas.too_large(most)
        submission = await by_size(len(message.data), self._read, message.data)
        if isinstance(submission, Answer):
            await self._resume(submission, message.subject)
            return
        with tracing.span("accept job", submission.traceparent, job_id=submission.job_id) as traceparent:
            receipt = await self._ledger.accept(submission, traceparent)
        whose = {"tenant": submission.tenant, "subject": message.subject, **submission.origin.known}
        log.info("job_accepted", job_id=receipt.job_id, trace_id=submission.trace_id, new=receipt.is_new, **whose)

    async def _resume(self, answer: Answer, subject: str) -> None:
        with tracing.span("resume job", answer.traceparent, job_id=answer.job_id):
            receipt = await self._ledger.resume(answer, "data.")
        whose = {"tenant": answer.tenant, "subject": subject, **answer.origin.known}
        log.info("job_resumed", job_id=answer.job_id, new=receipt.is_new, **whose)

    def _read(self, data: bytes) -> Submission | Answer:
        read = job.from_event(strict_json.loads(data, "event"), validation.look(self._graphs))
        return replace(read, tenant=self._tenant, origin=_ORIGIN)

    async def _bury(self, message: Msg, error: AgentExecutorError) -> None:
        """Keep what can never be a job where an operator finds it, and tell whoever waits for the job it names."""
        reason = _REASONS[type(error)]
        log.warning("message_refused", reason=reason, error=str(error))
        place = message.metadata.sequence.stream if message.metadata.sequence else 0
        msg_id = {"Nats-Msg-Id": f"{self._broker.stream}:{place}:{message.metadata.timestamp.timestamp()}"}
        headers = {"Agent-Error": str(error)[:1000], "Agent-Subject": message.subject, **msg_id}
        try:
            try:
                await self._broker.js.publish(f"{DEAD_SUBJECT}{reason}", message.data, headers=_one_line(headers))
            except MaxPayloadError:  # it fitted without our headers
                await self._broker.js.publish(f"{DEAD_SUBJECT}{reason}", message.data, headers=msg_id)
            await self._announce(message.data, error)
            await message.term()
            if error is not _BUG:
                self._refusals.add(Refusal("message", type(error).__name__, _ORIGIN, self._tenant))
        except (NatsError, APIError, Unavailable, OSError, TimeoutError) as failure:
            log.warning("message_put_back", error=type(failure).__name__)
            await self._broker.repair()  # AGENT_DEAD may have been deleted
            await self._put_back(message)
        except Exception:  # not terminated, since it may not be in AGENT_DEAD
            log.exception("message_crashed")
            await self._put_back(message)

    async def _announce(self, data: bytes, error: AgentExecutorError) -> None:
        if len(data) > self._max_body_bytes():
            return
        described = {"message": str(error), "type": type(error).__name__, "stack_trace": ""}
        try:
            refused = refusal(await by_size(len(data), strict_json.loads, data), described)
            if refused is not None:
                await self._ledger.announce_rejection(*refused)
        except InvalidInput:
            return
        except Unavailable:
            raise
        except Exception:  # the message is kept, which counts for more
            log.exception("message_crashed")

    async def _put_back(self, message: Msg) -> None:
        await self._nak(message, _RETRY_S)
        await asyncio.sleep(_RETRY_S)

    async def _nak(self, message: Msg, delay_s: float) -> None:
        try:
            await message.nak(delay=delay_s)
        except (NatsError, OSError):
            log.warning("nak_failed")


def _one_line(headers: dict[str, str]) -> dict[str, str]:
    return {name: " ".join(value.split()) for name, value in headers.items()}
