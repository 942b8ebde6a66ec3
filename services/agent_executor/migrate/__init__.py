"""The migration runner: applies what is pending of migrations/*.up.sql, in order, and can take it back.

Owns the schema `agent_executor` and its ledger `schema_migrations`. Imports psycopg and nothing of the service, and
reads its own few variables, so that a Kubernetes Job starts at once. It may run twice at once, and be killed at any
point: the next run goes on. docs/migrations.md is its manual.
"""

from .commands import baseline, up
from .errors import Failed, Locked, MigrationError, Refused, Unreachable
from .settings import Settings, settings

__all__ = ["Failed", "Locked", "MigrationError", "Refused", "Settings", "Unreachable", "baseline", "settings", "up"]
