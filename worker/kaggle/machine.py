"""Is this the machine that was asked for? Kaggle gives another one without a word, and its hours count all the same."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from state.backend_settings import Accelerator
from state.errors import TemporaryError
from worker.engine import first_line, load_torch

_GPUS: dict[Accelerator, tuple[str, int]] = {"t4x2": ("T4", 2)}
_LONGEST_LIST_S = 60.0
_REMEDY = "the session is given back at once and tried again; if it happens again, gemma-orch doctor --backend kaggle"


def list_gpus() -> tuple[str, ...]:
    """Return a line for each GPU, as `nvidia-smi -L` writes it; none where there is no driver."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607 - where the driver's tool lies differs from image to image
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
    """Return the names of the GPUs that torch can compute on; None when this torch was built without GPUs.

    Raises:
        UserError: torch cannot be used.
        TemporaryError: torch cannot use this machine's GPUs.
    """
    return gpus_of(load_torch())


def gpus_of(torch: Any) -> tuple[str, ...] | None:
    """Return the names of the GPUs that a torch can compute on; None when it was built without GPUs.

    Raises:
        TemporaryError: it cannot use this machine's GPUs.
    """
    if torch.version.cuda is None:
        return None
    try:
        return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    except RuntimeError as error:  # its libraries do not fit the driver, or the driver fails
        raise TemporaryError(
            f"torch {torch.__version__} cannot use this machine's GPUs: {first_line(error)}",
            remedy=_REMEDY,
        ) from error


def check_machine(
    accelerator: Accelerator,
    listed: Callable[[], tuple[str, ...]] = list_gpus,
    usable: Callable[[], tuple[str, ...] | None] = torch_gpus,
) -> str:
    """Return what the machine computes on, in words.

    Args:
        accelerator: What was asked for.
        listed: Lists the GPUs in a moment, without torch.
        usable: Lists those that torch can use.

    Raises:
        TemporaryError: it is another machine.
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
            f"asked for {count} GPUs of the kind {name}, got another machine: {who} {', '.join(found) or 'no GPU'}",
            remedy=_REMEDY,
        )
