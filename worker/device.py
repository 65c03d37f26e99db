"""The machine that trains: its device, its threads, and the environment that must be equal for equal bits."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import torch

from state.manifest import Environment
from state.spec import TrainingSpec

_SOURCE_ROOT = Path(__file__).parent.parent
_PACKAGES = ("state", "worker")


def pick_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def configure(training: TrainingSpec, device: torch.device, cache_dir: str | None) -> None:
    """Set everything that affects the bits, and the cache of compiled kernels; call it before the first tensor is made."""
    torch.set_num_threads(num_threads(training))
    if training.compile and cache_dir is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(cache_dir).absolute() / "inductor")
    if device.type == "cuda":
        # For the GPU only: on the CPU every operation used here is deterministic, and this call would import the compiler.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def num_threads(training: TrainingSpec) -> int:
    """Return the number of CPU threads that compute a step; 0 in the spec means all cores that this process may use."""
    if training.threads:
        return training.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(training: TrainingSpec, device: torch.device) -> Environment:
    """Return the hardware and software that this process computes with."""
    return Environment(
        torch=torch.__version__,
        python=platform.python_version(),
        device=_gpu_name() if device.type == "cuda" else f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})",
        threads=num_threads(training),
        compiled=training.compile,
        code_sha256=code_sha256(_SOURCE_ROOT),
    )


def computes_alike(one: Environment, other: Environment) -> bool:
    """Return whether two environments give the same bits; the Python version does not affect the arithmetic."""
    return one.evolve(python=other.python) == other


def code_sha256(source_root: Path) -> str:
    """Return the digest of the source files of `state` and `worker`: their names and contents, sorted by name."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((source_root / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(source_root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def _gpu_name() -> str:
    return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, or its architecture if the system gives no name."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
