"""The tree of errors: callers decide by the class, users read the message."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorClass(StrEnum):
    """What can be done about an error; the retry policy decides by this alone."""

    USER = "user"
    """The user must change something; a retry is useless."""
    INFRA = "infra"
    """A machine, network or platform failed; a retry may help."""
    QUOTA = "quota"
    """The platform refuses until a known instant."""
    DATA = "data"
    """The bytes of a checkpoint, a shard or a corpus are wrong."""


class ExitCode:
    """Exit codes of `gemma-orch` and `python -m worker`; documented in docs/commands.md."""

    DONE = 0
    USER = 2
    TEMPORARY = 3
    DATA = 4


class GemmaOrchError(Exception):
    """Base of everything that gemma-orch raises on purpose.

    Args:
        what: What failed, with the value that caused it.
        expected: The value or state that would have been right; empty when `what` already says it.
        remedy: What the user should do next, as a sentence or a command.
    """

    error_class: ClassVar[ErrorClass] = ErrorClass.USER
    exit_code: ClassVar[int] = ExitCode.USER
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected, remedy)
        self.what = what
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [self.what]
        if self.expected:
            parts.append(f"Expected: {self.expected}")
        if self.remedy:
            parts.append(f"Next: {self.remedy}")
        return "\n".join(parts)


class UserError(GemmaOrchError):
    """The user must change something: an option, a file, the machine."""


class TemporaryError(GemmaOrchError):
    """Something outside failed; a retry may help."""

    error_class = ErrorClass.INFRA
    exit_code = ExitCode.TEMPORARY
    retryable = True


class AmbiguousError(TemporaryError):
    """The answer to a write was lost, so its effect is unknown: look before sending it again."""


class NotLaunchedError(TemporaryError):
    """An attempt was certainly not launched, but may be later: the platform is full, out of quota or out of reach."""


class OutOfReachError(TemporaryError):
    """The act is only possible elsewhere, such as ending a process of another host or container."""


class LeaseHeldError(TemporaryError):
    """Another controller holds the run."""


class LeaseLostError(TemporaryError):
    """Another controller has taken this run over."""


class QuotaError(TemporaryError):
    """The platform refuses until a known instant."""

    error_class = ErrorClass.QUOTA


class DataError(GemmaOrchError):
    """Stored bytes or values are wrong."""

    error_class = ErrorClass.DATA
    exit_code = ExitCode.DATA


class CorruptCheckpointError(DataError):
    """A checkpoint's files do not match its manifest, or its manifest is not the expected one."""

    def __init__(self, checkpoint_id: str, what: str, *, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.checkpoint_id = checkpoint_id


class CanaryError(CorruptCheckpointError):
    """The canary failed: the first loss after a restore differs from the one recorded with the checkpoint."""


def shown(text: str, longest: int = 80) -> str:
    """Return a text from outside, safe to print: quoted, control characters escaped, cut at `longest` characters."""
    return repr(text) if len(text) <= longest else f"{text[:longest]!r} ..."


def did_you_mean(wrong: str, known: list[str]) -> str:
    """Return a hint such as `did you mean 'tiny'?` for the closest known name, or an empty string."""
    import difflib

    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""
