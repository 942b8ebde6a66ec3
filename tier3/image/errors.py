"""What can stop a build, each with the exit status that a script sees."""

from __future__ import annotations


class BuildError(Exception):
    """Something was tried and did not work. The message names what, and never a credential."""

    exit_status = 1


class Unavailable(BuildError):
    """What a build needs is not here; all of it is named. Nothing was done."""

    exit_status = 69  # EX_UNAVAILABLE


class Misconfigured(BuildError):
    """Variables are bad, all of which are named. Nothing was done."""

    exit_status = 64  # EX_USAGE
