"""Names of all files, folders, runs, attempts and checkpoints.

HOME/ledger.sqlite3                              the run store, one for all runs of a home
HOME/cache/                                      compiled kernels; may be deleted at any time
HOME/runs/RUN/data/                              token shards, data.json; versions added later: data-2/, data-3/ ...
HOME/runs/RUN/checkpoints/ID/                    manifest.json (written last), *.safetensors
HOME/runs/RUN/sessions/s001a1/                   one attempt: see AttemptLayout
HOME/runs/RUN/controller.log                     output of a detached controller
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

# Digits are [0-9]: \d would also match digits of other scripts. A number has one form only, so that a thing has one name.
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
    """Return whether a text is a valid name of a run."""
    return _RUN_NAME.fullmatch(name) is not None


def is_checkpoint_id(text: str) -> bool:
    """Return whether a text has the form of `checkpoint_id`; only such a text may become part of a path."""
    return _CHECKPOINT_ID.fullmatch(text) is not None


def is_file_name(text: str, *, on_windows: bool = _ON_WINDOWS) -> bool:
    """Return whether a text is a plain file name: no path, no hidden file, no control character.

    Args:
        text: The text.
        on_windows: Whether names with another meaning on Windows are refused as well. Elsewhere runs may have such names.
    """
    plain = text.isprintable() and not text.startswith(".") and not set(text) & set("/\\")
    if on_windows and _NOT_ON_WINDOWS.fullmatch(text):
        return False
    return plain and 0 < len(text.encode()) <= _LONGEST_FILE_NAME_BYTES


def is_inner_path(text: str) -> bool:
    """Return whether a text is a relative path with forward slashes that stays within its folder."""
    return all(map(is_file_name, text.split("/")))


def is_data_folder(text: str) -> bool:
    """Return whether a text is a valid folder of a data version: `data`, `data-2` ..., or an absolute path that the user gave.

    A path of Windows is read everywhere, for the run may have begun there; elsewhere it leads nowhere out of the run's folder.
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
"""Types for the fields of documents: pydantic checks each name when a document from outside is read."""


def check_run_name(name: str, *, on_windows: bool = _ON_WINDOWS) -> str:
    """Return the name if it is valid everywhere: as a folder, a Kaggle slug and a Slurm job.

    Args:
        name: The name.
        on_windows: Whether names of devices, such as `con`, are refused as well.

    Raises:
        UserError: it is not 1 to 40 lower-case letters, digits and inner hyphens, or it is refused here.
    """
    if not is_run_name(name) or not is_file_name(name, on_windows=on_windows):
        raise UserError(
            f"the run's name is invalid: {shown(name)}",
            expected="1 to 40 lower-case letters, digits and hyphens, no hyphen at either end"
            + (", and no device of Windows, such as con" if on_windows else ""),
            remedy="choose another --name",
        )
    return name


def attempt_name(session: int, attempt: int) -> str:
    """Return the name of an attempt within its run, such as `s003a1`; it is the same on every backend."""
    return f"s{session:03d}a{attempt}"


def parse_attempt_name(name: str) -> tuple[int, int] | None:
    """Return (session, attempt) of an attempt's name, or None for any other text."""
    match = _ATTEMPT_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def checkpoint_id(step: int, session: int, attempt: int) -> str:
    """Return the id of the checkpoint that an attempt saves at a step, such as `step-00000040-s003a1`.

    Training is a pure function of its start, so an attempt always saves the same state under the same id.
    """
    return f"step-{step:08d}-{attempt_name(session, attempt)}"


def check_checkpoint_id(text: str) -> str:
    """Return the id if it is valid.

    Raises:
        CorruptCheckpointError: it is not a checkpoint's id.
    """
    if not is_checkpoint_id(text):
        raise CorruptCheckpointError(
            text, f"the checkpoint's id is invalid: {shown(text)}", expected=f"one such as {checkpoint_id(40, 3, 1)}"
        )
    return text


def attempt_of(text: str) -> str | None:
    """Return the name of the attempt that saved a checkpoint, read from its id, or None for any other text."""
    match = _CHECKPOINT_ID.fullmatch(text)
    return match["attempt"] if match else None


def data_folder_name(version: int) -> str:
    """Return the name of a data version's folder in the run's folder: `data`, `data-2`, `data-3` ..."""
    return "data" if version == 1 else f"data-{version}"


@dataclass(frozen=True)
class HomeLayout:
    """Paths in a home."""

    root: Path

    @property
    def ledger(self) -> Path:
        """The SQLite file of the run store."""
        return self.root / "ledger.sqlite3"

    @property
    def cache(self) -> Path:
        """The folder of compiled kernels."""
        return self.root / "cache"

    def run(self, name: str) -> RunLayout:
        """The folder of one run.

        Raises:
            UserError: the name is not a valid name of a run.
        """
        return RunLayout(self.root / "runs" / check_run_name(name))


@dataclass(frozen=True)
class RunLayout:
    """Paths in a run's folder."""

    root: Path

    @property
    def data(self) -> Path:
        """The folder of token shards and their manifest."""
        return self.root / "data"

    def data_folder(self, folder: str) -> Path:
        """The folder of a data version, which its record gives as a name in this folder or as an absolute path.

        Raises:
            DataError: it is neither.
        """
        if not is_data_folder(folder):
            raise DataError(f"the data folder is invalid: {shown(folder)}", expected="data, data-2 ..., or an absolute path")
        return self.root / folder

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoint store."""
        return self.root / "checkpoints"

    @property
    def sessions(self) -> Path:
        """The folder that holds a folder per attempt."""
        return self.root / "sessions"

    @property
    def controller_log(self) -> Path:
        """The output of a detached controller."""
        return self.root / "controller.log"

    def attempt(self, session: int, attempt: int) -> AttemptLayout:
        """The folder of one attempt."""
        return AttemptLayout(self.sessions / attempt_name(session, attempt))


@dataclass(frozen=True)
class AttemptLayout:
    """Paths in an attempt's folder; the worker uses only this folder and those that its spec names."""

    root: Path

    @property
    def spec(self) -> Path:
        """The SessionSpec, written before the launch."""
        return self.root / SPEC_NAME

    @property
    def lock(self) -> Path:
        """The worker holds its lock until it ends, even if the controller that started it ends first."""
        return self.root / "alive.lock"

    @property
    def launched(self) -> Path:
        """Exists from the first try to launch."""
        return self.root / "launched.json"

    @property
    def heartbeat(self) -> Path:
        """The worker's Heartbeat, replaced at most once a second."""
        return self.root / "heartbeat.json"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """The worker's output."""
        return self.root / "worker.log"

    @property
    def stop(self) -> Path:
        """The stop file: asks the worker to save at the next step boundary and end."""
        return self.root / "stop"

    @property
    def report(self) -> Path:
        """The SessionReport, which the worker writes last."""
        return self.root / REPORT_NAME
