from __future__ import annotations

import pytest

from state.errors import (
    AmbiguousError,
    CanaryError,
    CorruptCheckpointError,
    DataError,
    ErrorClass,
    ExitCode,
    GemmaOrchError,
    LeaseHeldError,
    LeaseLostError,
    QuotaError,
    TemporaryError,
    UserError,
    did_you_mean,
)


def test_a_message_says_what_failed_what_was_expected_and_what_to_do() -> None:
    error = UserError("the corpus is empty", expected="some text", remedy="add files")
    assert str(error) == "the corpus is empty\nExpected: some text\nNext: add files"
    assert str(UserError("the corpus is empty")) == "the corpus is empty"


@pytest.mark.parametrize(
    ("kind", "error_class", "exit_code", "retryable"),
    [
        (UserError, ErrorClass.USER, ExitCode.USER, False),
        (TemporaryError, ErrorClass.INFRA, ExitCode.TEMPORARY, True),
        (AmbiguousError, ErrorClass.INFRA, ExitCode.TEMPORARY, True),
        (LeaseHeldError, ErrorClass.INFRA, ExitCode.TEMPORARY, True),
        (LeaseLostError, ErrorClass.INFRA, ExitCode.TEMPORARY, True),
        (QuotaError, ErrorClass.QUOTA, ExitCode.TEMPORARY, True),
        (DataError, ErrorClass.DATA, ExitCode.DATA, False),
        (CorruptCheckpointError, ErrorClass.DATA, ExitCode.DATA, False),
        (CanaryError, ErrorClass.DATA, ExitCode.DATA, False),
    ],
)
def test_the_class_carries_what_callers_decide_on(
    kind: type[GemmaOrchError], error_class: ErrorClass, exit_code: int, *, retryable: bool
) -> None:
    assert (kind.error_class, kind.exit_code, kind.retryable) == (error_class, exit_code, retryable)


def test_the_exit_codes_are_the_documented_ones() -> None:
    assert (ExitCode.DONE, ExitCode.USER, ExitCode.TEMPORARY, ExitCode.DATA) == (0, 2, 3, 4)


def test_a_corrupt_checkpoint_is_named() -> None:
    assert CorruptCheckpointError("step-1", "it has changed").checkpoint_id == "step-1"


def test_a_close_name_is_hinted_at_and_a_far_one_is_not() -> None:
    assert did_you_mean("tinny", ["tiny", "270m"]) == "did you mean 'tiny'?"
    assert did_you_mean("xyz", ["tiny", "270m"]) == ""
