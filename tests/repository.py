"""Where the repository is, for tests, so that one may be moved without counting folders."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
