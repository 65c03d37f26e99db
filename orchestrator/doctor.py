"""Check this machine: installed packages, the home, free disk; each finding with its remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shlex
import sqlite3
import sys
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.clash import PACKAGES, PACKAGES_ROOT, REMEDY, find_clashes
from orchestrator.monitoring.render import format_bytes
from orchestrator.ports import Finding
from orchestrator.worker_process.command import TRAINING_MODULES
from state.errors import GemmaOrchError
from state.files import free_bytes
from state.installation import install_command, this_installation
from state.layout import HomeLayout
from state.stores.run_store import SqliteRunStore
from state.torch_versions import is_known_torch

_LITTLE_DISK_BYTES = 2_000_000_000  # a few checkpoints of the 50 million parameter model


def examine(home: HomeLayout, num_cores: int) -> tuple[Finding, ...]:
    """Check everything that a run on this machine needs."""
    return (_python(), _our_packages(), *_packages(), *_home(home), Finding(subject="cores", found=str(num_cores), ok=True))


def report(findings: Sequence[Finding], following: str) -> RenderableType:
    """Return the findings as a table, and below it the next command: the first missing finding's remedy, else `following`."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    for name in ("", "what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("missing", style="red")
        table.add_row(mark, finding.subject, Text(finding.found), Text(finding.remedy or ""))
    missing = [finding for finding in findings if not finding.ok]
    return Group(table, "", Text(f"next: {missing[0].remedy if missing else following}", style="bold"))


def _python() -> Finding:
    return Finding(
        subject="python",
        found=f"{platform.python_version()} at {sys.executable}",
        ok=sys.version_info >= (3, 11),
        remedy=None if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
    )


def _our_packages() -> Finding:
    clashes = find_clashes()
    requirement = shlex.quote(this_installation().requirement("train"))
    return Finding(
        subject="packages",
        found="; ".join(clashes) or f"{', '.join(PACKAGES)} in {PACKAGES_ROOT}",
        ok=not clashes,
        remedy=f"{REMEDY}: uv tool install {requirement}, or pipx install {requirement}" if clashes else None,
    )


def _packages() -> tuple[Finding, ...]:
    findings = [
        Finding(subject=name, found=importlib.metadata.version(name), ok=True)
        for name in ("gemma-orch", "pydantic", "rich", "typer")
    ]
    findings.append(Finding(subject="sqlite", found=sqlite3.sqlite_version, ok=sqlite3.sqlite_version_info >= (3, 38)))
    for module in TRAINING_MODULES:
        version = installed_version(module)
        ok = version is not None and (module != "torch" or is_known_torch(version))
        findings.append(
            Finding(subject=module, found=version or "not installed", ok=ok, remedy=None if ok else install_command("train"))
        )
    return tuple(findings)


def installed_version(module: str) -> str | None:
    """Return the version of an installed module, in words where it is unknown; None: it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:  # a folder that was left behind
        return "of an unknown version"


def _home(home: HomeLayout) -> tuple[Finding, ...]:
    try:
        runs = SqliteRunStore(home.ledger).names()
    except GemmaOrchError as error:
        return (Finding(subject="home", found=str(home.root), ok=False, remedy=str(error)),)
    free = free_bytes(home.root)
    return (
        Finding(subject="home", found=f"{home.root} (GEMMA_ORCH_HOME), {len(runs)} runs", ok=True),
        Finding(
            subject="free disk",
            found=format_bytes(free),
            ok=free >= _LITTLE_DISK_BYTES,
            remedy=None if free >= _LITTLE_DISK_BYTES else f"free at least {format_bytes(_LITTLE_DISK_BYTES)} for checkpoints",
        ),
    )
