"""An account on an emulator, spoken to by our own client, with a clock whose sleep lets the emulator's time pass at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from tests.kaggle_clients import USER, pointed_at
from tests.kaggle_emulator import KaggleEmulator, Settings
from tests.patience import PATIENCE_S


class EmulatorTime:
    """The emulator's clock as a clock of ours."""

    def __init__(self, emulator: KaggleEmulator) -> None:
        self._emulator = emulator

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._emulator.clock.now(), UTC)

    def monotonic(self) -> float:
        return self._emulator.clock.now()

    def sleep(self, seconds: float) -> None:
        self._emulator.clock.advance(seconds)


class PatientTime(EmulatorTime):
    """The same where sessions run: before time passes, each whose turn has come gets all the time that it needs."""

    def __init__(self, emulator: KaggleEmulator, *, endless: str = "") -> None:
        super().__init__(emulator)
        self._endless = endless

    def sleep(self, seconds: float) -> None:
        self._emulator.let_sessions_act(endless=self._endless)
        super().sleep(seconds)


@dataclass(frozen=True)
class Account:
    """What a test has of it."""

    emulator: KaggleEmulator
    api: KaggleApi
    clock: EmulatorTime
    home: Path

    def versions(self, slug: str) -> list[list[str]]:
        """The names of the files of each version that was ever made of a dataset."""
        found = next((dataset for dataset in self.emulator.datasets.all() if dataset.slug == slug), None)
        return [[file.name for file in version.files()] for version in found.versions] if found else []

    def type(
        self, *arguments: str, credentials: str = "key", stdin: int = subprocess.DEVNULL, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Type a command of ours, in a process of its own."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.upper().startswith(("KAGGLE", "HTTP", "NO_PROXY"))},
            **self.emulator.client_environment(self.home, credentials=credentials),
            "GEMMA_ORCH_HOME": str(self.home / "gemma-orch"),
            "COLUMNS": "250",
            **more,
        }
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            stdin=stdin,
        )


@contextmanager
def account(folder: Path, **settings: Any) -> Iterator[Account]:
    """Start an emulator in the folder, and sign in; at the end nothing may have gone wrong inside it, got out or leaked."""
    home = folder / "user"
    home.mkdir()
    with KaggleEmulator(folder, Settings(**settings)) as emulator, pointed_at(emulator, home):
        clock = EmulatorTime(emulator)
        credentials = Credentials("the test", user=USER, key=emulator.settings.key)
        yield Account(emulator, KaggleApi(credentials, clock=clock), clock, home)
        assert emulator.errors == []
        assert emulator.journal.escapes == []
        assert emulator.leaks() == []
