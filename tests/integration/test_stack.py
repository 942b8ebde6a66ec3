"""tier3/stack against the real servers: ready, restarted, killed, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nats
import psycopg
import pytest
import redis

from tier3.stack import KINDS, Nats, Postgres, Redis, Server, ServerError, Stack, Vault, ports, process, start
from tier3.stack import server as server_module

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("standard ports")
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# A parent with all four servers and a PostgreSQL session that is busy; argv: data directory, 1 for the watcher.
PARENT = """
import sys, threading, time
from pathlib import Path
import psycopg
from tier3.stack import KINDS

servers = {name: kind(Path(sys.argv[1]), watcher=sys.argv[2] == "1").start() for name, kind in KINDS.items()}
connection = psycopg.connect(servers["postgres"].url)
busy = "DO $$ BEGIN LOOP END LOOP; END $$"
threading.Thread(target=connection.execute, args=[busy], daemon=True).start()
with psycopg.connect(servers["postgres"].url, autocommit=True) as other:
    while not other.execute("SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = %s", [busy]).fetchone():
        time.sleep(0.01)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with start(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


def processes_in(directory: Path) -> list[int]:
    """The processes that work below `directory`, as all processes of our servers do."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(directory):
                found.append(int(entry.name))
    return found


def eventually_none_in(directory: Path, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while (found := processes_in(directory)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    assert not found, "processes were left behind"


def query(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def listener(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


# --- ready -----------------------------------------------------------------------------------------------------------


def test_postgres_answers(stack: Stack) -> None:
    assert query(stack.postgres.dsn(), "SELECT 1, current_user, current_setting('server_encoding')") == [
        (1, "postgres", "UTF8")
    ]


def test_postgres_wants_the_password(stack: Stack) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(stack.postgres.dsn().replace(":postgres@", ":wrong@"))


def test_redis_answers(stack: Stack) -> None:
    with redis.Redis.from_url(stack.redis.url) as client:
        assert client.ping()


async def test_nats_answers_with_jetstream(stack: Stack) -> None:
    client = await nats.connect(stack.nats.url)
    try:
        assert (await client.jetstream().account_info()).streams == 0
    finally:
        await client.close()


def test_vault_answers(stack: Stack) -> None:
    connection = http.client.HTTPConnection(stack.vault.addr.removeprefix("http://"), timeout=5)
    headers = {"X-Vault-Token": stack.vault.token}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/secret/data/key", b'{"data": {"a": "b"}}', headers)
        assert connection.getresponse().read()
        connection.request("GET", "/v1/secret/data/key", headers=headers)
        assert b'"a":"b"' in connection.getresponse().read()


@LINUX_ONLY
def test_they_listen_on_loopback_only(stack: Stack) -> None:
    ours = {server.port for server in stack.servers.values()}
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(port, 16) in ours:
                listening.add((address, int(port, 16)))
    assert listening == {("0100007F", port) for port in ours}


def test_a_server_that_was_not_asked_for_is_named() -> None:
    with pytest.raises(ServerError, match="redis is not among"):
        _ = Stack({}).redis


# --- data ------------------------------------------------------------------------------------------------------------


async def test_cold_then_warm_keeps_the_data(tmp_path: Path) -> None:
    with start(tmp_path) as stack:
        query(stack.postgres.url, "CREATE TABLE kept AS SELECT 1 AS id")
        await in_stream(stack.nats, publish=True)
    assert processes_in(tmp_path) == []
    with start(tmp_path) as stack:
        assert query(stack.postgres.url, "SELECT id FROM kept") == [(1,)]
        assert await in_stream(stack.nats) == 1


async def in_stream(server: Nats, *, publish: bool = False) -> int:
    """How many messages the stream KEPT has, after publishing one if asked to."""
    client = await nats.connect(server.url)
    try:
        jetstream = client.jetstream()
        if publish:
            await jetstream.add_stream(name="KEPT", subjects=["kept"])
            await jetstream.publish("kept", b"1")
        return (await jetstream.stream_info("KEPT")).state.messages
    finally:
        await client.close()


async def test_a_restart_keeps_port_and_data(tmp_path: Path) -> None:
    with Nats(tmp_path) as server:
        before = server.url, server.pid
        await in_stream(server, publish=True)
        server.restart()
        assert server.url == before[0]
        assert server.pid != before[1]
        assert await in_stream(server) == 1


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_durable_redis_keeps_its_data(tmp_path: Path, how: str) -> None:
    with Redis(tmp_path, durable=True) as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "1")
        getattr(server, how)()
        assert not server.running
        server.start()
        assert client.get("kept") == b"1"


def test_postgres_keeps_what_was_committed_before_a_kill(tmp_path: Path) -> None:
    with Postgres(tmp_path) as server:
        url = server.url
        query(url, "CREATE TABLE kept AS SELECT 1 AS id")
        server.kill()
        assert processes_in(tmp_path) == []
        server.start()
        assert server.url == url
        assert query(url, "SELECT id FROM kept") == [(1,)]


def test_a_stale_postmaster_pid_does_not_stop_postgres(tmp_path: Path) -> None:
    server = Postgres(tmp_path)
    with server:
        stale = (server.data / "postmaster.pid").read_text()
    uid = server.run_as() if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=uid) as somebody:  # who has the dead server's pid by now
        pid_file = server.data / "postmaster.pid"
        pid_file.write_text(stale.replace(stale.split()[0], str(somebody.pid), 1))
        pid_file.chmod(0o600)
        if uid is not None:
            os.chown(pid_file, uid, uid)
        try:
            with server:
                assert query(server.url, "SELECT 1") == [(1,)]
        finally:
            somebody.kill()


def test_databases_copied_from_a_template_are_apart(stack: Stack) -> None:
    server = stack.postgres
    query(server.create_database("template"), "CREATE TABLE t AS SELECT 1 AS id")
    one, two = (server.create_database(name, template="template") for name in ("one", "two"))
    query(one, "INSERT INTO t VALUES (2)")
    assert query(one, "SELECT count(*) FROM t") == [(2,)]
    assert query(two, "SELECT count(*) FROM t") == [(1,)]
    with psycopg.connect(one):  # is ended by the drop
        server.drop_database("one")
    server.drop_database("one")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(one)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root cannot run PostgreSQL as itself")
@LINUX_ONLY
def test_root_gives_postgres_one_capability_and_nobody_s_uid(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with Postgres(closed / "data") as server:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == ["65534"] * 4
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 1  # CAP_DAC_OVERRIDE
        assert closed.stat().st_mode & 0o777 == 0o700
        assert server.data.stat().st_uid == 65534
        assert closed.stat().st_uid == 0


# --- failing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_data_directory_that_is_a_file(tmp_path: Path, kind: type[Server]) -> None:
    (tmp_path / kind.name).write_text("not a directory")
    with pytest.raises(ServerError, match=rf"^{kind.name} cannot use its data directory .*/{kind.name}: "):
        kind(tmp_path).start()


@pytest.mark.parametrize(
    ("kind", "says"),
    [(Vault, "invalid port"), (Nats, "70000"), (Redis, "'port"), (Postgres, "70000 is outside the valid range")],
)
def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path, kind: type[Server], says: str) -> None:
    server = kind(tmp_path, port=70000)
    with pytest.raises(ServerError) as caught:
        server.start()
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"{kind.name} ended with exit status ")
    assert first.endswith(f"the last lines of {server.log}:")
    assert says in "\n".join(lines)
    assert len(lines) <= process.TAIL_LINES
    assert processes_in(tmp_path) == []


def test_the_lines_shown_are_the_last_of_this_start(tmp_path: Path) -> None:
    (tmp_path / "redis.log").write_text("of an earlier start\n")
    program = f"import sys; print(*range(30), sep='\\n'); sys.exit({process.TAIL_LINES})"
    server = Redis(tmp_path)
    server.command = lambda: [sys.executable, "-c", program]  # type: ignore[method-assign]
    with pytest.raises(ServerError) as caught:
        server.start()
    assert str(caught.value).splitlines()[1:] == [f"    {number}" for number in range(10, 30)]
    assert (tmp_path / "redis.log.1").read_text() == "of an earlier start\n"


def test_a_server_that_never_answers_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "START_S", 0.05)
    monkeypatch.setattr(Redis, "answers", lambda self: False)
    with pytest.raises(ServerError, match="redis did not answer within 0 s"):
        Redis(tmp_path).start()
    assert processes_in(tmp_path) == []


def test_one_that_cannot_start_takes_the_others_down(tmp_path: Path) -> None:
    (tmp_path / "postgres").write_text("not a directory")
    with pytest.raises(ServerError, match="postgres"), start(tmp_path):
        pass
    assert processes_in(tmp_path) == []


def test_data_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHILDREN_GRACE_S", 0.05)
    with Redis(tmp_path) as server:
        with pytest.raises(ServerError, match=f"another process still uses {tmp_path}/redis"):
            Redis(tmp_path).start()
        assert server.answers()


# --- ports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [False, True])
def test_the_standard_port_if_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    standard = ports.free_port()
    monkeypatch.setattr(Redis, "usual_port", standard)
    with contextlib.ExitStack() as others:
        if taken:
            others.enter_context(listener(standard))
        with start(tmp_path, ["redis"], standard_ports=True) as stack:
            assert (stack.redis.port != standard) == taken


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_lost_race_for_a_port_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Server]
) -> None:
    with listener(ports.free_port()) as other:
        taken = other.getsockname()[1]
        offered = iter([taken, ports.free_port()])
        monkeypatch.setattr(server_module, "free_port", lambda: next(offered))
        threading.Thread(target=hang_up, args=[other], daemon=True).start()
        with kind(tmp_path) as server:
            assert server.port != taken
        other.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_another_server_of_the_same_kind_on_the_port_is_not_taken_for_ours(tmp_path: Path, kind: type[Server]) -> None:
    with kind(tmp_path / "theirs") as theirs:
        ours = kind(tmp_path / "ours", port=theirs.port)
        ours.spawn()
        with pytest.raises(ServerError, match="before it was ready"):
            ours.wait_ready()
        assert theirs.answers()


def hang_up(server: socket.socket) -> None:
    """Close each connection to `server` until it is shut down."""
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


# --- leaving nothing behind ------------------------------------------------------------------------------------------


@LINUX_ONLY
@pytest.mark.parametrize("watcher", ["0", "1"], ids=["parent-death signal", "watcher"])
def test_a_killed_parent_leaves_nothing_running(tmp_path: Path, watcher: str) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), watcher]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        try:
            assert parent.stdout.readline() == b"ready\n"
            assert len(processes_in(tmp_path)) > len(KINDS)
        finally:
            parent.kill()
        assert parent.wait() == -signal.SIGKILL
    eventually_none_in(tmp_path)


@LINUX_ONLY
def test_a_watcher_goes_with_its_server(tmp_path: Path) -> None:
    with Redis(tmp_path, watcher=True) as server:
        assert len(processes_in(tmp_path)) == 2
        server.restart()
        assert server.answers()
    eventually_none_in(tmp_path)


async def test_a_server_outlives_the_thread_that_restarted_it(tmp_path: Path) -> None:
    with Redis(tmp_path) as server:
        thread = threading.Thread(target=server.restart)
        thread.start()
        thread.join()
        await asyncio.sleep(0.05)
        assert server.running


def test_a_stopped_process_can_be_stopped(tmp_path: Path) -> None:
    with Redis(tmp_path) as server:
        os.kill(server.pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert processes_in(tmp_path) == []


def test_the_command_ends_with_its_standard_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tier3.stack", "--data", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stack:
        assert stack.stdout
        lines = [stack.stdout.readline().split()[0] for _ in KINDS]
        assert lines == list(KINDS)
        stack.communicate(timeout=5)
    assert stack.returncode == 0
    assert processes_in(tmp_path) == []
