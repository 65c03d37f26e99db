"""Checks that Kaggle gave the requested machine: it may give another one without notice, and charges the quota anyway."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from state.backend_settings import Accelerator
from state.errors import TemporaryError
from worker.engine import first_line, load_torch

_GPUS: dict[Accelerator, tuple[str, int]] = {"t4x2": ("T4", 2)}
_LONGEST_LIST_S = 60.0
_REMEDY = "nothing: the session ends at once, and the controller retries; if it happens again, gemma-orch doctor --backend kaggle"


def list_gpus() -> tuple[str, ...]:
    """Return the lines of `nvidia-smi -L`, one for each GPU; none if there is no driver."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607 - the tool's folder differs between images
            capture_output=True,
            text=True,
            timeout=_LONGEST_LIST_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = (line.strip() for line in listed.stdout.splitlines())
    return tuple(line for line in lines if line.startswith("GPU ")) if listed.returncode == 0 else ()


def torch_gpus() -> tuple[str, ...] | None:
    """Return the names of the GPUs that torch can use; None if this torch was built without CUDA.

    Raises:
        UserError: torch cannot be used.
        TemporaryError: torch cannot use this machine's GPUs.
    """
    return gpus_of(load_torch())


def gpus_of(torch: Any) -> tuple[str, ...] | None:
    """Return the names of the GPUs that a given torch can use; None if it was built without CUDA.

    Raises:
        TemporaryError: it cannot use this machine's GPUs.
    """
    if torch.version.cuda is None:
        return None
    try:
        return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    except RuntimeError as error:  # its libraries do not match the driver, or the driver fails
        raise TemporaryError(
            f"torch {torch.__version__} cannot use this machine's GPUs: {first_line(error)}",
            remedy=_REMEDY,
        ) from error


def check_machine(
    accelerator: Accelerator,
    listed: Callable[[], tuple[str, ...]] = list_gpus,
    usable: Callable[[], tuple[str, ...] | None] = torch_gpus,
) -> str:
    """Check the machine, and describe what it computes on.

    Args:
        accelerator: The requested accelerator.
        listed: Lists the GPUs fast, without torch.
        usable: Lists the GPUs that torch can use.

    Raises:
        TemporaryError: it is not the requested machine.
    """
    if accelerator not in _GPUS:
        return "the CPU"
    name, count = _GPUS[accelerator]
    _expect(name, count, listed(), "the machine has")
    found = usable()
    if found is None:
        return f"{count} x {name}, but this torch was built without CUDA and computes on the CPU"
    _expect(name, count, found, "torch finds")
    return f"{count} x {found[0]}"


def _expect(name: str, count: int, found: tuple[str, ...], who: str) -> None:
    if len(found) != count or any(name not in gpu for gpu in found):
        raise TemporaryError(
            f"Kaggle gave another machine than {count} x {name}: {who} {', '.join(found) or 'no GPU'}",
            remedy=_REMEDY,
        )
