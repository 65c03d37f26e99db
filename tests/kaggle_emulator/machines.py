"""Machine shapes: what may be asked for, and what is given instead."""

from __future__ import annotations

from typing import Literal

Pool = Literal["CPU", "GPU", "TPU"]

DEFAULT_GPU = "NvidiaTeslaT4"
CPU_SHAPE = "None"

_GIVEN = {
    "NvidiaTeslaT4": "NvidiaTeslaT4",
    "TpuV5E8": "TpuV5E8",
    "NvidiaTeslaP100": "NvidiaTeslaT4",
    "TpuV38": "TpuV5E8",
    "Tpu1VmV38": "TpuV5E8",
}
_DEVICES = {"NvidiaTeslaT4": ("Tesla T4", "Tesla T4")}


def given_shape(asked: str, *, gpu: bool, tpu: bool) -> str:
    """Say which machine a push gets: for a retired shape its successor, for an unknown or restricted one the CPU; silently."""
    if asked and asked != CPU_SHAPE:
        return _GIVEN.get(asked, CPU_SHAPE)
    return "TpuV5E8" if tpu else DEFAULT_GPU if gpu else CPU_SHAPE


def pool(shape: str) -> Pool:
    """Say whose quota and slots a shape uses."""
    return "TPU" if shape.startswith("Tpu") else "GPU" if shape.startswith("Nvidia") else "CPU"


def nvidia_smi(shape: str) -> str:
    """Write a stand-in for nvidia-smi that knows `-L` and `--query-gpu=name` and lists the shape's devices."""
    names = _DEVICES.get(shape, (shape.removeprefix("Nvidia"),) if pool(shape) == "GPU" else ())
    if not names:
        return '#!/bin/sh\necho "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver." >&2\nexit 9\n'
    listed = "\n".join(f"GPU {index}: {name} (UUID: GPU-emulated-{index})" for index, name in enumerate(names))
    plain = "\n".join(names)
    return f"#!/bin/sh\ncase \"$*\" in\n*--query-gpu=*) cat <<'END'\n{plain}\nEND\n;;\n*) cat <<'END'\n{listed}\nEND\n;;\nesac\n"
