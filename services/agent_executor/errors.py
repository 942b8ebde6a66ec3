"""Every failure this service can name.

An error's message holds ids and limits and answers the reader's next question; it never holds a secret or a value the
caller sent. What HTTP makes of each class is decided in `api`, what a job makes of it in `runner`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_TOLD = 10


@dataclass(frozen=True)
class Finding:
    """One thing wrong with an input: the field's path (`data.job_id`, `nodes[0].config.model`) and what it must be."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class AgentExecutorError(Exception):
    """Base of all errors raised on purpose; `findings` names the fields where the cause lies in an input."""

    def __init__(self, message: str, findings: Iterable[Finding] = ()) -> None:
        self.findings = tuple(findings)
        super().__init__(message)


class InvalidInput(AgentExecutorError):
    """The request or event can never be accepted as it is. The message has the first findings, `findings` all."""

    def __init__(self, what: str, findings: Iterable[Finding]) -> None:
        found = tuple(findings)
        told = [str(finding) for finding in found[:_TOLD]] + ["and more"] * (len(found) > _TOLD)
        super().__init__(f"{what}: " + "; ".join(told), found)


class PayloadTooLarge(AgentExecutorError):
    """The body is larger than MAX_BODY_BYTES, or than its tenant may send."""


class Conflict(AgentExecutorError):
    """The job id or the event's source and id are taken, or the job is in a state that forbids what is asked."""


class NotFound(AgentExecutorError):
    """No such job."""


class TooManyRequests(AgentExecutorError):
    """The tenant is at one of its limits, which `findings` names; it may be worth trying again in `retry_after_s`."""

    def __init__(self, message: str, limit: Finding, retry_after_s: float) -> None:
        super().__init__(message, [limit])
        self.retry_after_s = retry_after_s


class Unauthenticated(AgentExecutorError):
    """No credential, or one that is no good. `challenge` is for the header WWW-Authenticate."""

    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


class Forbidden(AgentExecutorError):
    """The credential is good, and does not allow this. `challenge` is for the header WWW-Authenticate."""

    def __init__(self, message: str, challenge: str | None = None) -> None:
        super().__init__(message)
        self.challenge = challenge


class InternalError(AgentExecutorError):
    """A bug. What went wrong stands in the service's log."""


class Unavailable(AgentExecutorError):
    """The service cannot do this now: starting, draining, or without its database. Trying again later is right."""


class NotDeployed(AgentExecutorError):
    """This process lacks what the job was accepted with: a graph, a package, a provider. Another one may have it."""


class LeaseLost(AgentExecutorError):
    """The claim no longer holds: another worker has the job, or it has ended. Nothing may be written under it."""


class DamagedCheckpoint(AgentExecutorError):
    """What a checkpoint is made of is missing, or not what was written: somebody has deleted or changed single rows."""


class Stopped(AgentExecutorError):
    """The run ended at a checkpoint because it was asked to; it goes on from there later."""


class Cancelled(AgentExecutorError):
    """Somebody cancelled the job."""


class WorkerLost(AgentExecutorError):
    """The job's workers fell silent, once for each attempt it had."""


class VaultDenied(AgentExecutorError):
    """Vault answers, and refuses: the login, or a path; the message names who asked, and for what."""


class LoginDenied(VaultDenied):
    """Vault refuses the login, which may pass: it says the same when it cannot ask Kubernetes."""


class Incomplete(AgentExecutorError):
    """A secret in Vault lacks fields, or has some that cannot be used; the message names its path and them."""


class ModelUnavailable(AgentExecutorError):
    """A definition names a provider that does not exist here, or one that has no key."""


class LimitExceeded(AgentExecutorError):
    """The job used more than it may; the message names the limit and its value."""


class GraphNotLoaded(AgentExecutorError):
    """LANGGRAPH_CONFIG, or a graph that it names, cannot be used."""


class ToolScriptError(AgentExecutorError):
    """A tool script does not run, or does not make the tool it promises."""


class ToolFailed(AgentExecutorError):
    """A tool came to no end of its own: its process died, or a limit stopped it, which the message names."""


class ToolTimeout(ToolFailed):
    """A tool took longer than TOOL_TIMEOUT_S."""


class SandboxUnavailable(AgentExecutorError):
    """Tool scripts cannot be run here, since they could not be confined; the message names what is missing.

    `may_pass`: it may be different in a moment.
    """

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass
