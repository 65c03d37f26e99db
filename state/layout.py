"""All file names, in one place.

HOME/ledger.sqlite3                              the run store, one for all runs of a home
HOME/cache/                                      compiled kernels; may be deleted at any time
HOME/runs/RUN/data/                              token shards, data.json; versions added later: data-2/, data-3/ ...
HOME/runs/RUN/checkpoints/ID/                    manifest.json (written last), *.safetensors
HOME/runs/RUN/sessions/s001a1/                   one attempt: see AttemptLayout
HOME/runs/RUN/controller.log                     what a detached controller printed
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from state.errors import CorruptCheckpointError, DataError, UserError, shown

MANIFEST_NAME = "manifest.json"
DATA_MANIFEST_NAME = "data.json"
SPEC_NAME = "session.json"
REPORT_NAME = "report.json"

# Digits are [0-9]: \d would also be those of other scripts. Numbers have one form only, so that one thing has one name.
_RUN_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_ATTEMPT_NAME = re.compile(r"s([0-9]{3}|[1-9][0-9]{3,8})a([1-9][0-9]{0,8})")
_CHECKPOINT_ID = re.compile(rf"step-(?:[0-9]{{8}}|[1-9][0-9]{{8,17}})-(?P<attempt>{_ATTEMPT_NAME.pattern})")
_BRANCH_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_DATA_FOLDER = re.compile(r"data(?:-[1-9][0-9]{0,8})?")
_WINDOWS_PATH = re.compile(r"(?:[A-Za-z]:|\\)\\[^/\0]*")
_LONGEST_FILE_NAME_BYTES = 255
# A colon begins a drive or a second content of a file; some names mean a device in every folder, whatever their ending.
_NOT_ON_WINDOWS = re.compile(r'.*[<>:"|?*].*|.*[. ]|(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?: *\..*)?', re.IGNORECASE)
_ON_WINDOWS = sys.platform == "win32"


def is_run_name(name: str) -> bool:
    """Return whether a text can name a run."""
    return _RUN_NAME.fullmatch(name) is not None


def is_checkpoint_id(text: str) -> bool:
    """Return whether a text is of the form of `checkpoint_id`: only then may it become a path."""
    return _CHECKPOINT_ID.fullmatch(text) is not None


def is_file_name(text: str, *, on_windows: bool = _ON_WINDOWS) -> bool:
    """Return whether a text names a file within a folder, and nothing else: no path, no hidden file, no control character.

    Args:
        text: The text.
        on_windows: Whether names that mean something else on Windows are refused as well. Elsewhere runs may have such names.
    """
    plain = text.isprintable() and not text.startswith(".") and not set(text) & set("/\\")
    if on_windows and _NOT_ON_WINDOWS.fullmatch(text):
        return False
    return plain and 0 < len(text.encode()) <= _LONGEST_FILE_NAME_BYTES


def is_inner_path(text: str) -> bool:
    """Return whether a text, with forward slashes, names a file within a folder or one of its folders."""
    return all(map(is_file_name, text.split("/")))


def is_data_folder(text: str) -> bool:
    """Return whether a text can be the folder of a data version: `data`, `data-2` ..., or an absolute path of the user's own.

    A path of Windows is read everywhere, for a run may have been begun there; elsewhere it leads nowhere out of the run's folder.
    """
    is_absolute = (text.startswith("/") and "\0" not in text) or _WINDOWS_PATH.fullmatch(text) is not None
    return _DATA_FOLDER.fullmatch(text) is not None or is_absolute


def _checked(accepts: Callable[[str], object], what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not accepts(text):
            raise ValueError(f"{shown(text)} is no {what}")
        return text

    return AfterValidator(check)


RunName = Annotated[str, _checked(is_run_name, "name of a run")]
AttemptName = Annotated[str, _checked(_ATTEMPT_NAME.fullmatch, "name of an attempt, such as s003a1")]
CheckpointId = Annotated[str, _checked(is_checkpoint_id, "checkpoint's id, such as step-00000040-s003a1")]
BranchName = Annotated[str, _checked(_BRANCH_NAME.fullmatch, "name of a branch, such as rerun-s003a2")]
FileName = Annotated[str, _checked(is_file_name, "plain file name")]
InnerPath = Annotated[str, _checked(is_inner_path, "path within a folder")]
DataFolder = Annotated[str, _checked(is_data_folder, "folder of data, such as data-2, or an absolute path")]
"""What documents say such things with: whatever comes from outside is checked as it is read."""


def check_run_name(name: str, *, on_windows: bool = _ON_WINDOWS) -> str:
    """Return the name when it can name a run everywhere (folders, Kaggle slugs, Slurm jobs).

    Args:
        name: The name.
        on_windows: Whether names of devices, such as `con`, are refused as well.

    Raises:
        UserError: it is not 1 to 40 lower-case letters, digits and inner hyphens, or it is refused here.
    """
    if not is_run_name(name) or not is_file_name(name, on_windows=on_windows):
        raise UserError(
            f"{shown(name)} cannot name a run",
            expected="1 to 40 lower-case letters, digits and hyphens, not at either end"
            + (", and no device of Windows, such as con" if on_windows else ""),
            remedy="choose another --name",
        )
    return name


def attempt_name(session: int, attempt: int) -> str:
    """Return the name of an attempt within its run, such as `s003a1`; the same on every backend."""
    return f"s{session:03d}a{attempt}"


def parse_attempt_name(name: str) -> tuple[int, int] | None:
    """Return (session, attempt) of an attempt's name, or None when it is none."""
    match = _ATTEMPT_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def checkpoint_id(step: int, session: int, attempt: int) -> str:
    """Return the id of the checkpoint that an attempt saves at a step, such as `step-00000040-s003a1`.

    Training is a pure function of its start, so the same attempt can only ever save the same state under this id.
    """
    return f"step-{step:08d}-{attempt_name(session, attempt)}"


def check_checkpoint_id(text: str) -> str:
    """Return the id when it is one.

    Raises:
        CorruptCheckpointError: it is none.
    """
    if not is_checkpoint_id(text):
        raise CorruptCheckpointError(
            text, f"{shown(text)} is no checkpoint's id", expected=f"one such as {checkpoint_id(40, 3, 1)}"
        )
    return text


def attempt_of(text: str) -> str | None:
    """Return the name of the attempt that saved the checkpoint of an id, or None when the text is no such id."""
    match = _CHECKPOINT_ID.fullmatch(text)
    return match["attempt"] if match else None


def data_folder_name(version: int) -> str:
    """Return the name of a data version's folder within the run's: `data`, `data-2`, `data-3` ..."""
    return "data" if version == 1 else f"data-{version}"


@dataclass(frozen=True)
class HomeLayout:
    """What lies in a home."""

    root: Path

    @property
    def ledger(self) -> Path:
        """The SQLite file of the run store."""
        return self.root / "ledger.sqlite3"

    @property
    def cache(self) -> Path:
        """Compiled kernels."""
        return self.root / "cache"

    def run(self, name: str) -> RunLayout:
        """The folder of one run.

        Raises:
            UserError: it is no name of a run.
        """
        return RunLayout(self.root / "runs" / check_run_name(name))


@dataclass(frozen=True)
class RunLayout:
    """What lies in a run's folder."""

    root: Path

    @property
    def data(self) -> Path:
        """Token shards and their manifest."""
        return self.root / "data"

    def data_folder(self, folder: str) -> Path:
        """The folder of a data version, by what its record says: a name in this folder, or a path of its own.

        Raises:
            DataError: it is neither.
        """
        if not is_data_folder(folder):
            raise DataError(f"{shown(folder)} is no folder of data", expected="data, data-2 ..., or an absolute path")
        return self.root / folder

    @property
    def checkpoints(self) -> Path:
        """The directory checkpoint store."""
        return self.root / "checkpoints"

    @property
    def sessions(self) -> Path:
        """One folder for each attempt."""
        return self.root / "sessions"

    @property
    def controller_log(self) -> Path:
        """What a detached controller printed."""
        return self.root / "controller.log"

    def attempt(self, session: int, attempt: int) -> AttemptLayout:
        """The folder of one attempt."""
        return AttemptLayout(self.sessions / attempt_name(session, attempt))


@dataclass(frozen=True)
class AttemptLayout:
    """What lies in an attempt's folder; the worker knows no other place than this one and those named in its spec."""

    root: Path

    @property
    def spec(self) -> Path:
        """The SessionSpec, written before the launch."""
        return self.root / SPEC_NAME

    @property
    def lock(self) -> Path:
        """Locked by the worker as long as it lives; the lock outlives the controller that started it."""
        return self.root / "alive.lock"

    @property
    def launched(self) -> Path:
        """Exists once a launch has been tried."""
        return self.root / "launched.json"

    @property
    def heartbeat(self) -> Path:
        """The worker's Heartbeat, replaced at most once a second."""
        return self.root / "heartbeat.json"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What the worker printed."""
        return self.root / "worker.log"

    @property
    def stop(self) -> Path:
        """Asks the worker to save at the next step boundary and end."""
        return self.root / "stop"

    @property
    def report(self) -> Path:
        """The SessionReport, the worker's last act."""
        return self.root / REPORT_NAME
