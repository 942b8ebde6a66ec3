"""What can stop a session about Vault, each with the exit status that a script sees."""

from __future__ import annotations


class SessionError(Exception):
    """What stopped the session. The message names variables, paths and fields, and never a value of a secret."""

    exit_status = 1


class Failed(SessionError):
    """Something was tried and did not work; what was done before it stays done."""


class Refused(SessionError):
    """The call, its input, or what Vault holds already does not fit. Nothing was changed."""

    exit_status = 2


class Denied(SessionError):
    """The token lacks rights, all of which are named."""

    exit_status = 3


class Unreachable(SessionError):
    """Vault does not answer, is sealed or not initialised. Running again goes on where this run ended."""

    exit_status = 4


class Misconfigured(SessionError):
    """Variables are missing or bad, all of which are named."""

    exit_status = 64


EXIT_STATUSES = """exit status: 0 done, 1 failed, 2 refused: call, input, or what Vault holds already,
  3 the token lacks rights, 4 Vault unreachable or sealed, 64 variables missing or bad"""
