"""Finds out how gemma-orch was installed, and the command that installs it again with an extra.

gemma-orch is on no package index. A user can install only the folder, file or repository that it came from, which pip and uv
record in `direct_url.json` (PEP 610).
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "gemma-orch"
_PACKAGES_ROOT = Path(__file__).absolute().parents[1]


@dataclass(frozen=True)
class Installation:
    """The source of gemma-orch and its installer."""

    source: str | None
    """A folder, or a URL in the form of a requirement; None: unknown, or no longer there."""
    is_editable: bool
    """Whether the code is imported from the source folder itself."""
    installer: tuple[str, ...]
    """The arguments of the command that installs into this environment."""

    def command(self, *extras: str) -> str:
        """Return the shell command that installs gemma-orch here again, with these extras.

        Give all extras that are needed: pipx and uv recreate the environment of a tool, without its other extras.
        """
        if self.source is None:
            return f"from the folder of a checkout of gemma-orch: {self._line(_with_extras('.', extras))}"
        return self._line(*(["--editable"] if self.is_editable else []), self.requirement(*extras))

    def requirement(self, *extras: str) -> str:
        """Return the requirement for pip, pipx or uv; `.` if the source is unknown."""
        source = self.source or "."
        if "://" in source:
            return f"{_with_extras(DISTRIBUTION, extras)} @ {source}"
        return _with_extras(source, extras)

    def _line(self, *arguments: str) -> str:
        return shlex.join([*self.installer, *arguments])


def this_installation(
    search_path: Iterable[str] | None = None,
    *,
    packages_root: Path = _PACKAGES_ROOT,
    prefix: Path | None = None,
    python: str = sys.executable,
) -> Installation:
    """Return how this gemma-orch was installed.

    Args:
        search_path: Folders to search for distributions; None: those of this process.
        packages_root: The folder that holds our packages.
        prefix: The root of the environment; None: this process's.
        python: The environment's interpreter.
    """
    found = importlib.metadata.distributions(name=DISTRIBUTION, path=list(sys.path if search_path is None else search_path))
    distribution = next(iter(found), None)
    source, is_editable = _source(distribution)
    if source is None and _is_checkout(packages_root):
        source, is_editable = str(packages_root), True
    return Installation(source, is_editable, _installer(distribution, Path(sys.prefix) if prefix is None else prefix, python))


def install_command(*extras: str) -> str:
    """Return the shell command that adds extras to this installation."""
    return this_installation().command(*extras)


def _source(distribution: importlib.metadata.Distribution | None) -> tuple[str | None, bool]:
    """Return the source in `direct_url.json`, if it still exists, and whether it is editable."""
    text = distribution.read_text("direct_url.json") if distribution is not None else None
    try:
        return _named_by(json.loads(text)) if text is not None else (None, False)
    except (ValueError, KeyError, TypeError):  # not the form of PEP 610; this is only for a hint, so it must not fail
        return None, False


def _named_by(direct: dict[str, Any]) -> tuple[str | None, bool]:
    url: str = direct["url"]
    if url.startswith("file:") and "vcs_info" not in direct:
        path = Path(url2pathname(urlsplit(url).path))
        if not path.exists():
            return None, False
        return (str(path), bool(direct["dir_info"].get("editable"))) if "dir_info" in direct else (url, False)
    if "vcs_info" in direct:
        vcs = direct["vcs_info"]
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    folder = direct.get("subdirectory")
    return url + (f"#subdirectory={folder}" if folder else ""), False


def _is_checkout(folder: Path) -> bool:
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(project.get("project", {}).get("name") == DISTRIBUTION)


def _installer(distribution: importlib.metadata.Distribution | None, prefix: Path, python: str) -> tuple[str, ...]:
    """Return the install command's arguments; not plain `pip`, which may belong to another environment and is missing in uv's."""
    if prefix.name == DISTRIBUTION:  # otherwise gemma-orch was added to the environment of another tool
        if (prefix / "uv-receipt.toml").is_file():
            return ("uv", "tool", "install", "--force")
        if (prefix / "pipx_metadata.json").is_file():
            return ("pipx", "install", "--force")
    installed_by = (distribution.read_text("INSTALLER") or "").strip() if distribution is not None else ""
    if installed_by == "uv":
        return ("uv", "pip", "install", "--python", python)
    return (python, "-m", "pip", "install")


def _with_extras(name: str, extras: tuple[str, ...]) -> str:
    return f"{name}[{','.join(extras)}]" if extras else name
