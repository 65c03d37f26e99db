"""Connect ports to adapters: the only module that names a concrete backend or store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from orchestrator.backends.kaggle.kind import KaggleKind
from orchestrator.backends.local import LocalKind
from orchestrator.ports import Backend, BackendKind, OpenBackend, Ports, Services
from orchestrator.worker_process.prepare import WorkerPreparer
from state.clock import SystemClock
from state.errors import UserError, did_you_mean
from state.layout import HomeLayout
from state.ledger import DataRecord
from state.process import identify
from state.stores.checkpoint_store import CheckpointStore, DirectoryCheckpointStore
from state.stores.run_store import SqliteRunStore

BACKENDS: tuple[BackendKind, ...] = (LocalKind(), KaggleKind())
"""The registered kinds of backend."""
HOME_VARIABLE = "GEMMA_ORCH_HOME"


def home_layout(environment: Mapping[str, str]) -> HomeLayout:
    """Return the home of gemma-orch: the folder GEMMA_ORCH_HOME, or one in the user's data folder."""
    if given := environment.get(HOME_VARIABLE):
        return HomeLayout(Path(given).expanduser().absolute())
    from platformdirs import user_data_path

    return HomeLayout(user_data_path("gemma-orch", appauthor=False))


def backend_kind(name: str, kinds: tuple[BackendKind, ...] = BACKENDS) -> BackendKind:
    """Return the kind of backend with this name.

    Raises:
        UserError: no kind has this name.
    """
    for kind in kinds:
        if kind.name == name:
            return kind
    known = [kind.name for kind in kinds]
    raise UserError(f"backend is unknown: {name!r}", expected=f"one of {', '.join(known)}", remedy=did_you_mean(name, known))


def wire(
    environment: Mapping[str, str],
    say: Callable[[str], None] = lambda _text: None,
    kinds: tuple[BackendKind, ...] = BACKENDS,
) -> Ports:
    """Return the ports for a controller in this process.

    Args:
        environment: Environment variables; workers get them as well.
        say: Receives the messages of data preparation.
        kinds: The available kinds of backend.
    """
    home, clock = home_layout(environment), SystemClock()
    runs = SqliteRunStore(home.ledger)
    preparer = WorkerPreparer(home, say)

    def kind(name: str) -> BackendKind:
        return backend_kind(name, kinds)

    @cache
    def opened(name: str) -> OpenBackend:
        return kind(name).open(Services(environment, home, clock, runs, checkpoints))

    def backend(name: str, run: str) -> Backend:
        return opened(name).backend(run)

    def checkpoints(run: str) -> CheckpointStore:
        record = runs.load(run)
        for name in dict.fromkeys((record.spec.backend, *(attempt.backend for attempt in record.attempts))):
            if (store := opened(name).checkpoints(run)) is not None:
                return store
        return DirectoryCheckpointStore(home.run(run).checkpoints)

    def has_data(run: str, data: DataRecord) -> bool:
        # Sessions on a platform read the data there, and their backend checks it; the copy on this machine is not needed.
        return not kind(runs.load(run).spec.backend).trains_here or preparer.has_data(run, data)

    return Ports(
        runs=runs,
        home=home,
        clock=clock,
        owner=identify(os.getpid()),
        kind=kind,
        backend=backend,
        checkpoints=checkpoints,
        prepare=preparer,
        has_data=has_data,
    )
