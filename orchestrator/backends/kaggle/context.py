"""What everything that works on one run on Kaggle is given: the account, the run, its folder, the clock, and its settings."""

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
    """One run on one account; made once, where the run is opened."""

    api: Callable[[], KaggleApi]
    """The account; called when the first call is due, so that what does not need Kaggle never connects. Always the same one."""
    run: str
    """The run's name."""
    layout: RunLayout
    """The run's folder."""
    clock: Clock
    settings: KaggleSettings
    """What the run says about Kaggle."""

    @property
    def folder(self) -> Path:
        """The folder of what the controller knows of Kaggle about the run."""
        return kaggle_folder(self.layout)

    @property
    def owner(self) -> str:
        """The user under whose name the run's datasets and kernels lie."""
        return self.settings.owner or self.api().user


def kaggle_folder(layout: RunLayout) -> Path:
    """Return the folder of what the controller knows of Kaggle about a run."""
    return layout.root / "kaggle"
