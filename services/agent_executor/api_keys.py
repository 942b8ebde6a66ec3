"""API keys: their form, and which are good.

A key is `ae_<id>_<secret><checksum>`. The checksum is there for those who look for leaked keys, and for typing errors.
What is stored is the SHA-256 of the key: its secret has 256 random bits, so there is nothing that a slow hash would
have to protect from guessing, and a fast one can be checked at every request.

A process holds all valid keys in memory and reads them again when it is told of a change, and every `REFRESH_S`
otherwise. So a request asks no database, whatever it presents, and an unknown id costs what a wrong secret does.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import string
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from . import sql
from .callers import Caller, Holds
from .database import Pool, connection
from .errors import Unavailable
from .notify import wait

REFRESH_S = 30.0
_STALE_S = 2 * REFRESH_S
_PAUSE_S = 0.1
_RETRY_S = 1.0
_WAIT_S = 5.0
_USE_EVERY_S = 60.0
_DIGITS = string.digits + string.ascii_letters
_KEY = re.compile(r"ae_([a-z0-9]{12})_[A-Za-z0-9]{43}[A-Za-z0-9]{6}")
_NO_HASH = bytes(32)

SQL = sql.load("api_keys.sql")

log = structlog.get_logger()


@dataclass(frozen=True)
class NewKey:
    """A key that was just made: `text` is for its owner, `id` and `hash` are for the table."""

    id: str
    text: str
    hash: bytes


@dataclass(frozen=True)
class _Known:
    hash: bytes
    caller: Caller


def new_key() -> NewKey:
    """A key that nobody has."""
    key_id = "".join(secrets.choice(string.digits + string.ascii_lowercase) for _ in range(12))
    begun = f"ae_{key_id}_{_in_62(int.from_bytes(secrets.token_bytes(32), 'big'), 43)}"
    text = begun + _checksum(begun)
    return NewKey(key_id, text, _hash(text))


def id_of(text: str) -> str | None:
    """The id in a key, None if the text is no key."""
    found = _KEY.fullmatch(text)
    return found[1] if found is not None and text[-6:] == _checksum(text[:-6]) else None


class ApiKeys:
    """The keys that are good now. `run` has to run beside; `changed` has it look at once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: Mapping[str, _Known] = {}
        self._read_at: float | None = None
        self._due = asyncio.Event()
        self._read = asyncio.Event()
        self._used: dict[str, float] = {}
        self._noted: dict[str, float] = {}

    def changed(self) -> None:
        """Keys may have changed."""
        self._due.set()

    async def admit(self, credential: str) -> tuple[Caller, Holds] | None:
        """As `callers.Authenticator` says."""
        key_id = id_of(credential)
        if key_id is None:
            return None
        await self._until_fresh()
        presented = _hash(credential)
        found = self._known.get(key_id)
        same = hmac.compare_digest(presented, found.hash if found is not None else _NO_HASH)
        if found is None or not same or not self._holds(key_id, presented):
            return None
        self._note(key_id)
        return found.caller, lambda: self._holds(key_id, presented)

    async def run(self) -> None:
        """Keep the keys fresh, and write down which were used, until cancelled."""
        while True:
            self._due.clear()
            try:
                await self._refresh()
            except Unavailable as error:
                log.warning("api_keys_kept", reason=str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            await wait(self._due, REFRESH_S)
            await asyncio.sleep(_PAUSE_S)  # however often somebody has us look

    async def _refresh(self) -> None:
        begun = time.monotonic()
        used, self._used = self._used, {}
        try:
            async with connection(self._pool) as taken:
                rows = await (await taken.execute(SQL["valid"])).fetchall()
                self._known = {row["id"]: _known(row) for row in rows}
                self._read_at = begun
                self._read.set()
                if used:
                    await taken.execute(SQL["used"], {"ids": list(used), "times": list(used.values())})
        except Unavailable:
            self._used = used | self._used
            raise
        self._noted = {key_id: at for key_id, at in self._noted.items() if key_id in self._known}

    async def _until_fresh(self) -> None:
        if self._is_fresh():
            return
        self._read.clear()
        self._due.set()
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._read.wait()
        except TimeoutError:
            raise Unavailable("the API keys cannot be read: the database does not answer") from None

    def _is_fresh(self) -> bool:
        return self._read_at is not None and time.monotonic() - self._read_at < _STALE_S

    def _holds(self, key_id: str, hashed: bytes) -> bool:
        found = self._known.get(key_id)
        if found is None or found.hash != hashed:
            return False
        return found.caller.expires_at is None or time.time() < found.caller.expires_at

    def _note(self, key_id: str) -> None:
        now = time.time()
        if now - self._noted.get(key_id, 0) >= _USE_EVERY_S:
            self._noted[key_id] = self._used[key_id] = now
            self._due.set()


async def expire(pool: Pool, days: int, limit: int) -> int:
    """Delete one batch of the keys that ended more than `days` ago; returns how many it was."""
    async with connection(pool) as taken:
        return (await taken.execute(SQL["expire"], {"days": days, "limit": limit})).rowcount


def _known(row: Mapping[str, object]) -> _Known:
    scopes = frozenset(map(str, row["scopes"]))  # type: ignore[call-overload]
    expires_at = row["expires_at"]
    assert isinstance(expires_at, float | None)
    caller = Caller(str(row["name"]), str(row["tenant"]), scopes, expires_at, str(row["id"]))
    return _Known(bytes(row["hash"]), caller)  # type: ignore[call-overload]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _checksum(text: str) -> str:
    return _in_62(zlib.crc32(text.encode()), 6)


def _in_62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
