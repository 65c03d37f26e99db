"""The command line of a child that runs Python. It imports nothing of ours: it must work when `state` is not ours."""

from __future__ import annotations

import sys
from pathlib import Path

_HOME_OF_OUR_PACKAGES = Path(__file__).absolute().parents[1]


def command_of(package: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of our packages, whatever lies in the current folder."""
    return python_command("-m", package, *arguments)


def python_command(*arguments: str) -> list[str]:
    """Return the command line of a Python that imports nothing from the current folder.

    `python -m` and `python -c` look there first: a `worker.py` or a `random.py` of the user's would be run instead.
    """
    in_a_checkout = Path.cwd() == _HOME_OF_OUR_PACKAGES  # then what lies there is ours, installed or not
    return [sys.executable, *([] if in_a_checkout else ["-P"]), *arguments]
