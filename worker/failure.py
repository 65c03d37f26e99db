"""Classifies an exception: its error class (who must act), its fingerprint (is it the same again?) and its message."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass
from pathlib import Path

from state.document import digest_of
from state.errors import CorruptCheckpointError, ErrorClass, ExitCode, GemmaOrchError, UserError
from state.installation import install_command

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OWN_FRAMES = 3
_FINGERPRINT_DIGITS = 16
_PACKAGES_ROOT = Path(__file__).parent.parent
_TRAIN_MODULES = frozenset({"torch", "numpy", "safetensors", "sentencepiece"})
_EXIT_CODES = {
    ErrorClass.USER: ExitCode.USER,
    ErrorClass.INFRA: ExitCode.TEMPORARY,
    ErrorClass.QUOTA: ExitCode.TEMPORARY,
    ErrorClass.DATA: ExitCode.DATA,
}


@dataclass(frozen=True)
class Failure:
    """How an exception is reported."""

    reason: str
    error_class: ErrorClass
    fingerprint: str
    corrupt_checkpoint: str | None
    expected: bool
    """Whether it is an error of ours with a full message, so that no traceback is needed."""

    @property
    def exit_code(self) -> int:
        """The worker's exit code."""
        return _EXIT_CODES[self.error_class]


def understand(error: BaseException) -> Failure:
    """Return the failure for an exception that ended a session."""
    known = error if isinstance(error, GemmaOrchError) else _translated(error)
    return Failure(
        reason=str(known) if known else f"unexpected {type(error).__name__}: {error}",
        error_class=known.error_class if known else ErrorClass.INFRA,
        fingerprint=fingerprint(error),
        corrupt_checkpoint=known.checkpoint_id if isinstance(known, CorruptCheckpointError) else None,
        expected=known is not None,
    )


def hung(problem: str) -> Failure:
    """Return the failure of a session that hangs."""
    return Failure(
        reason=problem,
        error_class=ErrorClass.INFRA,
        fingerprint=digest_of(["hung"])[:_FINGERPRINT_DIGITS],
        corrupt_checkpoint=None,
        expected=True,
    )


def fingerprint(error: BaseException) -> str:
    """Return a digest of the error's type and its place in our code; values in its message do not matter."""
    frames = [
        f"{Path(frame.filename).name}:{frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(_PACKAGES_ROOT) and "site-packages" not in frame.filename
    ]
    return digest_of([type(error).__qualname__, frames[-_OWN_FRAMES:]])[:_FINGERPRINT_DIGITS]


def is_disk_full(error: BaseException) -> bool:
    """Return whether a write failed because the disk, the quota or the allowed file size is used up."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def disk_full(needed_bytes: int, free_bytes: int, folder: Path) -> UserError:
    """Return the error for a disk without room for a checkpoint; it names the needed and the free bytes."""
    return UserError(
        f"the disk of {folder} is full: a checkpoint needs {_mib(needed_bytes)}, {_mib(free_bytes)} are free",
        expected="room for one more checkpoint; the last good one is untouched",
        remedy="free some space, keep fewer checkpoints (keep_last under [checkpoints] in the config file), "
        "or move GEMMA_ORCH_HOME to a larger disk; then start again",
    )


def missing_extra(module: str) -> UserError:
    """Return the error for a module of the training extra that is not installed."""
    return UserError(f"{module} is not installed, and running a session needs it", remedy=install_command("train"))


def _translated(error: BaseException) -> GemmaOrchError | None:
    if isinstance(error, ModuleNotFoundError) and error.name == "fcntl":
        return UserError(
            "fcntl is missing, and the worker needs Linux or macOS",
            remedy="do it in WSL or on another machine; data that is prepared there can be used here: --data DIR",
        )
    if isinstance(error, ModuleNotFoundError) and error.name in _TRAIN_MODULES:
        return missing_extra(str(error.name))
    if is_disk_full(error):
        return UserError(
            f"the disk is full: {error}",
            expected="room to write; the last good checkpoint is untouched",
            remedy="free some space, then continue the run",
        )
    # torch's own out-of-memory errors are RuntimeErrors: a class on GPUs, a text on CPUs.
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate" in str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory):
        return UserError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'no details'}",
            remedy="start another run with a smaller training.micro_batch_size, which changes nothing but rounding",
        )
    return None


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
