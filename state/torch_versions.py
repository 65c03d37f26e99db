"""The versions of torch that gemma-orch supports; `pyproject.toml` requires the same ones."""

from __future__ import annotations

import re

OLDEST_TORCH = (2, 10)
FIRST_TORCH_TOO_NEW = (2, 16)
NEWEST_TESTED_TORCH = (2, 13)
TORCH_REQUIREMENT = "torch>={}.{},<{}.{}".format(*OLDEST_TORCH, *FIRST_TORCH_TOO_NEW)


def torch_minor(version: str) -> tuple[int, int] | None:
    """Return the first two numbers of a version such as `2.10.0+cu128`; None for another text."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def is_known_torch(version: str) -> bool:
    """Return whether gemma-orch supports a version."""
    minor = torch_minor(version)
    return minor is not None and OLDEST_TORCH <= minor < FIRST_TORCH_TOO_NEW


def is_untested_torch(version: str) -> bool:
    """Return whether a version is newer than the newest one that gemma-orch was tested with."""
    minor = torch_minor(version)
    return minor is not None and minor > NEWEST_TESTED_TORCH
