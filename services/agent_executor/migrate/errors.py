"""What can stop a run, each with the exit status that a script sees."""

from __future__ import annotations


class MigrationError(Exception):
    """What stopped the run; the message names the file, the variables or the server, and never the password."""

    exit_status = 2
    summary = "refused, nothing was run"


class Refused(MigrationError):
    """Nothing was run: the call, the environment, the files, or a ledger that does not fit the files."""


class Failed(MigrationError):
    """A file's own SQL failed; what was applied before it stays applied."""

    exit_status = 1
    summary = "a migration failed; what was applied before it stays applied"


class Locked(MigrationError):
    """Another run, or another session's table lock, was in the way for too long. Running again is all it takes."""

    exit_status = 3
    summary = "lock not obtained; run again"


class Unreachable(MigrationError):
    """The database does not answer, or went away. Running again goes on where this run ended."""

    exit_status = 4
    summary = "database unreachable; run again"
