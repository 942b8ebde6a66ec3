"""python -m agent_executor COMMAND: what the image can do besides serving."""

from __future__ import annotations

import os
import sys

USAGE = """usage: python -m agent_executor COMMAND

commands:
  api-key   make, list and revoke keys for callers of HTTP; api-key --help has the rest
  audit     tell who did what, and who was refused; audit --help has the rest
  tenant    set, list and unset limits of single tenants; tenant --help has the rest
  migrate   apply the pending files of MIGRATION_DIR to the database (POSTGRES_*); migrate --help has the rest
"""


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit status, 2 for a wrong call."""
    match arguments:
        case ["migrate", *words]:
            from .migrate.command_line import main as migrate

            return migrate(words, os.environ)
        case ["audit", *words]:
            from .audit_command import main as audit

            return audit(words, os.environ)
        case ["api-key", *words]:
            from .api_key_command import main as api_key

            return api_key(words, os.environ)
        case ["tenant", *words]:
            from .tenant_command import main as tenant

            return tenant(words, os.environ)
        case ["-h" | "--help"]:
            sys.stdout.write(USAGE)
            return 0
        case _:
            sys.stderr.write(USAGE)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
