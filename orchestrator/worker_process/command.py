"""How a child that runs a package of ours is called."""

from __future__ import annotations

import sys
from pathlib import Path

_HOME_OF_OUR_PACKAGES = Path(__file__).absolute().parents[2]


def command_of(package: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of our packages: ours, whatever lies in the folder where the user stands.

    `python -m` looks there first: a `worker.py` or a `random.py` of the user's would be run instead.
    """
    in_a_checkout = Path.cwd() == _HOME_OF_OUR_PACKAGES  # then what lies there is ours, installed or not
    return [sys.executable, *([] if in_a_checkout else ["-P"]), "-m", package, *arguments]
