"""Finds other packages that have our names: `orchestrator`, `worker` and `state` are general, and Python finds one of each name.

Another package hides ours when it comes first on the path, and overwrites ours when it is installed into the same folder.
Of our own, this module imports nothing from `state`: it must work when `state` is not ours.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path

from orchestrator.interpreter import python_command

PACKAGES = ("orchestrator", "worker", "state")
PACKAGES_ROOT = Path(__file__).resolve().parents[1]
REMEDY = "take folders with such names off PYTHONPATH, and install gemma-orch in an environment of its own"
_DISTRIBUTION = "gemma-orch"
_MOST_FILES = 3  # named in a message
_FILES_OF_OUR_NAMES = re.compile(rf'^"?({"|".join(PACKAGES)})(?:/|\.py[,"])', re.MULTILINE)
_PRINT_ORIGINS = """
import sys
from importlib.util import find_spec
for name in sys.argv[1:]:
    spec = find_spec(name)
    print(name, spec and (spec.origin or list(spec.submodule_search_locations)[0]), sep="\\t")
"""


def find_clashes() -> tuple[str, ...]:
    """Return what is wrong with the packages that a session of this installation would import; empty when they are ours."""
    return tuple(clashes(PACKAGES_ROOT, _origins(), importlib.metadata.distributions()))


def foreign(package: str, error: ImportError) -> str:
    """Return the message for a failed import from a package that has one of our names."""
    return "\n".join(
        [
            f"gemma-orch cannot import its package {package}: Python finds {_origins().get(package)} ({error})",
            f"Expected: the files that gemma-orch has installed in {PACKAGES_ROOT / package}",
            f"Next: {REMEDY}: uv tool install or pipx install, see the README",
        ]
    )


def clashes(root: Path, origins: Mapping[str, str], distributions: Iterable[Distribution]) -> Iterator[str]:
    """Yield each way in which a package that Python finds is not ours.

    Args:
        root: The folder that holds our packages.
        origins: Where Python finds each package: its first file, or its folder if it has no `__init__.py`.
        distributions: Everything that is installed.
    """
    for package in PACKAGES:
        origin = origins.get(package, "nowhere")
        if Path(origin).resolve() != root / package / "__init__.py":
            yield f"{package} is found at {origin}, not in {root}"
    for distribution in distributions:
        if Path(str(distribution.locate_file(""))).resolve() != root:
            continue
        name, record = distribution.metadata["Name"], distribution.read_text("RECORD") or ""
        if name == _DISTRIBUTION:
            if changed := list(_changed_files(root, record)):
                yield f"files that are not as they were installed: {len(changed)}, first {', '.join(changed[:_MOST_FILES])}"
        elif taken := sorted(set(_FILES_OF_OUR_NAMES.findall(record))):
            yield f"{name} {distribution.version} has installed {', '.join(taken)} into the same folder"


def _origins() -> dict[str, str]:
    """Ask a child like those that run sessions: this process may also look into the current folder."""
    command = python_command("-c", _PRINT_ORIGINS, *PACKAGES)
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return dict(line.split("\t", 1) for line in answer.stdout.splitlines() if "\t" in line)


def _changed_files(root: Path, record: str) -> Iterator[str]:
    """Yield the files of our packages that are missing or have other bytes than recorded; compiled files have no digest.

    `Distribution.files` would do, but since Python 3.12 it leaves out what is missing.
    """
    for name, recorded, *_ in csv.reader(record.splitlines()):
        algorithm, _, digest = recorded.partition("=")
        if not digest or name.partition("/")[0] not in PACKAGES:
            continue
        try:
            data = (root / name).read_bytes()
        except OSError:
            yield name
            continue
        if base64.urlsafe_b64encode(hashlib.new(algorithm, data).digest()).rstrip(b"=").decode() != digest:
            yield name
