"""The one tree of errors: the class carries what callers decide on, the message carries what the user needs."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorClass(StrEnum):
    """What may be done about an error; the policy decides by this alone."""

    USER = "user"
    """The user must change something; trying again is useless."""
    INFRA = "infra"
    """A machine, network or platform failed; trying again may help."""
    QUOTA = "quota"
    """The platform refuses until a known instant."""
    DATA = "data"
    """Bytes are not what they should be: a checkpoint, a shard, a corpus."""


class ExitCode:
    """Exit codes of `gemma-orch` and `python -m worker`; documented in docs/commands.md."""

    DONE = 0
    USER = 2
    TEMPORARY = 3
    DATA = 4


class GemmaOrchError(Exception):
    """Base of everything that gemma-orch raises on purpose.

    Args:
        what: What failed, with the value that it failed on.
        expected: What would have been right; empty when `what` already says it.
        remedy: What to do next, as a sentence or a command.
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
    """Something outside failed that may work later."""

    error_class = ErrorClass.INFRA
    exit_code = ExitCode.TEMPORARY
    retryable = True


class AmbiguousError(TemporaryError):
    """An act's answer was lost: whether it happened is unknown, so look before acting again."""


class NotLaunchedError(TemporaryError):
    """An attempt was certainly not launched, and may be later: the platform is full, or out of quota, or out of reach."""


class OutOfReachError(TemporaryError):
    """What is to be done can be done somewhere else only: a process is to be ended that is not one of ours here."""


class LeaseHeldError(TemporaryError):
    """Another controller holds the run."""


class LeaseLostError(TemporaryError):
    """This controller held the run, and another one has taken it over."""


class QuotaError(TemporaryError):
    """The platform refuses until a known instant."""

    error_class = ErrorClass.QUOTA


class DataError(GemmaOrchError):
    """Bytes are not what they should be."""

    error_class = ErrorClass.DATA
    exit_code = ExitCode.DATA


class CorruptCheckpointError(DataError):
    """A checkpoint's files do not match its manifest, or its manifest does not match what was expected."""

    def __init__(self, checkpoint_id: str, what: str, *, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected=expected, remedy=remedy)
        self.checkpoint_id = checkpoint_id


class CanaryError(CorruptCheckpointError):
    """The first step after a restore gave another loss than the parent's session recorded for it."""


def shown(text: str, longest: int = 80) -> str:
    """Return a text from outside as a message may show it: quoted, without control characters, and cut."""
    return repr(text) if len(text) <= longest else f"{text[:longest]!r} ..."


def did_you_mean(wrong: str, known: list[str]) -> str:
    """Return a hint such as `Did you mean 'tiny'? ` for the closest known name, else an empty string."""
    import difflib

    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""
