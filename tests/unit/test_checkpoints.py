"""checkpoints: one saver a job, and nothing in the database is executed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agent_executor import checkpoints, database

POOL = database.pool("host=nowhere.invalid", 2)


async def test_each_job_has_a_saver_of_its_own_over_one_pool() -> None:
    first, second = checkpoints.Saver(POOL, "job-1", 1), checkpoints.Saver(POOL, "job-1", 1)
    assert first is not second
    assert first.lock is not second.lock
    assert first.conn is second.conn is POOL


def test_the_default_of_langgraph_is_strict() -> None:
    assert os.environ["LANGGRAPH_STRICT_MSGPACK"] == "true"


async def test_messages_survive() -> None:
    serde = checkpoints.Saver(POOL, "job-1", 1).serde
    messages = [HumanMessage("2+3?"), AIMessage("", tool_calls=[{"name": "a", "args": {"b": 1}, "id": "c"}])]
    state = {"messages": [*messages, ToolMessage("5", tool_call_id="c")], "todos": [{"a": None}]}
    assert serde.loads_typed(serde.dumps_typed(state)) == state


async def test_a_constructor_named_by_a_row_is_not_called(tmp_path: Path) -> None:
    """A hostile row, in langgraph's own format: (module, name, arguments) as an extension type."""
    sign = tmp_path / "executed"
    call = ormsgpack.packb(("os", "system", (f"touch {sign}",)))
    row: Any = None
    for code in range(8):  # whichever of langgraph's extension codes calls a constructor
        row = ("msgpack", ormsgpack.packb(ormsgpack.Ext(code, call)))
        try:
            checkpoints.Saver(POOL, "job-1", 1).serde.loads_typed(row)
        except Exception:  # noqa: BLE001 - refusing to read it is as good as reading it as plain data
            continue
    assert not sign.exists()


@pytest.mark.parametrize(
    "row",
    [
        ("pickle", b"cos\nsystem\n(S'touch SIGN'\ntR."),
        ("json", b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "method": null, "args": ["touch SIGN"]}'),
        ("json", b'{"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {"command": "touch SIGN"}}'),
        ("json", b'{"lc": 1, "type": "secret", "id": ["A_SECRET"]}'),
    ],
)
async def test_a_row_in_another_format_calls_and_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: tuple[str, bytes]
) -> None:
    monkeypatch.setenv("A_SECRET", "hush")
    sign = tmp_path / "executed"
    found: Any = None
    with contextlib.suppress(Exception):  # as above
        serde = checkpoints.Saver(POOL, "job-1", 1).serde
        found = serde.loads_typed((row[0], row[1].replace(b"SIGN", str(sign).encode())))
    assert not sign.exists()
    assert "hush" not in repr(found)


def test_the_hostile_row_would_be_executed_without_our_choice_of_serializer(tmp_path: Path) -> None:
    sign = tmp_path / "executed"
    arguments = ormsgpack.packb(("os", "system", (f"touch {sign}",)))
    JsonPlusSerializer(allowed_msgpack_modules=True).loads_typed(
        ("msgpack", ormsgpack.packb(ormsgpack.Ext(1, arguments)))
    )
    assert sign.exists()
