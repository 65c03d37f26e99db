"""Decides after a failure: retry now, retry after a delay, or stop the run with an explanation; pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from state.errors import ErrorClass, ExitCode
from state.ledger import AttemptRecord, RunRecord
from state.session import AttemptState

MOST_ATTEMPTS_WITHOUT_PROGRESS = 3
MOST_STEP_BACKS = 2
_FIRST_DELAY_S = 15.0
_LONGEST_DELAY_S = 900.0


@dataclass(frozen=True)
class GoOn:
    """Launch another attempt, not before a given time."""

    not_before: datetime | None = None


@dataclass(frozen=True)
class StopAndExplain:
    """Stop the run: a retry cannot help until the user changes something."""

    message: str
    exit_code: int


def judge(record: RunRecord) -> GoOn | StopAndExplain:
    """Decide from the attempts since the last `start` by the user whether to launch another one."""
    header = record.header
    if header.step_backs > MOST_STEP_BACKS:
        return StopAndExplain(
            f"{header.step_backs} checkpoints in a row were corrupt; check the disk and the machine",
            ExitCode.DATA,
        )
    failures = _failures_without_progress(record)
    if not failures:
        return GoOn()
    last = failures[-1]
    if last.error_class is ErrorClass.QUOTA:  # no fault of the run: retry without a limit
        return GoOn(last.ended_at + timedelta(seconds=_LONGEST_DELAY_S) if last.ended_at else None)
    failures = [failure for failure in failures if failure.error_class is not ErrorClass.QUOTA]
    why = f"session {last.session} attempt {last.attempt}: {last.reason}"
    if last.error_class is ErrorClass.USER:
        return StopAndExplain(why, ExitCode.USER)
    if len(failures) >= 2 and last.error_fingerprint and last.error_fingerprint == failures[-2].error_fingerprint:
        return StopAndExplain(f"two attempts in a row failed with the same error; last: {why}", _exit_code(last))
    if len(failures) >= MOST_ATTEMPTS_WITHOUT_PROGRESS:
        return StopAndExplain(f"{len(failures)} attempts in a row without a new verified step; last: {why}", _exit_code(last))
    delay_s = retry_delay_s(len(failures), f"{record.name} {last.session} {last.attempt}")
    return GoOn(last.ended_at + timedelta(seconds=delay_s) if last.ended_at and delay_s else None)


def retry_delay_s(num_failures: int, seed: str) -> float:
    """Return the seconds to wait before the next attempt: 0 after one failure, then doubling up to a cap, with jitter.

    The jitter is derived from the seed, so that a replay gives the same decision.
    """
    if num_failures <= 1:
        return 0.0
    jitter = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]) / 2**32
    return min(_FIRST_DELAY_S * 2.0 ** (num_failures - 2), _LONGEST_DELAY_S) * (0.5 + jitter)


def _failures_without_progress(record: RunRecord) -> Sequence[AttemptRecord]:
    failures: list[AttemptRecord] = []
    for attempt in reversed(record.attempts):
        if attempt.branch is not None or attempt.state is AttemptState.DROPPED:
            continue
        if attempt.saved_step is not None or attempt.planned_at < record.header.resumed_at:
            break
        failures.append(attempt)
    return failures[::-1]


def _exit_code(attempt: AttemptRecord) -> int:
    return ExitCode.DATA if attempt.error_class is ErrorClass.DATA else ExitCode.TEMPORARY
