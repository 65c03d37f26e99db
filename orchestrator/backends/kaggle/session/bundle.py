"""Builds a session's script: the code of `state` and `worker`, the job, and a bootstrap that unpacks and runs them."""

from __future__ import annotations

import base64
import io
import lzma
import zipfile
from pathlib import Path

from state.errors import UserError
from state.kaggle.job import KaggleJob
from state.layout import attempt_name

MAX_SCRIPT_BYTES = 1_000_000
"""Kaggle refuses a kernel source of one megabyte or more."""

_PACKAGES = ("state", "worker")
_BOOTSTRAP = "worker/kaggle/bootstrap.py"
_NO_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest date of the zip format; a fixed one, so that equal code gives equal bytes
# The preset alone compresses no better, but takes 60 MiB more memory: its dictionary holds 90 times our code.
_COMPRESSION = ({"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2 * 1024 * 1024},)


def bundle(job: KaggleJob, source_root: Path) -> str:
    """Return the Python script that runs a job on any image that has the modules for training.

    The same job and code give the same script, byte for byte.

    Args:
        job: The job; it holds no credentials.
        source_root: The folder that holds the packages `state` and `worker`.

    Raises:
        UserError: the code cannot be read, or the script is larger than Kaggle accepts.
    """
    try:
        bootstrap = (source_root / _BOOTSTRAP).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the worker's code cannot be read: {source_root / _BOOTSTRAP} ({error.strerror})",
            expected="gemma-orch installed as files, not as an archive",
            remedy="install gemma-orch again, as the README shows",
        ) from error
    name = f"{job.spec.run} {attempt_name(job.spec.session, job.spec.attempt)}"
    script = "\n".join(
        [
            f"# gemma-orch, {name}: one session of training. Made by gemma-orch; changes are lost.",
            bootstrap,
            f"JOB = {job.model_dump_json()!r}",
            f'CODE = "{_packed(source_root)}"',
            "leave(run(JOB, CODE, os.environ))",
            "",
        ]
    )
    size_bytes = len(script.encode())
    if size_bytes >= MAX_SCRIPT_BYTES:
        raise UserError(
            f"the script of {name} is too large: {size_bytes} bytes",
            expected=f"fewer than {MAX_SCRIPT_BYTES} bytes, Kaggle's limit",
            remedy=f"remove files that are not part of gemma-orch from {source_root}/state and {source_root}/worker",
        )
    return script


def _packed(source_root: Path) -> str:
    """Return the modules of the packages, compressed; all of them, so that the code digest equals that of the source."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for package in _PACKAGES:
            for path in sorted((source_root / package).rglob("*.py")):
                file.writestr(zipfile.ZipInfo(path.relative_to(source_root).as_posix(), _NO_TIME), path.read_bytes())
    # Compressed as a whole, because the modules resemble each other.
    compressed = lzma.compress(archive.getvalue(), filters=_COMPRESSION)
    return base64.b85encode(compressed).decode("ascii")
