from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from state.errors import CanaryError, ErrorClass, UserError
from state.installation import install_command
from worker.failure import disk_full, fingerprint, hung, is_disk_full, understand
from worker.session.canary import Canary
from worker.train.optim import learning_rate


def caught(act: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:
        act()
    return raised.value


def raiser(error: Exception) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


def test_our_own_errors_keep_their_text_and_class():
    failure = understand(UserError("the loss is nan", remedy="lower it"))
    assert failure.reason == "the loss is nan\nNext: lower it"
    assert (failure.error_class, failure.exit_code, failure.expected) == (ErrorClass.USER, 2, True)


def test_a_canary_names_the_checkpoint():
    error = caught(lambda: Canary("step-00000004-s001a1", 1.0, same_environment=True).check(2.0))
    assert isinstance(error, CanaryError)
    failure = understand(error)
    assert (failure.corrupt_checkpoint, failure.error_class, failure.exit_code) == ("step-00000004-s001a1", ErrorClass.DATA, 4)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_for_the_user_to_change(number: int):
    error = OSError(number, "no room")
    assert is_disk_full(error)
    failure = understand(error)
    assert (failure.error_class, failure.expected) == (ErrorClass.USER, True)
    assert "the disk is full" in failure.reason


def test_a_full_disk_tells_what_was_needed_and_what_was_there():
    text = str(disk_full(3 * 2**20, 2**19, Path("/data")))
    assert "/data is full: a checkpoint needs 3.0 MiB, 0.5 MiB are free" in text
    assert "the last good one is untouched" in text


def test_a_full_disk_tells_what_makes_room_in_the_users_own_words():
    text = str(disk_full(3 * 2**20, 2**19, Path("/data")))
    assert "keep_last under [checkpoints] in the config file" in text
    assert "move GEMMA_ORCH_HOME" in text
    assert "retention" not in text


class OutOfMemoryError(RuntimeError):
    """Named as torch's own for GPUs."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_out_of_memory_says_what_would_help(error: Exception):
    failure = understand(error)
    assert failure.reason.startswith("out of memory: ")
    assert "micro_batch_size" in failure.reason
    assert failure.error_class is ErrorClass.USER


def test_a_missing_extra_says_how_to_install_it():
    failure = understand(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert install_command("train") in failure.reason
    assert failure.exit_code == 2


def test_a_system_without_file_locks_is_told_which_ones_have_them():
    failure = understand(ModuleNotFoundError("No module named 'fcntl'", name="fcntl"))
    assert "Linux or macOS" in failure.reason
    assert (failure.exit_code, failure.expected) == (2, True)


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("x", name="worker.nothing"), OSError(errno.EIO, "x"), RuntimeError("x"), KeyError("x")]
)
def test_everything_else_is_unexpected_and_may_be_tried_again(error: Exception):
    failure = understand(error)
    assert (failure.error_class, failure.exit_code, failure.expected) == (ErrorClass.INFRA, 3, False)
    assert failure.reason.startswith(f"unexpected {type(error).__name__}: ")


def test_equal_errors_have_equal_fingerprints_whatever_their_values():
    def at(step: int) -> Exception:
        return caught(lambda: Canary("x", float(step), same_environment=True).check(0.5))

    assert fingerprint(at(1)) == fingerprint(at(2))


def test_errors_of_another_kind_or_from_another_place_have_other_fingerprints():
    here, there = caught(raiser(KeyError("a"))), caught(lambda: learning_rate(None, 1, 2))  # type: ignore[arg-type]
    prints = {fingerprint(error) for error in (here, there, caught(raiser(ValueError("a"))))}
    assert len(prints) == 3
    assert all(len(text) == 16 for text in prints)


def test_a_hung_session_is_the_machines_fault():
    failure = hung("step 3 has not ended")
    assert (failure.error_class, failure.exit_code) == (ErrorClass.INFRA, 3)
    assert failure.fingerprint == hung("step 4 has not ended").fingerprint
