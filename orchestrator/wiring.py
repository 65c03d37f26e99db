"""Where ports meet adapters, once: the only module that names a concrete backend or store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.backends.base import Backend
from orchestrator.backends.local import LocalBackend
from orchestrator.controller import Ports
from orchestrator.preparation import WorkerPreparer
from state.checkpoint_store import DirectoryCheckpointStore
from state.clock import SystemClock
from state.errors import UserError, did_you_mean
from state.layout import HomeLayout
from state.process import identify
from state.run_store import SqliteRunStore

BACKENDS = ("local",)
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
    home = home_layout(environment)
    local = LocalBackend(home, dict(environment))

    preparer = WorkerPreparer(home, say)

    def backend(name: str, run: str) -> Backend:
        check_backend(name)
        return local

    return Ports(
        runs=SqliteRunStore(home.ledger),
        home=home,
        clock=SystemClock(),
        owner=identify(os.getpid()),
        backend=backend,
        checkpoints=lambda run: DirectoryCheckpointStore(home.run(run).checkpoints),
        prepare=preparer,
        has_data=preparer.has_data,
    )
