"""The first lines of a kernel's script: unpack the code in the script and run it. Imports the standard library only.

The pushed script begins with the text of this file, so that the code which starts the kernel is the code that is tested here.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import lzma
import os
import sys
import tempfile
import zipfile
from collections.abc import MutableMapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

NEEDED_MODULES = ("pydantic", "torch", "numpy", "safetensors")
_OLDEST_PYTHON = (3, 11)


def run(job_json: str, code: str, environment: MutableMapping[str, str]) -> int:
    """Unpack the code (base85 of an lzma-compressed zip) and run the job; return the exit code.

    If the image lacks a module, it writes that into `report.json` and returns 0: Kaggle discards the output files of a
    kernel that ends with an error.
    """
    lacks = lacking()
    if lacks:
        reason = f"this image lacks what gemma-orch needs: {', '.join(lacks)}"
        sys.stderr.write(reason + "\n")
        Path("report.json").write_text(json.dumps(_report(json.loads(job_json), reason)))
        return 0
    root = tempfile.mkdtemp(prefix="gemma-orch-code-")
    with zipfile.ZipFile(io.BytesIO(lzma.decompress(base64.b85decode(code)))) as archive:
        archive.extractall(root)
    sys.path.insert(0, root)
    from worker.kaggle.kernel import main

    return main(job_json, environment)


def lacking() -> list[str]:
    """Return the modules, or the Python version, that are missing, in words; empty if the code can run."""
    lacks = [f"the Python module {name}" for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if sys.version_info < _OLDEST_PYTHON:
        lacks.append(f"Python {'.'.join(map(str, _OLDEST_PYTHON))}, it has {sys.version.split()[0]}")
    return lacks


def leave(code: int) -> None:
    """End the process at once, because torch's own shutdown takes a while; in a notebook, only return."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "IPython" not in sys.modules:
        os._exit(code)


def _report(job: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return a SessionReport as a dictionary: its own module needs pydantic, which may be missing."""
    spec = job["spec"]
    start = spec.get("start") or {}
    now = datetime.now(timezone.utc).isoformat()  # noqa: UP017 - must run on a Python that is too old, to report that
    return {
        "schema_version": 1,
        **{name: spec[name] for name in ("run", "session", "attempt", "fence")},
        "outcome": "failed",
        "reason": reason,
        "error_class": "user",
        "start_step": start.get("step", 0),
        "end_step": start.get("step", 0),
        "saved_step": None,
        "head": None,
        "started_at": now,
        "ended_at": now,
    }
