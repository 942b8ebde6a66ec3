"""logs: JSON lines on stdout, from everybody alike, as many as LOG_LEVEL lets through."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from agent_executor import logs, redaction

LIBRARIES = ("uvicorn", "uvicorn.error", "uvicorn.access", *logs._QUIET, "nats", "some.library")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    hooks = sys.excepthook, threading.excepthook
    yield
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = hooks
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.err == ""
    return [json.loads(line) for line in captured.out.splitlines()]


def test_a_line_is_json_with_event_level_timestamp_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    with structlog.contextvars.bound_contextvars(job_id="job-1", trace_id="trace-1"):
        structlog.get_logger().info("job_started", attempt=1, word="ä")
    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "job_started",
        "level": "info",
        "job_id": "job-1",
        "trace_id": "trace-1",
        "attempt": 1,
        "word": "ä",
    }


def test_the_standard_librarys_lines_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    with structlog.contextvars.bound_contextvars(job_id="job-1"):
        logging.getLogger("some.library").warning("it is %s", "late")
    [line] = lines(capsys)
    assert (line["event"], line["level"], line["job_id"]) == ("it is late", "warning", "job-1")
    assert "timestamp" in line


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("INFO", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
        ("nonsense", ["info", "warning", "error"]),
    ],
)
@pytest.mark.parametrize("logger", ["ours", "theirs"])
def test_the_level_rules_every_logger(
    capsys: pytest.CaptureFixture[str], logger: str, level: str, shown: list[str]
) -> None:
    logs.configure(level)
    log: Any = structlog.get_logger() if logger == "ours" else logging.getLogger("some.library")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("said")
    assert [line["level"] for line in lines(capsys)] == shown


@pytest.mark.parametrize("name", ["httpx", "httpcore", "urllib3", "hvac", "sse_starlette"])
def test_lines_that_may_hold_what_callers_sent_are_never_shown(capsys: pytest.CaptureFixture[str], name: str) -> None:
    logs.configure("debug")
    logging.getLogger(name).debug("GET /?secret")
    logging.getLogger(f"{name}.part").info("GET /?secret")
    logging.getLogger(name).warning("slow")
    assert [line["event"] for line in lines(capsys)] == ["slow"]


def test_quiet_libraries_obey_a_higher_level(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("error")
    logging.getLogger("httpx").warning("slow")
    assert lines(capsys) == []


def test_an_exception_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    try:
        raise LookupError("no luck")
    except LookupError:
        structlog.get_logger().exception("part_failed")
        logging.getLogger("some.library").exception("failed")
    ours, theirs = lines(capsys)
    assert "LookupError: no luck" in ours["exception"]
    assert "LookupError: no luck" in theirs["exception"]


def test_what_json_does_not_know_is_no_reason_to_lose_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    structlog.get_logger().info("odd", value={1, 2}, other=object)
    assert [line["event"] for line in lines(capsys)] == ["odd"]


def test_uvicorns_own_handlers_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    logs.configure("info")
    logger.info("Started server process")
    assert [line["event"] for line in lines(capsys)] == ["Started server process"]


SECRET = 'key-"of"-somebody'


@pytest.fixture
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", {})
    monkeypatch.setattr(redaction, "_forms", ())
    redaction.remember(SECRET)


@pytest.mark.usefixtures("_secret")
def test_a_line_without_its_secret_is_still_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    structlog.get_logger().info("said", word=f"it is {SECRET}", deep=[{SECRET: 1}])
    [line] = lines(capsys)
    assert (line["word"], line["deep"]) == ("it is [redacted]", [{"[redacted]": 1}])


def test_a_token_that_somebody_put_anywhere_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
    logs.configure("info")
    structlog.get_logger().info("said", job_id=f'a "{token}"')
    [line] = lines(capsys)
    assert line["job_id"] == 'a "[redacted]"'


@pytest.mark.usefixtures("_secret")
def test_warnings_and_uncaught_exceptions_are_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")

    def fail() -> None:
        raise LookupError(SECRET)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(SECRET, stacklevel=1)
    uncaught, warned = lines(capsys)
    assert (uncaught["event"], "LookupError: [redacted]" in uncaught["exception"]) == ("uncaught", True)
    assert "UserWarning: [redacted]" in warned["event"]


def test_what_ends_the_process_is_a_line_too() -> None:
    code = "from agent_executor import logs, redaction; logs.configure('info'); redaction.remember('canary'); 1 / 0"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (json.loads(ended.stdout)["event"], ended.stderr, ended.returncode) == ("uncaught", "", 1)


@pytest.mark.usefixtures("_secret")
def test_a_line_that_cannot_be_made_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Odd:
        def __str__(self) -> str:
            raise LookupError(SECRET)

    logs.configure("info")
    structlog.get_logger().info("said", word=Odd(), key=SECRET)
    assert capsys.readouterr() == ("", "a log line of agent_executor is lost: LookupError\n")


def test_a_line_of_a_library_that_cannot_be_made_names_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logging.getLogger("library").info("%d", "no number")
    assert capsys.readouterr() == ("", "a log line of library is lost: TypeError\n")


def test_an_output_that_nobody_reads_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        logs.configure("info")
        structlog.get_logger().info("said")
        logging.getLogger("library").info("said")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
