"""The environment, read once, frozen.

Every variable the service knows, with its default: docs/settings.md is checked against this module. Only `app` and
`__main__` read settings; everybody else is given plain values. `migrate` reads its own few variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, HttpUrl, SecretStr, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from .crash import Point
from .errors import AgentExecutorError, Finding
from .job import findings_of

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


def _http_url(text: str) -> str:
    try:
        TypeAdapter(HttpUrl).validate_python(text)
    except ValidationError:  # its message holds the URL, and a URL may hold a password
        raise ValueError("must be an http or https URL") from None
    return text


def _redis_url(url: SecretStr) -> SecretStr:
    _check_url(url.get_secret_value(), ("redis", "rediss", "unix"))
    return url


def _nats_url(urls: SecretStr) -> SecretStr:
    for url in urls.get_secret_value().split(","):
        _check_url(url if "://" in url else f"nats://{url}", ("nats", "tls", "ws", "wss"))
    return urls


def _check_url(url: str, schemes: tuple[str, ...]) -> None:
    """Refuse what a client would complain of by repeating a part of it."""
    wanted = f"must be a URL ({', '.join(schemes)}) with / ? # and @ in a password percent-encoded"
    try:
        parts = urlsplit(url)
        found = parts.scheme in schemes and "@" not in f"{parts.path}{parts.query}{parts.fragment}" and parts.port != 0
    except ValueError:
        found = False
    if not found:
        raise ValueError(wanted)


class Settings(BaseSettings):
    """One field per environment variable (its name in capitals); the description is its line in the docs."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    postgres_host: str = Field(description="PostgreSQL server")
    postgres_port: int = Field(5432, description="its port")
    postgres_db: str = Field("langgraph_dev", description="database")
    postgres_user: str = Field("postgres", description="role")
    postgres_password: SecretStr = Field(description="its password")
    postgres_pool_size: Annotated[int, Field(ge=2)] = Field(16, description="connections of one process at most")
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = Field(
        description="Redis or Dragonfly for events, `redis://[:password@]host:port/db`"
    )
    nats_url: Annotated[SecretStr, AfterValidator(_nats_url)] = Field(
        description="NATS with JetStream, `nats://[user:password@]host:port`, several with commas"
    )
    nats_stream_name: str = Field("AGENT_EXECUTION", description="stream that jobs arrive on")
    nats_consumer_group: str = Field("agent-executor-workers", description="durable consumer that all workers share")
    langgraph_config: str | None = Field(None, description="path of a langgraph.json whose `graphs` jobs may name")
    k_sink: Annotated[str, AfterValidator(_http_url)] | None = Field(
        None, description="URL that results are POSTed to as well (set by a Knative SinkBinding)"
    )

    vault_addr: str | None = Field(None, description="Vault, asked for model keys")
    vault_token: SecretStr | None = Field(None, description="token for Vault")
    vault_mount: str = Field("secret", description="mount point of the KV v2 engine")
    vault_path: str = Field("agent-executor", description="path of the service's secrets below the mount")

    max_concurrent_jobs: Annotated[int, Field(ge=1)] = Field(8, description="jobs one process runs at a time")
    max_steps: Annotated[int, Field(ge=1)] = Field(100, description="graph steps of one job at most")
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(8 * 2**20, description="largest request body")
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

    def dsn(self) -> str:
        """libpq connection string to the service's schema."""
        from psycopg.conninfo import make_conninfo

        return make_conninfo(
            host=self.postgres_host,
            port=self.postgres_port,
            dbname=self.postgres_db,
            user=self.postgres_user,
            password=self.postgres_password.get_secret_value(),
            options=_SESSION,
            application_name="agent-executor",
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=5000,
            target_session_attrs="read-write",
        )


class SettingsError(AgentExecutorError):
    """The environment is incomplete or wrong; the message names every variable concerned."""


def load() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: naming every missing or bad variable at once, without their values.
    """
    try:
        return Settings()
    except ValidationError as error:
        findings = [Finding(finding.field.upper(), finding.message) for finding in findings_of(error)]
        missing = ", ".join(finding.field for finding in findings if finding.message == "Field required")
        wrong = "; ".join(str(finding) for finding in findings if finding.message != "Field required")
        parts = [f"missing environment variables: {missing}"] if missing else []
        parts += [f"bad environment variables: {wrong}"] if wrong else []
        raise SettingsError("; ".join(parts), findings) from None


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
