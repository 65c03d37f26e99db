"""A Python that lacks what Windows lacks: `python -m tests.like_windows` imports every module, or types the command that follows.

This is no Windows: file systems, consoles and sockets are still those of the machine that runs it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import signal
import sqlite3  # noqa: F401 - this and the next: what asks for the system while it is imported must see the real one
import sys
import sysconfig
from collections.abc import Callable
from typing import Any

import psutil
import pydantic  # noqa: F401
import requests  # noqa: F401
import rich.console
import rich.live
import rich.table  # noqa: F401
import typer.main
import typer.rich_utils  # noqa: F401

from tests.repository import ROOT

_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix_spawn")
_OF_OS = (
    *("killpg", "getpgid", "getsid", "setsid", "fork", "pidfd_open", "getuid", "geteuid", "getpgrp"),
    *("sched_getaffinity", "setpriority", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_DIRECT"),
    *("statvfs", "sysconf", "uname", "pread", "pwrite", "posix_fadvise", "posix_fallocate", "chown", "fchmod", "mkfifo"),
)
_OF_SIGNAL = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGSTOP", "pidfd_send_signal", "pthread_sigmask", "pause")


def become_like_windows() -> None:
    """Take away, for the rest of this process, what Windows does not have, and let what is left behave as it does there."""
    import fcntl

    real_statvfs = os.statvfs
    shutil.disk_usage = lambda path: _Usage(real_statvfs(path))  # type: ignore[assignment]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    for name in _MODULES:
        sys.modules[name] = None  # type: ignore[assignment] - to import it raises ModuleNotFoundError, and no spec is found
    for name in _OF_OS:
        if hasattr(os, name):
            delattr(os, name)
    for name in _OF_SIGNAL:
        if hasattr(signal, name):
            delattr(signal, name)
    is_open = _opened_below(os.readlink)
    os.replace, os.unlink, os.remove = (_sparing_what_is_open(real, is_open) for real in (os.replace, os.unlink, os.remove))
    os.open, os.fsync, os.rename, os.readlink, os.kill = (  # type: ignore[assignment]
        _refusing_folders(os.open),
        _needing_to_write(os.fsync, lambda number: fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE),
        _never_replacing(_sparing_what_is_open(os.rename, is_open)),
        _hiding_proc(os.readlink),
        _no_signal_0,
    )
    sys.addaudithook(_hide_proc)
    sys.platform = "win32"


class _Usage:
    """What `shutil.disk_usage` says, which asks Windows in its own way."""

    def __init__(self, disk: os.statvfs_result) -> None:
        self.free = disk.f_bavail * disk.f_frsize


def _refusing_folders(real: Any) -> Any:
    def open_file(path: Any, flags: int, mode: int = 0o777) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return int(real(path, flags, mode))

    return open_file


def _needing_to_write(real: Any, mode_of: Any) -> Any:
    def flush(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        if mode_of(number) == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(number)

    return flush


def _opened_below(readlink: Any) -> Callable[[str], bool]:
    def is_open(path: str) -> bool:
        names = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the one that lists them
                names.append(readlink(f"/proc/self/fd/{number}"))
        return any(name == path or name.startswith(path + "/") for name in names)

    return is_open


def _sparing_what_is_open(real: Any, is_open: Callable[[str], bool]) -> Any:
    def change(*arguments: Any, **options: Any) -> None:
        for path in arguments:
            if is_open(os.path.abspath(path)):
                raise PermissionError(errno.EACCES, "The file is used by this process", path)
        real(*arguments, **options)

    return change


def _never_replacing(real: Any) -> Any:
    def rename(source: Any, target: Any) -> None:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "File exists", source, None, target)
        real(source, target)

    return rename


def _hiding_proc(real: Any) -> Any:
    def readlink(path: Any) -> Any:
        if str(path).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return real(path)

    return readlink


def _no_signal_0(pid: int, number: int) -> None:
    raise AssertionError(f"os.kill({pid}, {number}) is Ctrl-C for the whole console on Windows")


def _hide_proc(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).startswith("/proc"):
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("psutil"):  # it asks Windows itself there
                return
            frame = frame.f_back  # type: ignore[assignment]
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(arguments[0]))


def import_everything() -> None:
    """Import every module of the controller."""
    for package in ("state", "orchestrator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
            if name != "orchestrator.__main__":
                importlib.import_module(name)


def main() -> None:
    """Import all, or type a command; `toy` as the first word: into a gemma-orch that has toys as well."""
    psutil.Process(os.getpid()).create_time()  # these two read the real system when they are first used
    sysconfig.get_config_vars()
    become_like_windows()
    arguments = sys.argv[1:]
    if not arguments:
        import_everything()
        sys.stdout.write("imported\n")
        return
    from orchestrator.cli import main as type_command
    from orchestrator.commands.context import Terminal
    from orchestrator.wiring import BACKENDS
    from tests.toy_backend import ToyKind

    has_toys = arguments[0] == "toy"
    if has_toys:
        del sys.argv[1]
    type_command(Terminal(os.environ, (*BACKENDS, ToyKind())) if has_toys else None)


if __name__ == "__main__":
    main()
