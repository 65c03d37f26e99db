"""Find other packages with our names: `orchestrator`, `worker` and `state` are general, and Python imports one of each name.

Another package hides ours if it comes first on the path, and overwrites ours if it is installed into the same folder.
This module imports nothing from `state`, because it must work while another package hides `state`.
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
REMEDY = "remove folders with such names from PYTHONPATH, and install gemma-orch in an environment of its own"
_DISTRIBUTION = "gemma-orch"
_MOST_FILES = 3  # as many are named in a message
_FILES_OF_OUR_NAMES = re.compile(rf'^"?({"|".join(PACKAGES)})(?:/|\.py[,"])', re.MULTILINE)
_PRINT_ORIGINS = """
import sys
from importlib.util import find_spec
for name in sys.argv[1:]:
    spec = find_spec(name)
    print(name, spec and (spec.origin or list(spec.submodule_search_locations)[0]), sep="\\t")
"""


def find_clashes() -> tuple[str, ...]:
    """Return the problems with the packages that this installation's sessions would import; empty if all are ours."""
    return tuple(clashes(PACKAGES_ROOT, _origins(), importlib.metadata.distributions()))


def foreign(package: str, error: ImportError) -> str:
    """Return the message for an import that fails because another package has one of our names."""
    return "\n".join(
        [
            f"gemma-orch cannot import its package {package}: Python finds {_origins().get(package)} ({error})",
            f"Expected: the package in {PACKAGES_ROOT / package}",
            f"Next: {REMEDY}: uv tool install or pipx install, see the README",
        ]
    )


def clashes(root: Path, origins: Mapping[str, str], distributions: Iterable[Distribution]) -> Iterator[str]:
    """Yield a message for each package that is hidden, changed or overwritten by another one.

    Args:
        root: The folder that holds our packages.
        origins: Where Python finds each package: its first file, or its folder if it has no `__init__.py`.
        distributions: All installed distributions.
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
                yield f"files changed since installation: {len(changed)}, such as {', '.join(changed[:_MOST_FILES])}"
        elif taken := sorted(set(_FILES_OF_OUR_NAMES.findall(record))):
            yield f"{name} {distribution.version} installed {', '.join(taken)} into the same folder"


def _origins() -> dict[str, str]:
    """Ask a child that is started like a session, because this process may also import from the current folder."""
    command = python_command("-c", _PRINT_ORIGINS, *PACKAGES)
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return dict(line.split("\t", 1) for line in answer.stdout.splitlines() if "\t" in line)


def _changed_files(root: Path, record: str) -> Iterator[str]:
    """Yield our packages' files that are missing or differ from their recorded digest; compiled files have none.

    This reads RECORD itself, because `Distribution.files` leaves out missing files since Python 3.12.
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
