"""The environment, read once, frozen.

Every variable the service knows, with its default: docs/settings.md is checked against this module. Only `app` and
`__main__` read settings; everybody else is given plain values. `migrate` reads its own few variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, HttpUrl, SecretStr, TypeAdapter, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from .addresses import check_nats, check_redis
from .callers import SCOPES
from .crash import Point
from .errors import AgentExecutorError, Finding
from .job import DEFAULT_TENANT, findings_of
from .loopback import is_loopback
from .tls import check_cacert

# Frozen or cut off, we may hold no lock for longer than this; and the server is to notice that we are cut off.
_SESSION = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "search_path": "agent_executor",
        "idle_in_transaction_session_timeout": "10s",
        "tcp_keepalives_idle": 5,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": "5s",
    }.items()
)

_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")

_SECRETS: Mapping[tuple[str, str], str] = {
    ("postgres", "host"): "postgres_host",
    ("postgres", "port"): "postgres_port",
    ("postgres", "database"): "postgres_db",
    ("postgres", "username"): "postgres_user",
    ("postgres", "password"): "postgres_password",
    ("redis", "url"): "redis_url",
    ("nats", "url"): "nats_url",
}


def _http_url(text: str) -> str:
    try:
        TypeAdapter(HttpUrl).validate_python(text)
    except ValidationError:  # its message holds the URL, and a URL may hold a password
        raise ValueError("must be an http or https URL") from None
    return text


def _safe_url(text: str) -> str:
    """Keys that anybody on the way could exchange would open the service to everybody."""
    parts = urlsplit(_http_url(text))
    if parts.scheme != "https" and not is_loopback(parts.hostname):
        raise ValueError("must be an https URL")
    return text


def _origins(text: str) -> str:
    """As a browser sends them, to the letter: https://www.rfc-editor.org/rfc/rfc6454#section-6.2."""
    if not all(map(_ORIGIN.fullmatch, words(text))):
        raise ValueError("must be origins as browsers send them (https://app.example, or with :port), and no *")
    return text


def _scopes(text: str) -> str:
    unknown = set(words(text)) - SCOPES
    if unknown:
        raise ValueError(f"must be of {', '.join(sorted(SCOPES))}")
    return text


def _some(text: str) -> str:
    """A list without words would be as good as none, and leave open what it was to close."""
    if not words(text):
        raise ValueError("must name at least one")
    return text


def words(text: str | None) -> tuple[str, ...]:
    """What a setting lists, with commas or spaces."""
    return tuple((text or "").replace(",", " ").split())


def _redis_url(url: SecretStr) -> SecretStr:
    check_redis(url.get_secret_value())
    return url


def _nats_url(urls: SecretStr) -> SecretStr:
    check_nats(urls.get_secret_value())
    return urls


def _only_verified(cacert: str, info: ValidationInfo) -> str:
    if info.data.get("postgres_sslmode", "verify-full") not in (None, "verify-full"):
        raise ValueError("needs POSTGRES_SSLMODE to be verify-full")
    return cacert


class Settings(BaseSettings):
    """One field per environment variable (its name in capitals); the description is its line in the docs."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    postgres_host: str | None = Field(None, description="PostgreSQL server")
    postgres_port: int = Field(5432, description="its port")
    postgres_db: str = Field("langgraph_dev", description="database")
    postgres_user: str = Field("postgres", description="role")
    postgres_password: SecretStr | None = Field(None, description="its password")
    postgres_sslmode: Literal["disable", "prefer", "require", "verify-full"] | None = Field(
        None, description="whether PostgreSQL is spoken to by TLS; by default `verify-full` with `POSTGRES_CACERT`"
    )
    postgres_cacert: Annotated[str, AfterValidator(check_cacert), AfterValidator(_only_verified)] | None = Field(
        None, description="file with the CA that PostgreSQL's certificate is checked against"
    )
    postgres_pool_size: Annotated[int, Field(ge=2)] = Field(16, description="connections of one process at most")
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = Field(
        None, description="Redis or Dragonfly for events, `redis://[:password@]host:port/db`, or `rediss://` for TLS"
    )
    redis_cacert: Annotated[str, AfterValidator(check_cacert)] | None = Field(
        None,
        description="file with the CA that Redis's certificate is checked against; with it Redis is spoken to by TLS",
    )
    nats_url: Annotated[SecretStr, AfterValidator(_nats_url)] | None = Field(
        None,
        description="NATS with JetStream, `nats://[user:password@]host:port`, or `tls://` for TLS; several with commas",
    )
    nats_cacert: Annotated[str, AfterValidator(check_cacert)] | None = Field(
        None,
        description="file with the CA that NATS's certificate is checked against; with it NATS is spoken to by TLS",
    )
    nats_stream_name: str = Field("AGENT_EXECUTION", description="stream that jobs arrive on")
    nats_consumer_group: str = Field("agent-executor-workers", description="durable consumer that all workers share")
    nats_tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = Field(
        DEFAULT_TENANT, description="tenant of the jobs that arrive on that stream"
    )
    langgraph_config: str | None = Field(None, description="path of a langgraph.json whose `graphs` jobs may name")
    k_sink: Annotated[str, AfterValidator(_http_url)] | None = Field(
        None, description="URL that results are POSTed to as well (set by a Knative SinkBinding)"
    )

    vault_addr: Annotated[str, AfterValidator(_http_url)] | None = Field(
        None, description="Vault, asked for what is not set here"
    )
    vault_role: str | None = Field(None, description="role to log in to Vault with, by the pod's service account")
    vault_token: SecretStr | None = Field(None, description="token for Vault, in place of a login")
    vault_role_id: str | None = Field(None, description="AppRole to log in to Vault with")
    vault_secret_id: SecretStr | None = Field(None, description="its secret id")
    vault_k8s_mount: str = Field("kubernetes", description="mount point of Vault's Kubernetes auth method")
    vault_k8s_token_path: str = Field(
        "/var/run/secrets/kubernetes.io/serviceaccount/token", description="file with the pod's service-account token"
    )
    vault_namespace: str | None = Field(None, description="namespace in Vault")
    vault_cacert: str | None = Field(None, description="file with the CA that Vault's certificate is checked against")
    vault_refresh_s: Annotated[float, Field(gt=0)] = Field(
        300, description="seconds after which a secret is read from Vault again"
    )
    vault_mount: str = Field("secret", description="mount point of the KV v2 engine")
    vault_path: str = Field("agent-executor", description="path of the service's secrets below the mount")

    auth_mode: Literal["token", "jwt", "none"] = Field("token", description="how callers of HTTP show who they are")
    auth_allow_anonymous: bool = Field(False, description="`true` has `AUTH_MODE=none` let everybody in")
    auth_jwt_issuer: Annotated[str, AfterValidator(_safe_url)] | None = Field(
        None, description="issuer of the tokens, as their claim `iss` has it"
    )
    auth_jwt_audience: str | None = Field(None, description="what the tokens' claim `aud` has to hold")
    auth_jwt_jwks_url: Annotated[str, AfterValidator(_safe_url)] | None = Field(
        None, description="where the issuer's keys are; by default where its `.well-known/openid-configuration` says"
    )
    auth_jwt_cacert: str | None = Field(
        None, description="file with the CA that the issuer's certificate is checked against"
    )
    auth_jwt_fetch_token_path: str | None = Field(
        None, description="file with a token that is sent to the issuer when its keys are fetched"
    )
    auth_jwt_leeway_s: Annotated[float, Field(ge=0, le=60)] = Field(
        30, description="seconds that clocks may differ by, at most 60"
    )
    auth_jwt_tenant_claim: str | None = Field(None, description="claim that names the caller's tenant")
    auth_jwt_scope_claim: str = Field("scope", description="claim that lists the caller's scopes")
    auth_jwt_scopes: Annotated[str, AfterValidator(_scopes)] | None = Field(
        None, description="scopes of the tokens of `AUTH_JWT_SUBJECTS` that have no such claim, with commas"
    )
    auth_jwt_subjects: Annotated[str, AfterValidator(_some)] | None = Field(
        None, description="subjects whose tokens are taken, with commas; a `*` at the end stands for any rest"
    )
    metrics_open: bool = Field(False, description="`true` opens `/metrics` to everybody")
    cors_allow_origins: Annotated[str, AfterValidator(_origins)] | None = Field(
        None, description="origins whose pages may call, with commas; none without it"
    )
    max_connections: Annotated[int, Field(ge=8)] = Field(
        1000, description="HTTP clients connected to one process at a time"
    )
    max_header_bytes: Annotated[int, Field(ge=4096)] = Field(
        64 * 2**10, description="largest target and headers of a request together"
    )
    request_header_timeout_s: Annotated[float, Field(gt=0)] = Field(
        10, description="seconds until a request's headers are complete, since it began"
    )
    request_body_timeout_s: Annotated[float, Field(gt=0)] = Field(
        60, description="seconds until its body is complete, since its headers were"
    )
    response_stall_timeout_s: Annotated[float, Field(gt=0)] = Field(
        30, description="seconds that a client may leave an answer, or an event stream, unread"
    )
    docs: Literal["on", "off"] = Field("on", description="`off` takes `/docs`, `/redoc` and `/openapi.json` away")

    max_concurrent_jobs: Annotated[int, Field(ge=1)] = Field(8, description="jobs one process runs at a time")
    job_timeout_s: Annotated[float, Field(gt=0)] = Field(
        3600, description="seconds that one job may run, in all attempts"
    )
    max_steps: Annotated[int, Field(ge=1)] = Field(100, description="graph steps of one agent of a job at most")
    max_model_calls: Annotated[int, Field(ge=1)] = Field(500, description="calls of models in one job at most")
    max_tokens: Annotated[int, Field(ge=1)] = Field(
        5_000_000, description="tokens of one job at most, as its providers count them"
    )
    max_state_bytes: Annotated[int, Field(ge=2**10)] = Field(
        64 * 2**20, description="largest state of a job's graph, as JSON"
    )
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(8 * 2**20, description="largest request body")
    tenant_max_queued_jobs: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        10_000, description="queued jobs of one tenant at most; 0 is without a limit"
    )
    tenant_max_running_jobs: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="running jobs of one tenant at most, in all processes together; 0 is without a limit"
    )
    tenant_max_submits_per_minute: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="new jobs of one tenant in a minute at most; 0 is without a limit"
    )
    tenant_max_open_streams: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        100, description="event streams of one tenant at most, in all processes together; 0 is without a limit"
    )
    shutdown_grace_s: Annotated[float, Field(ge=0)] = Field(
        25, description="seconds that running jobs get to finish after SIGTERM; the rest is resumed elsewhere"
    )
    lease_s: Annotated[float, Field(ge=3)] = Field(
        9, description="seconds after which a silent worker's jobs are taken over"
    )
    max_attempts: Annotated[int, Field(ge=1)] = Field(3, description="tries of a job before it fails for good")
    job_retention_days: Annotated[int, Field(ge=1)] = Field(
        30, description="days after its end until a job is deleted, with its checkpoints and delivered results"
    )
    audit_retention_days: Annotated[int, Field(ge=1)] = Field(
        90, description="days until an entry of the audit is deleted, and an API key that expired or was revoked"
    )
    error_detail: Literal["full", "message"] = Field("full", description="`message` leaves stack traces out of errors")

    tool_sandbox: Literal["require", "best-effort", "off"] = Field(
        "require", description="whether tool scripts have to be confined"
    )
    tool_network: Literal["none", "allow"] = Field("none", description="`allow` lets tool scripts use the network")
    tool_timeout_s: Annotated[float, Field(gt=0)] = Field(60, description="seconds that one call of a tool may take")
    tool_memory_bytes: Annotated[int, Field(ge=2**26)] = Field(
        512 * 2**20, description="memory that a job's tool scripts may take together"
    )
    tool_output_bytes: Annotated[int, Field(ge=2**10)] = Field(
        2**20, description="largest result of one call of a tool, as JSON"
    )

    log_level: str = Field("info", description="debug, info, warning, error")
    otel_exporter_otlp_endpoint: str | None = Field(None, description="OTLP collector; tracing is off without it")
    crash_at: Point | None = Field(None, description="for tests: the point at which the process kills itself")

    def explicit(self) -> dict[str, dict[str, str]]:
        """What the environment itself says of the servers, by the names of the secrets in Vault and their fields."""
        found: dict[str, dict[str, str]] = {}
        for (secret, field), setting in _SECRETS.items():
            value = getattr(self, setting)
            if setting in self.model_fields_set and value is not None:
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                found.setdefault(secret, {})[field] = text
        return found

    def dsn(self, known: Mapping[str, str]) -> str:
        """libpq connection string to our schema; `known`: host, password, and what differs from the defaults."""
        from psycopg.conninfo import make_conninfo

        from .migrate.settings import encryption

        return make_conninfo(
            host=known["host"],
            port=known.get("port", self.postgres_port),
            dbname=known.get("database", self.postgres_db),
            user=known.get("username", self.postgres_user),
            password=known["password"],
            options=_SESSION,
            application_name="agent-executor",
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=5000,
            target_session_attrs="read-write",
            **encryption(self.postgres_sslmode, self.postgres_cacert),
        )


class SettingsError(AgentExecutorError):
    """The environment is incomplete or wrong; the message names every variable concerned."""


def load() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: naming every missing or bad variable at once, without their values.
    """
    wrong: list[Finding] = []
    missing = [Finding(name, "must be set") for name in _missing(os.environ)]
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = [Finding(finding.field.upper(), finding.message) for finding in findings_of(error)]
    if not missing and not wrong:
        return settings
    parts = [f"missing environment variables: {', '.join(each.field for each in missing)}"] if missing else []
    parts += [f"bad environment variables: {'; '.join(map(str, wrong))}"] if wrong else []
    raise SettingsError("; ".join(parts), [*missing, *wrong]) from None


def _missing(environment: Mapping[str, str]) -> list[str]:
    """Variables without which the service cannot start: its servers', or a way to learn them from Vault."""
    known = {name.upper() for name, value in environment.items() if value}
    return [*_missing_servers(known), *_missing_issuer(environment, known)]


def _missing_issuer(environment: Mapping[str, str], known: set[str]) -> list[str]:
    mode = next((value for name, value in environment.items() if name.upper() == "AUTH_MODE"), "")
    if mode != "jwt":
        return []
    needed = ["AUTH_JWT_ISSUER", "AUTH_JWT_AUDIENCE", *["AUTH_JWT_SUBJECTS"] * ("AUTH_JWT_SCOPES" in known)]
    return [name for name in needed if name not in known]


def _missing_servers(known: set[str]) -> list[str]:
    if "VAULT_ADDR" not in known:
        return [name for name in ("POSTGRES_HOST", "POSTGRES_PASSWORD", "REDIS_URL", "NATS_URL") if name not in known]
    app_role = {"VAULT_ROLE_ID", "VAULT_SECRET_ID"}
    if known & {"VAULT_TOKEN", "VAULT_ROLE"} or app_role <= known:
        return []
    return sorted(app_role - known) if app_role & known else ["VAULT_ROLE"]


def provider_environment(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Model keys and addresses set in the environment: `{provider: {api_key, base_url}}`.

    `<PROVIDER>_API_KEY` and `<PROVIDER>_BASE_URL`, e.g. OPENAI_API_KEY; an explicit variable wins over Vault.
    """
    found: dict[str, dict[str, str]] = {}
    for name, value in environment.items():
        for suffix in ("_API_KEY", "_BASE_URL"):
            if name.endswith(suffix) and value:
                found.setdefault(name.removesuffix(suffix).lower(), {})[suffix[1:].lower()] = value
    return found
