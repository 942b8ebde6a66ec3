"""tls: what is trusted, and which failures are told."""

from __future__ import annotations

import ssl
from pathlib import Path

import psycopg
import pytest
import structlog
from psycopg.conninfo import conninfo_to_dict

from agent_executor import tls
from agent_executor.addresses import check_redis
from agent_executor.migrate import settings as migration_settings
from agent_executor.migrate.errors import Refused
from agent_executor.settings import SettingsError, load
from tests.certificates import Authority

KNOWN = {"host": "db.example", "password": "p"}
NAMES = ("POSTGRES_CACERT", "REDIS_CACERT", "NATS_CACERT")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture(autouse=True)
def _nothing_told() -> None:
    tls._told.clear()


def test_only_the_authorities_of_the_file_are_trusted_and_the_name_is_checked(authority: Authority) -> None:
    context = tls.trusted(str(authority.cacert))
    assert [each["subject"] for each in context.get_ca_certs()] == [((("commonName", "authority"),),)]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert tls.trusted(str(authority.cacert)) is context
    assert tls.trusted(None).check_hostname


def test_a_file_that_has_changed_is_read_again(authority: Authority, tmp_path: Path) -> None:
    before = tls.trusted(str(authority.cacert))
    other = Authority(tmp_path, "other").cacert
    authority.cacert.write_bytes(other.read_bytes())
    authority.cacert.touch()
    assert tls.trusted(str(authority.cacert)).get_ca_certs() != before.get_ca_certs()


@pytest.mark.parametrize("content", [None, "no certificate"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_cannot_be_used_is_named_at_the_start(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
    with pytest.raises(SettingsError, match=f"bad environment variables: {name}: must name a file with certificates"):
        load()


def parameters(dsn: str) -> dict[str, object]:
    return {name: value for name, value in conninfo_to_dict(dsn).items() if name.startswith(("ssl", "gss"))}


@pytest.mark.parametrize("mode", [None, "disable", "prefer", "require", "verify-full"])
@pytest.mark.parametrize("with_file", [False, True])
def test_what_libpq_is_told(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    authority: Authority,
    mode: str | None,
    with_file: bool,
) -> None:
    given = {"POSTGRES_SSLMODE": mode} if mode else {}
    given |= {"POSTGRES_CACERT": str(authority.cacert)} if with_file else {}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if with_file and mode not in (None, "verify-full"):
        with pytest.raises(SettingsError, match="POSTGRES_CACERT: needs POSTGRES_SSLMODE to be verify-full"):
            load()
        with pytest.raises(Refused, match="POSTGRES_SSLMODE must be verify-full with POSTGRES_CACERT"):
            migration_settings({"POSTGRES_PASSWORD": "p", **given})
        return
    told = parameters(load().dsn(KNOWN))
    assert told == parameters(migration_settings({"POSTGRES_PASSWORD": "p", **given}).dsn)
    if mode is None and not with_file:
        assert told == {}
    elif mode in (None, "verify-full"):
        root = str(authority.cacert) if with_file else ssl.get_default_verify_paths().cafile or "system"
        assert told == {"sslmode": "verify-full", "gssencmode": "disable", "sslrootcert": root}
    else:
        assert told == {"sslmode": mode, "gssencmode": "disable"}


def test_a_mode_that_is_none_is_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_SSLMODE", "verify-ca")
    with pytest.raises(SettingsError, match="POSTGRES_SSLMODE"):
        load()
    with pytest.raises(Refused, match="POSTGRES_SSLMODE must be one of disable, prefer, require, verify-full"):
        migration_settings({"POSTGRES_PASSWORD": "p", "POSTGRES_SSLMODE": "verify-ca"})


@pytest.mark.parametrize("query", ["ssl_cert_reqs=none", "ssl_cert_reqs=optional", "ssl_check_hostname=false"])
def test_a_url_cannot_turn_the_check_off(query: str) -> None:
    check_redis("rediss://h:6379/0?ssl_cert_reqs=required&ssl_ca_certs=/ca.pem")
    with pytest.raises(ValueError, match="must not turn the check"):
        check_redis(f"rediss://h:6379/0?{query}")


@pytest.mark.parametrize(
    ("server", "error", "is_told"),
    [
        ("redis", ssl.SSLError(1, "certificate verify failed"), True),
        ("nats", ssl.SSLCertVerificationError(1, "Hostname mismatch"), True),
        ("nats", ConnectionRefusedError("refused"), False),
        ("postgres", psycopg.OperationalError("SSL error: certificate verify failed"), True),
        ("postgres", psycopg.OperationalError("server does not support SSL, but SSL was required"), True),
        ("postgres", psycopg.OperationalError("SSL error: unexpected eof while reading"), False),
        ("postgres", psycopg.OperationalError("Connection refused"), False),
    ],
)
def test_a_failed_check_is_told_once_with_its_setting(server: str, error: Exception, is_told: bool) -> None:
    with structlog.testing.capture_logs() as logs:
        tls.note(server, error)
        tls.note(server, error)
    reason = " ".join(str(error).split())
    expected = {"event": "tls_failed", "log_level": "error", "server": server, "reason": reason}
    assert logs == [expected | {"setting": f"{server.upper()}_CACERT"}] * is_told
