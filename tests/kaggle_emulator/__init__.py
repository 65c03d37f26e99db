"""A Kaggle on loopback that the unmodified official client talks to and that really runs pushed kernels; see README.md."""

from tests.kaggle_emulator.emulator import KaggleEmulator
from tests.kaggle_emulator.faults import Fault, refused_reads
from tests.kaggle_emulator.journal import Entry
from tests.kaggle_emulator.session_model import Session
from tests.kaggle_emulator.settings import Settings

__all__ = ["Entry", "Fault", "KaggleEmulator", "Session", "Settings", "refused_reads"]
