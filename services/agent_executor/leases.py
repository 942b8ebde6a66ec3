"""Keeps the leases of this process's jobs, and says when one is lost.

Owns a thread with a connection of its own, so that an event loop that is busy or blocked loses no lease, and one that
watches the clock. A lease counts from the moment before it was asked for, by this machine's monotonic clock; it is
given up a sixth of it before it can run out in the database, because from then on another worker may have the job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import structlog
from psycopg.rows import DictRow, dict_row

from . import metrics, sql
from .database import Dsn, current, thread_severed_after
from .ledger import Claim

_LOOK_S = 0.1
_AGAIN_S = 0.5
_PATIENCE_S = 2.0

SQL = sql.load("leases.sql")

log = structlog.get_logger()


@dataclass
class _Held:
    claim: Claim
    until: float
    on_lost: Callable[[str], None]


class Leases:
    """`hold` what was claimed and `drop` what is done; in between it is renewed every third of `lease_s`."""

    def __init__(self, dsn: Dsn, lease_s: float) -> None:
        self._dsn = dsn
        self._lease_s = lease_s
        self._margin_s = lease_s / 6
        self._held: dict[tuple[str, int], _Held] = {}
        self._lock = threading.Lock()
        self._now = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._connection: psycopg.Connection[DictRow] | None = None
        self.failed_at = -lease_s  # when PostgreSQL last did not answer

    def hold(self, claim: Claim, asked_at: float, on_lost: Callable[[str], None]) -> None:
        """Keep the lease of a claim that was asked for at `asked_at` (time.monotonic).

        `on_lost` is called once, from the thread and with the reason, when the lease is lost: somebody else has the
        job, it has ended, or the lease could not be renewed in time.
        """
        with self._lock:
            self._held[claim.job_id, claim.fence] = _Held(claim, asked_at + self._lease_s, on_lost)

    def drop(self, claim: Claim) -> None:
        """Renew it no more."""
        with self._lock:
            self._held.pop((claim.job_id, claim.fence), None)

    def check(self) -> None:
        """Renew now: something may have happened to the jobs."""
        self._now.set()

    def start(self) -> None:
        """Start the threads."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="leases")
        self._thread.start()
        threading.Thread(target=self._watch, daemon=True, name="leases watch").start()

    def stop(self) -> None:
        """Stop the threads; returns once they have ended, after some seconds at most."""
        self._stopped = True
        self._now.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S * 2)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped:
            try:
                if time.monotonic() >= due or self._now.is_set():
                    self._now.clear()
                    due = time.monotonic() + (self._lease_s / 3 if self._renew() else _AGAIN_S)
            except Exception:  # this thread may not end: nobody would notice, and every job would be lost
                log.exception("leases_failed")
                self.failed_at = time.monotonic()
                self._disconnect()
            self._now.wait(_LOOK_S)
        self._disconnect()

    def _renew(self) -> bool:
        with self._lock:
            held = list(self._held.values())
        if not held:
            return True
        asked_at = time.monotonic()
        left_s = min(each.until for each in held) - self._margin_s - asked_at
        try:
            mine = self._ask([each.claim for each in held], min(_PATIENCE_S, max(_LOOK_S, left_s)))
        except psycopg.Error as error:
            self.failed_at = time.monotonic()
            metrics.db_connection_errors.inc()
            log.warning("renew_failed", error=type(error).__name__, jobs=len(held))
            self._disconnect()
            return False
        for each in held:
            if (each.claim.job_id, each.claim.fence) in mine:
                each.until = asked_at + self._lease_s
            else:
                self._lose(each, "somebody else has the job, or it has ended")
        return True

    def _ask(self, claims: list[Claim], limit_s: float) -> set[tuple[str, int]]:
        if self._connection is None:
            self._connection = psycopg.connect(
                current(self._dsn), autocommit=True, row_factory=dict_row, connect_timeout=2
            )
        held = {"job_ids": [claim.job_id for claim in claims], "fences": [claim.fence for claim in claims]}
        with thread_severed_after(self._connection, limit_s):
            rows = self._connection.execute(SQL["renew"], {"lease_s": self._lease_s, **held}).fetchall()
        return {(row["job_id"], row["fence"]) for row in rows}

    def _watch(self) -> None:
        """In a thread of its own, since renewing may wait for the server just when a lease is to be given up."""
        while not self._stopped:
            try:
                self._give_up()
            except Exception:
                log.exception("leases_failed")
            time.sleep(_LOOK_S)

    def _give_up(self) -> None:
        with self._lock:
            late = [each for each in self._held.values() if time.monotonic() > each.until - self._margin_s]
        for each in late:
            self._lose(each, "it could not be renewed in time")

    def _lose(self, held: _Held, reason: str) -> None:
        with self._lock:
            known = self._held.pop((held.claim.job_id, held.claim.fence), None)
        if known is not None:
            known.on_lost(reason)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
