"""The context of a run on Kaggle: account, name, folder, clock and settings, as all modules of this package need them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from state.backend_settings import KaggleSettings
from state.clock import Clock
from state.layout import RunLayout

if TYPE_CHECKING:
    from state.kaggle.api import KaggleApi


@dataclass(frozen=True)
class KaggleContext:
    """One run on one account; made once, when the run is opened."""

    api: Callable[[], KaggleApi]
    """Returns the account, always the same object. Called late, so that work without Kaggle never connects."""
    run: str
    """The run's name."""
    layout: RunLayout
    """The run's folder."""
    clock: Clock
    settings: KaggleSettings
    """The run's settings of the Kaggle backend."""

    @property
    def folder(self) -> Path:
        """The folder of the controller's files about the run on Kaggle."""
        return kaggle_folder(self.layout)

    @property
    def owner(self) -> str:
        """The user who owns the run's datasets and kernels."""
        return self.settings.owner or self.api().user


def kaggle_folder(layout: RunLayout) -> Path:
    """Return the folder of the controller's files about a run on Kaggle."""
    return layout.root / "kaggle"
