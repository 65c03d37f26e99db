"""What is installed is what is here: a room that the wheel forgets would break only for those who install it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.repository import ROOT

_PACKAGES = ("state", "worker", "orchestrator")
_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
# Without `site`, for an editable install would find in the checkout what the wheel lacks.
_IMPORT = (
    "import importlib, sys\n"
    "wheel, *libraries = sys.argv[1].split(';')\n"
    "sys.path[:0] = [wheel]\n"
    "sys.path += libraries\n"
    "for name in sys.argv[2:]:\n"
    "    module = importlib.import_module(name)\n"
    "    assert str(module.__file__).startswith(wheel), module.__file__\n"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of what is here, unpacked."""
    source, built, unpacked = (tmp_path_factory.mktemp(name) for name in ("source", "built", "unpacked"))
    for package in _PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source / file)
    answer = subprocess.run([sys.executable, "-c", _BUILD, str(built)], cwd=source, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    (path,) = built.iterdir()
    zipfile.ZipFile(path).extractall(unpacked)
    return unpacked


def _files(root: Path) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for package in _PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".md")
    }


def test_the_wheel_holds_every_file_of_every_room(wheel: Path) -> None:
    assert _files(wheel) == _files(ROOT)


def test_every_module_can_be_imported_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    names = sorted(name for name in _files(wheel) if name.endswith(".py"))
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names]
    paths = ";".join([str(wheel), *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}])
    command = [sys.executable, "-I", "-S", "-c", _IMPORT, paths, *modules]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
