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
from dataclasses import dataclass
from pathlib import Path

from state.errors import UserError

MANIFEST_NAME = "manifest.json"
DATA_MANIFEST_NAME = "data.json"
SPEC_NAME = "session.json"
REPORT_NAME = "report.json"

_RUN_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_ATTEMPT_NAME = re.compile(r"s(\d{3,})a(\d+)")
_CHECKPOINT_ID = re.compile(rf"step-[0-9]+-(?P<attempt>{_ATTEMPT_NAME.pattern})")


def check_run_name(name: str) -> str:
    """Return the name when it can name a run everywhere (folders, Kaggle slugs, Slurm jobs).

    Raises:
        UserError: it is not 1 to 40 lower-case letters, digits and inner hyphens.
    """
    if not _RUN_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a run",
            expected="1 to 40 lower-case letters, digits and hyphens, not at either end",
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
        """The folder of one run."""
        return RunLayout(self.root / "runs" / name)


@dataclass(frozen=True)
class RunLayout:
    """What lies in a run's folder."""

    root: Path

    @property
    def data(self) -> Path:
        """Token shards and their manifest."""
        return self.root / "data"

    def data_folder(self, folder: str) -> Path:
        """The folder of a data version, by what its record says: a name in this folder, or a path of its own."""
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
