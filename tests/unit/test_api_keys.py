"""api_keys: the form of a key, which are let in, and when the database is asked. Also the command's words."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_executor import api_key_command, api_keys
from agent_executor.api_keys import ApiKeys, NewKey, id_of, new_key
from agent_executor.callers import Caller
from agent_executor.errors import Unavailable
from agent_executor.redaction import redact


class Table:
    """Stands for the pool, a connection and a cursor of the database that has the keys."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.away = False
        self.reads = 0
        self.used: list[str] = []

    def add(self, key: NewKey, expires_at: float | None = None) -> None:
        row = {"id": key.id, "name": "bob", "tenant": "t", "scopes": ["jobs:read"], "hash": key.hash}
        self.rows.append({**row, "expires_at": expires_at})

    async def execute(self, query: str, parameters: Any = None) -> Table:
        if parameters is None:
            self.reads += 1
        else:
            self.used += parameters["ids"]
        return self

    async def fetchall(self) -> list[dict[str, Any]]:
        return self.rows


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table()

    @contextlib.asynccontextmanager
    async def connection(pool: Any) -> AsyncIterator[Table]:
        if made.away:
            raise Unavailable("away")
        yield made

    monkeypatch.setattr(api_keys, "connection", connection)
    monkeypatch.setattr(api_keys, "_PAUSE_S", 0)
    monkeypatch.setattr(api_keys, "_RETRY_S", 0.01)
    monkeypatch.setattr(api_keys, "_WAIT_S", 0.2)
    return made


@pytest.fixture
async def keys(table: Table) -> AsyncIterator[ApiKeys]:
    made = ApiKeys(None)  # type: ignore[arg-type]
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()


async def learn(keys: ApiKeys, table: Table, key: NewKey, expires_at: float | None = None) -> None:
    """As NOTIFY has it happen."""
    table.add(key, expires_at)
    keys.changed()
    await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)


def test_a_key_is_known_by_its_form() -> None:
    made = new_key()
    assert id_of(made.text) == made.id
    assert len(made.hash) == 32
    assert new_key().text != made.text
    swapped = made.text[:-1] + ("0" if made.text[-1] != "0" else "1")
    for wrong in ("", "x", made.text[:-1], f"{made.text}0", swapped, made.text.upper(), f"{made.text}\n"):
        assert id_of(wrong) is None


def test_a_key_is_never_seen() -> None:
    text = new_key().text
    assert redact(f'{{"header": "Bearer {text}"}}') == '{"header": "Bearer [redacted]"}'


async def test_a_good_key_is_let_in(keys: ApiKeys, table: Table) -> None:
    key = new_key()
    await learn(keys, table, key)
    admitted = await keys.admit(key.text)
    assert admitted is not None
    assert admitted[0] == Caller("bob", "t", frozenset({"jobs:read"}), None, key_id=key.id)
    assert admitted[1]()


async def test_anything_else_is_not(keys: ApiKeys, table: Table) -> None:
    key, expired, other = new_key(), new_key(), new_key()
    await learn(keys, table, key)
    await learn(keys, table, expired, time.time() - 1)
    forged = other.text.replace(other.id, key.id)
    forged = forged[:-6] + api_keys._checksum(forged[:-6])
    assert id_of(forged) == key.id
    for wrong in (forged, expired.text, other.text, key.id, key.text[:-1], "", "é"):
        assert await keys.admit(wrong) is None


async def test_no_request_asks_the_database(keys: ApiKeys, table: Table) -> None:
    key = new_key()
    await learn(keys, table, key)
    assert await keys.admit(key.text)
    await settle()
    reads = table.reads
    for _ in range(100):
        await keys.admit(new_key().text)
        await keys.admit(key.text)
    await settle()
    assert table.reads == reads


async def test_a_revoked_key_holds_no_more_when_it_is_told(keys: ApiKeys, table: Table) -> None:
    key = new_key()
    await learn(keys, table, key)
    admitted = await keys.admit(key.text)
    assert admitted is not None
    await settle()
    table.rows.clear()
    keys.changed()
    await settle()
    assert not admitted[1]()
    assert await keys.admit(key.text) is None


async def test_an_expiring_key_holds_until_then(keys: ApiKeys, table: Table) -> None:
    key = new_key()
    await learn(keys, table, key, time.time() + 0.1)
    admitted = await keys.admit(key.text)
    assert admitted is not None
    assert admitted[1]()
    await asyncio.sleep(0.15)
    assert not admitted[1]()
    assert await keys.admit(key.text) is None


async def test_use_is_noted_once_a_minute(keys: ApiKeys, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    await learn(keys, table, key)
    for _ in range(5):
        await keys.admit(key.text)
        await settle()
    assert table.used == [key.id]
    monkeypatch.setattr(api_keys, "_USE_EVERY_S", 0)
    await keys.admit(key.text)
    await settle()
    assert table.used == [key.id, key.id]


async def test_keys_serve_on_for_a_while_without_the_database(
    keys: ApiKeys, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key()
    await learn(keys, table, key)
    assert await keys.admit(key.text)
    await settle()
    table.away = True
    keys.changed()
    await settle()
    assert await keys.admit(key.text)
    monkeypatch.setattr(api_keys, "_STALE_S", 0)
    with pytest.raises(Unavailable):
        await keys.admit(key.text)
    table.away = False
    monkeypatch.undo()


async def test_a_use_is_not_lost_with_the_database(keys: ApiKeys, table: Table) -> None:
    key = new_key()
    await learn(keys, table, key)
    await settle()
    keys.changed()
    await settle()
    table.away = True
    assert await keys.admit(key.text)
    await settle()
    table.away = False
    await settle()
    assert table.used == [key.id]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["new"],
        ["new", "bob"],
        ["new", "bob", "--scopes", ""],
        ["new", "bob", "--scopes", "jobs:read,jobs:everything"],
        ["new", "bob", "--scopes", "jobs:read", "--tenant", "a.b"],
        ["new", "bob", "--scopes", "jobs:read", "--days", "0"],
        ["new", "a\nb", "--scopes", "jobs:read"],
        ["revoke"],
        ["nonsense"],
        ["list"],  # without a password in the environment
    ],
)
def test_a_wrong_call_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert api_key_command.main(words, {}) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err
