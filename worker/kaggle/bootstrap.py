"""The first lines of a kernel's script: unpack the code that comes with it, and run it. The standard library alone.

The script that is pushed begins with this file's own text, so that what starts on another machine is what is checked here.
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

    What the image lacks is told in `report.json`, and is no error of the kernel: one that errs loses its files.
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
    """Return what this interpreter lacks, in words; empty when the code can run."""
    lacks = [f"the Python module {name}" for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if sys.version_info < _OLDEST_PYTHON:
        lacks.append(f"Python {'.'.join(map(str, _OLDEST_PYTHON))}, it has {sys.version.split()[0]}")
    return lacks


def leave(code: int) -> None:
    """End the process: at once, because torch takes a while to take itself apart; inside a notebook, by returning."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "IPython" not in sys.modules:
        os._exit(code)


def _report(job: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return a SessionReport, by hand: the module that knows it needs pydantic."""
    spec = job["spec"]
    start = spec.get("start") or {}
    now = datetime.now(timezone.utc).isoformat()  # noqa: UP017 - an older Python shall be able to tell that it is too old
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
