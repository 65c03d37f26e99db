"""The Kaggle backend's registration: its sessions are kernels of a Kaggle account."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.ports import Backend, ConfigWishes, Finding, Ports, Services
from state.layout import HomeLayout
from state.ledger import RunRecord
from state.stores.checkpoint_store import CheckpointStore

if TYPE_CHECKING:
    from orchestrator.backends.kaggle.session.backend import KaggleRun
    from state.backend_settings import KaggleSettings
    from state.kaggle.api import KaggleApi

_SOURCE_ROOT = Path(__file__).parents[3]  # the folder of our packages, which are bundled into a kernel


class KaggleKind:
    """Runs sessions as kernels of a Kaggle account. Imports are local, because most commands never need the account."""

    name = "kaggle"
    trains_here = False
    has_live_check = True
    before_start = "gemma-orch doctor --backend kaggle, gemma-orch upload DATA"
    after_doctor = "gemma-orch init --backend kaggle"

    def check_run(self, name: str) -> None:
        """Check that Kaggle allows every slug that the run needs.

        Raises:
            UserError: it does not.
        """
        from state.kaggle.names import check_run_fits

        check_run_fits(name)

    def config_file(self, environment: Mapping[str, str], wishes: ConfigWishes, say: Callable[[str], None]) -> str:
        """Return a config file with the run's names on the account.

        Raises:
            UserError: Kaggle does not allow a name.
        """
        from orchestrator.backends.kaggle.config_template import config_for_kaggle

        return config_for_kaggle(environment, wishes, say)

    def examine(
        self, environment: Mapping[str, str], home: HomeLayout, say: Callable[[str], None], *, live_check: bool
    ) -> tuple[Finding, ...]:
        """Check the connection to Kaggle and the account."""
        from orchestrator.backends.kaggle.doctor.doctor import examine_kaggle

        return examine_kaggle(environment, home, say, live_check=live_check)

    def advice(self, ports: Ports, record: RunRecord) -> str:
        """Return how to promote the head if it exists only in a kernel's output; else nothing."""
        from orchestrator.backends.kaggle.checkpoints.promote import advice

        return advice(ports, record)

    def open(self, services: Services) -> OpenKaggle:
        """Open the account for a home."""
        return OpenKaggle(services)


class OpenKaggle:
    """The Kaggle backend of one home: all its runs share one client of the account, made at the first call."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._api: KaggleApi | None = None
        self._opened: dict[str, tuple[KaggleSettings, KaggleRun]] = {}

    def backend(self, run: str) -> Backend:
        """Return the backend of a run; it is reopened only if the run's `[kaggle]` settings change."""
        return self._open(run).backend

    def checkpoints(self, run: str) -> CheckpointStore:
        """Return the store of a run's checkpoints on the account."""
        return self._open(run).checkpoints

    def _open(self, run: str) -> KaggleRun:
        from orchestrator.backends.kaggle.context import KaggleContext
        from orchestrator.backends.kaggle.session.backend import open_kaggle_run

        runs = self._services.runs
        settings = runs.load(run).spec.kaggle
        known = self._opened.get(run)
        if known is None or known[0] != settings:
            layout = self._services.home.run(run)
            context = KaggleContext(self._account, run, layout, self._services.clock, settings)
            opened = open_kaggle_run(context, lambda: runs.load(run), _SOURCE_ROOT)
            known = self._opened[run] = (settings, opened)
        return known[1]

    def _account(self) -> KaggleApi:
        from orchestrator.backends.kaggle.account import open_account

        if self._api is None:
            self._api = open_account(self._services.environment)
        return self._api
