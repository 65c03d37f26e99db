"""Where ports meet adapters, once: the only module that names a concrete backend or store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.backends.local import LocalBackend
from orchestrator.ports import Backend, Ports
from orchestrator.worker_process.prepare import WorkerPreparer
from state.clock import Clock, SystemClock
from state.errors import UserError, did_you_mean
from state.layout import HomeLayout
from state.ledger import DataRecord
from state.process import identify
from state.stores.checkpoint_store import CheckpointStore, DirectoryCheckpointStore
from state.stores.run_store import RunStore, SqliteRunStore

if TYPE_CHECKING:
    from orchestrator.backends.kaggle.session.backend import KaggleRun
    from state.backend_settings import KaggleSettings
    from state.kaggle.api import KaggleApi

BACKENDS = ("local", "kaggle")
HOME_VARIABLE = "GEMMA_ORCH_HOME"


def home_layout(environment: Mapping[str, str]) -> HomeLayout:
    """Return where everything lives: GEMMA_ORCH_HOME, or the user's data folder."""
    if given := environment.get(HOME_VARIABLE):
        return HomeLayout(Path(given).expanduser().absolute())
    from platformdirs import user_data_path

    return HomeLayout(user_data_path("gemma-orch", appauthor=False))


def check_backend(name: str) -> None:
    """Check that a backend exists.

    Raises:
        UserError: it does not.
    """
    if name not in BACKENDS:
        raise UserError(
            f"there is no backend {name!r}",
            expected=f"one of {', '.join(BACKENDS)}",
            remedy=did_you_mean(name, list(BACKENDS)),
        )


def wire(environment: Mapping[str, str], say: Callable[[str], None] = lambda _text: None) -> Ports:
    """Return the ports of a controller of this process.

    Args:
        environment: Environment variables, which workers get as well.
        say: Told what preparing the data has to say.
    """
    home, clock = home_layout(environment), SystemClock()
    runs = SqliteRunStore(home.ledger)
    local = LocalBackend(home, dict(environment), bring_here=lambda run, checkpoint_id: checkpoints(run).folder(checkpoint_id))
    preparer = WorkerPreparer(home, say)
    on_kaggle = _KaggleRuns(environment, home, clock, runs)

    def backend(name: str, run: str) -> Backend:
        check_backend(name)
        return on_kaggle.open(run).backend if name == "kaggle" else local

    def checkpoints(run: str) -> CheckpointStore:
        if on_kaggle.has(run):
            return on_kaggle.open(run).checkpoints
        return DirectoryCheckpointStore(home.run(run).checkpoints)

    def has_data(run: str, data: DataRecord) -> bool:
        # On the account its sessions have it, which the backend finds out; here nobody needs it.
        return runs.load(run).spec.backend == "kaggle" or preparer.has_data(run, data)

    return Ports(
        runs=runs,
        home=home,
        clock=clock,
        owner=identify(os.getpid()),
        backend=backend,
        checkpoints=checkpoints,
        prepare=preparer,
        has_data=has_data,
    )


class _KaggleRuns:
    """What the runs on Kaggle share: one client of the account, made when the first call is due."""

    def __init__(self, environment: Mapping[str, str], home: HomeLayout, clock: Clock, runs: RunStore) -> None:
        self._environment = environment
        self._home = home
        self._clock = clock
        self._runs = runs
        self._api: KaggleApi | None = None
        self._opened: dict[str, tuple[KaggleSettings, KaggleRun]] = {}

    def has(self, run: str) -> bool:
        """Return whether a run trains on Kaggle, or has trained there."""
        record = self._runs.load(run)
        return "kaggle" in {record.spec.backend, *(attempt.backend for attempt in record.attempts)}

    def open(self, run: str) -> KaggleRun:
        """Return a run's backend and checkpoint store; the same ones as long as it says the same about Kaggle."""
        from orchestrator.backends.kaggle.session.backend import open_kaggle_run

        settings = self._runs.load(run).spec.kaggle
        known = self._opened.get(run)
        if known is None or known[0] != settings:
            opened = open_kaggle_run(
                self._account,
                run,
                self._home,
                self._clock,
                settings,
                record=lambda: self._runs.load(run),
                source_root=Path(__file__).parent.parent,
            )
            known = self._opened[run] = (settings, opened)
        return known[1]

    def _account(self) -> KaggleApi:
        from orchestrator.backends.kaggle.account import open_account

        if self._api is None:
            self._api = open_account(self._environment)
        return self._api
