"""The running service: every part made, started and stopped.

Owns the order. Imported in a thread after `/health` answers, because everything heavy hangs below it.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import structlog

from . import api_keys, audit, crash, database, health, ledger, stream, tracing
from .broker import Broker
from .callers import Authenticator
from .credentials import Credentials
from .errors import Unavailable
from .event_stream import Streams
from .graphs import Graphs
from .graphs import load as load_graphs
from .health import Phase
from .intake import Intake
from .leases import Leases
from .ledger import Ended
from .limits import Limit, Limits
from .notify import Listener
from .outbox import Outbox, to_nats, to_sink
from .places import Places
from .quotas import Allowance
from .runner import Runner
from .sandbox.options import Options
from .sandbox.pool import Sandbox
from .settings import Settings, provider_environment, words
from .sweeper import Sweeper
from .vault import AppRoleLogin, KubernetesLogin, Login, TokenLogin, Vault
from .worker import Worker, announce

if TYPE_CHECKING:
    from .tokens import Tokens

_FLUSH_S = 1.0
_RESTART_S = 1.0
_REPEAT_AFTER_S = 3.0

__all__ = ["Service", "load_graphs", "open_service"]

log = structlog.get_logger()


class Service:
    """All parts of one process. `async with Service(...)` runs it; `drain` comes before leaving."""

    def __init__(self, settings: Settings, graphs: Graphs, credentials: Credentials, vault: Vault | None) -> None:
        self.settings = settings
        self.graphs = graphs
        self.phase = Phase.STARTING
        self.streams = Streams()
        self._resources = AsyncExitStack()
        self._parts: list[asyncio.Task[None]] = []
        self._keepers: list[Callable[[], Awaitable[None]]] = []
        self._later: set[asyncio.Task[None]] = set()
        self._credentials = credentials
        dsn = credentials.dsn
        self.pool = database.pool(dsn, settings.postgres_pool_size)
        self.ledger = ledger.Ledger(
            self.pool,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
            sink=settings.k_sink is not None,
            allowance=_allowance(settings),
        )
        self.refusals = audit.Refusals(self.pool)
        self.places = Places(self.pool, _allowance(settings), settings.max_body_bytes)
        self._keepers.append(self.places.run)
        self.listener = Listener(dsn)
        cacert = settings.redis_cacert
        self._redis = stream.connect(credentials.redis_url, cacert=cacert)
        self.events = stream.connect(credentials.redis_url, cacert=cacert, timeout_s=10, connections=1000)
        self._publisher = stream.Publisher(self._redis)
        self._broker = Broker(
            credentials.nats_url,
            stream=settings.nats_stream_name,
            consumer=settings.nats_consumer_group,
            credentials=credentials.nats_credentials,
            cacert=settings.nats_cacert,
        )
        self._vault = vault
        self._outboxes = [Outbox(self.pool, "nats", to_nats(self._broker), lambda: self._broker.connected)]
        self._outboxes[0].on_delivered = self._repeat_endings
        self._broker.on_ready = self._outboxes[0].hurry
        if settings.k_sink is not None:
            http = httpx.AsyncClient(timeout=5)
            self._resources.push_async_callback(http.aclose)
            self._outboxes.append(Outbox(self.pool, "sink", to_sink(http, settings.k_sink)))
        self.ledger.couriers = {box.target: box for box in self._outboxes}
        credentials.on_rotated = self._renew_broker
        self._intake = Intake(
            self._broker,
            self.ledger,
            self.refusals,
            tenant=settings.nats_tenant,
            max_body_bytes=lambda: self.places.body_limit(settings.nats_tenant),
            graphs=graphs.names,
        )
        self._sandbox = _sandbox(settings)
        self._leases = Leases(dsn, settings.lease_s)
        self._worker = Worker(
            self.ledger,
            self._leases,
            self._runner(),
            self._publisher,
            queued=self.listener.queued,
            slots=settings.max_concurrent_jobs,
        )
        self.ledger.starter = self._worker
        self.listener.on_finished = self._worker.on_finished_somewhere
        self.authenticator = self._authenticator()
        self.listener.on_gap = self._on_gap
        self._sweeper = Sweeper(
            self.ledger,
            expire={
                "jobs": partial(self.ledger.expire, settings.job_retention_days),
                "audit": partial(audit.expire, self.pool, settings.audit_retention_days),
                "api_keys": partial(api_keys.expire, self.pool, settings.audit_retention_days),
            },
            is_blind=lambda: self._worker.is_blind,
            on_ended=self.on_ended,
        )
        self._services = health.Services(
            {
                "postgres": self.ledger.ping,
                "dragonfly": self._ping_redis,
                "nats": self._ping_nats,
                "vault": self._ping_vault,
            }
        )
        crash.arm(settings.crash_at)

    async def __aenter__(self) -> Service:
        """Open in order: database, then the ways out, then the worker, then the ways in."""
        opened = self._resources
        opened.callback(tracing.shutdown)
        opened.push_async_callback(self.pool.close, timeout=2)
        await self.pool.open()
        opened.push_async_callback(self._redis.aclose)
        opened.push_async_callback(self.events.aclose)
        opened.push_async_callback(self._broker.close)
        opened.push_async_callback(self._sandbox.close)  # after the worker, whose jobs end their tools themselves
        opened.push_async_callback(self._end_parts)
        for run in (self.listener.run, self._publisher.run, self._broker.run, *(box.run for box in self._outboxes)):
            self._keep(run)
        opened.push_async_callback(asyncio.to_thread, self._leases.stop)
        self._leases.start()
        for keep in self._keepers:
            self._keep(keep)
        self._keep(self._credentials.keep_fresh)
        self._keep(self._sandbox.open)
        self._keep(self._worker.run)
        self._keep(self._sweeper.run)
        self._keep(self._intake.run)
        self._keep(self.refusals.run)
        self.phase = Phase.SERVING
        log.info("serving", worker=self._worker.name)
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Close in reverse: all that works, then the connections it used."""
        await self._resources.aclose()

    async def drain(self) -> None:
        """Take in nothing more, finish or give back what runs, deliver what is ready.

        Event streams are ended first, since their readers find another process that goes on with them, and once more at
        the end, for those that found none.
        """
        self.phase = Phase.DRAINING
        log.info("draining", grace_s=self.settings.shutdown_grace_s)
        drained = self._worker.drain(self.settings.shutdown_grace_s)
        await asyncio.gather(self.streams.end(), self._intake.drain(), drained)
        await self._publisher.flush(_FLUSH_S)
        last = [*map(_deliver, self._outboxes), self.refusals.flush()]
        await asyncio.wait([*map(asyncio.create_task, last)], timeout=_FLUSH_S)
        self.phase = Phase.DRAINED
        await self.streams.end()
        log.info("drained")

    async def services(self) -> dict[str, bool]:
        """Which services answer now, each really asked."""
        return await self._services.ask()

    def on_ended(self, ended: Ended) -> None:
        """Tell the world of a job that was ended by somebody other than its worker."""
        self._look_at_outbox()
        self._announce(ended)

    def _announce(self, ended: Ended) -> None:
        channel = self._publisher.channel(ended.job_id, ended.fence, ended.trace_id, ended.event_count)
        announce(channel, ended.outcome)

    async def _repeat_endings(self, job_ids: set[str]) -> None:
        """Send the last events of jobs again, later: their worker may have died before it did.

        Redis keeps each once. Not at once, because it would refuse what a worker that lives has still to send.
        """
        task = asyncio.create_task(self._endings(job_ids))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _endings(self, job_ids: set[str]) -> None:
        await asyncio.sleep(_REPEAT_AFTER_S)
        try:
            for ended in await self.ledger.endings(job_ids):
                self._announce(ended)
        except Unavailable as error:
            log.warning("endings_lost", error=str(error))

    def _renew_broker(self) -> None:
        task = asyncio.create_task(self._broker.renew())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def forget_events(self, job_id: str, tenant: str) -> None:
        """Drop the events of a job that runs again. Best effort, like all that concerns events."""
        try:
            await stream.forget(self._redis, job_id)
        except stream.FAILURES as error:
            log.warning("events_kept", job_id=job_id, tenant=tenant, error=type(error).__name__)

    def _authenticator(self) -> Authenticator | None:
        if self.settings.auth_mode == "token":
            keys = api_keys.ApiKeys(self.pool)
            self.listener.on_api_keys = keys.changed
            self._keepers.append(keys.run)
            return keys
        if self.settings.auth_mode == "jwt":
            return _tokens(self.settings, self._resources)
        return None

    def _on_gap(self) -> None:
        self._leases.check()
        self.listener.on_api_keys()

    def _runner(self) -> Runner:
        return Runner(
            self.pool,
            self._credentials.of,
            self._sandbox,
            self.graphs,
            _limits(self.settings),
            error_detail=self.settings.error_detail,
        )

    def _look_at_outbox(self) -> None:
        for box in self._outboxes:
            box.look()

    async def _ping_redis(self) -> bool:
        return bool(await self._redis.ping())

    async def _ping_nats(self) -> bool:
        if not self._broker.connected:
            return False
        await self._broker.client.flush(timeout=1)
        return True

    async def _ping_vault(self) -> bool:
        return self._vault is not None and await self._vault.healthy()

    def _keep(self, run: Callable[[], Awaitable[None]]) -> None:
        """Run a part for as long as the service is open, whatever happens to it."""
        self._parts.append(asyncio.create_task(_kept(run), name=run.__qualname__))

    async def _end_parts(self) -> None:
        """All at once: one that waits for a server that is away holds up no other."""
        tasks = [*self._parts, *self._later]
        for task in tasks:
            task.cancel()
        await database.settled(tasks)


def _sandbox(settings: Settings) -> Sandbox:
    return Sandbox(
        Options(
            mode=settings.tool_sandbox,
            network=settings.tool_network,
            timeout_s=settings.tool_timeout_s,
            memory_bytes=settings.tool_memory_bytes,
            output_bytes=settings.tool_output_bytes,
        )
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        steps=Limit("MAX_STEPS", settings.max_steps),
        model_calls=Limit("MAX_MODEL_CALLS", settings.max_model_calls),
        tokens=Limit("MAX_TOKENS", settings.max_tokens),
        timeout_s=Limit("JOB_TIMEOUT_S", settings.job_timeout_s),
        tool_output_bytes=Limit("TOOL_OUTPUT_BYTES", settings.tool_output_bytes),
        state_bytes=Limit("MAX_STATE_BYTES", settings.max_state_bytes),
    )


def _allowance(settings: Settings) -> Allowance:
    return Allowance(
        max_queued_jobs=settings.tenant_max_queued_jobs,
        max_running_jobs=settings.tenant_max_running_jobs,
        max_submits_per_minute=settings.tenant_max_submits_per_minute,
        max_open_streams=settings.tenant_max_open_streams,
    )


def _tokens(settings: Settings, opened: AsyncExitStack) -> Tokens:
    from .issuer import Issuer  # with the packages of cryptography, 8 MB that only AUTH_MODE=jwt needs
    from .tokens import Claims, Tokens

    cacert = settings.auth_jwt_cacert
    http = httpx.AsyncClient(timeout=5, verify=True if cacert is None else ssl.create_default_context(cafile=cacert))
    opened.push_async_callback(http.aclose)
    assert settings.auth_jwt_issuer is not None
    assert settings.auth_jwt_audience is not None
    issuer = Issuer(
        settings.auth_jwt_issuer,
        http,
        jwks_url=settings.auth_jwt_jwks_url,
        token_path=settings.auth_jwt_fetch_token_path,
    )
    claims = Claims(
        settings.auth_jwt_tenant_claim,
        settings.auth_jwt_scope_claim,
        frozenset(words(settings.auth_jwt_scopes)),
        words(settings.auth_jwt_subjects),
    )
    return Tokens(issuer, settings.auth_jwt_audience, claims, settings.auth_jwt_leeway_s)


async def open_service(settings: Settings, graphs: Graphs, stack: AsyncExitStack) -> Service:
    """Learn the secrets, wait for them if need be, and open a service in `stack`, which will close it."""
    vault = _vault(settings)
    if vault is not None:
        renewing = asyncio.create_task(_kept(vault.run), name="vault")
        stack.callback(renewing.cancel)
    credentials = Credentials(settings.explicit(), vault, provider_environment(os.environ), settings.dsn)
    await credentials.until_loaded()
    return await stack.enter_async_context(Service(settings, graphs, credentials, vault))


def _vault(settings: Settings) -> Vault | None:
    if settings.vault_addr is None:
        return None
    return Vault(
        settings.vault_addr,
        _login(settings),
        mount=settings.vault_mount,
        path=settings.vault_path,
        namespace=settings.vault_namespace,
        cacert=settings.vault_cacert,
        refresh_s=settings.vault_refresh_s,
    )


def _login(settings: Settings) -> Login:
    """A token goes before an AppRole, and that before the pod's service account."""
    if settings.vault_token is not None:
        return TokenLogin(settings.vault_token.get_secret_value())
    if settings.vault_role_id is not None and settings.vault_secret_id is not None:
        return AppRoleLogin(settings.vault_role_id, settings.vault_secret_id.get_secret_value())
    return KubernetesLogin(
        settings.vault_role or "", mount=settings.vault_k8s_mount, jwt_path=Path(settings.vault_k8s_token_path)
    )


async def _kept(run: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await run()
            return
        except Exception:
            log.exception("part_failed", part=run.__qualname__)
            await asyncio.sleep(_RESTART_S)


async def _deliver(box: Outbox) -> None:
    try:
        await box.drain()
    except Exception as error:  # noqa: BLE001 - it stays in the outbox, and the next process delivers it
        log.warning("outbox_left", error=type(error).__name__)
