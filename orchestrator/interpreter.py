"""The command line of a child that runs Python. Imports nothing of ours: it must work while another package hides `state`."""

from __future__ import annotations

import sys
from pathlib import Path

_HOME_OF_OUR_PACKAGES = Path(__file__).absolute().parents[1]


def command_of(package: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of our packages, even if the current folder has a package of that name."""
    return python_command("-m", package, *arguments)


def python_command(*arguments: str) -> list[str]:
    """Return the command line of a Python that imports nothing from the current folder.

    By default `python -m` and `python -c` search it first: a `worker.py` or `random.py` of the user would be imported instead.
    """
    in_a_checkout = Path.cwd() == _HOME_OF_OUR_PACKAGES  # the current folder holds our packages, installed or not
    return [sys.executable, *([] if in_a_checkout else ["-P"]), *arguments]
