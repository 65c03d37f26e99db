"""Give the script of a session its own /kaggle, then become it.

Run by path, with the standard library alone: `python -I -S sandbox.py '{"binds": ..., "argv": ...}'`. The process gets a mount
namespace whose root is an empty RAM folder with everything of the real root bound into it, so that /kaggle exists for it alone
and leaves no trace. Without the right to do that (no root, no user namespaces) it exits with 77 before the script has started.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

NOT_ALLOWED = 77

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def enter(root: Path, binds: Mapping[str, tuple[str, bool]], *, network: bool) -> None:
    """Move this process to a root of its own.

    Args:
        root: An empty folder that becomes the root.
        binds: By absolute path, which hides what the real root has there: the folder that appears, and whether it may be written.
        network: Whether the process keeps the machine's network; else it has only a loopback of its own.

    Raises:
        OSError: This process may not.
    """
    user, group = os.geteuid(), os.getegid()
    own_user = _CLONE_NEWUSER if user != 0 else 0
    _check(_libc().unshare(_CLONE_NEWNS | own_user | (0 if network else _CLONE_NEWNET)), "unshare")
    if own_user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if not network:
        _loopback_up()
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("none", root, "tmpfs", 0)
    hidden = {target.split("/")[1] for target in binds}
    # The folder in which the new root lies comes first: later it would bring along everything that is bound into it by then.
    for entry in sorted(set(os.listdir("/")) - hidden, key=lambda name: name not in root.parts):
        _show(Path("/", entry), root / entry)
    for target, (source, writable) in binds.items():
        place = root / target.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        _mount(source, place, None, _MS_BIND)
        if not writable:
            _mount("none", place, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    os.chroot(root)


def _show(entry: Path, place: Path) -> None:
    if entry.is_symlink():
        place.symlink_to(entry.readlink())
    elif entry.is_dir():
        place.mkdir()
        _mount(entry, place, None, _MS_BIND | _MS_REC)
    elif entry.is_file():
        place.touch()
        _mount(entry, place, None, _MS_BIND)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        request = struct.pack("16sh14s", b"lo", 0, b"")
        flags = struct.unpack("16sh14s", fcntl.ioctl(link, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(link, _SIOCSIFFLAGS, struct.pack("16sh14s", b"lo", flags | _IFF_UP, b""))


def _mount(source: str | Path, target: str | Path, kind: str | None, flags: int) -> None:
    encoded = None if kind is None else kind.encode()
    _check(_libc().mount(os.fsencode(source), os.fsencode(target), encoded, ctypes.c_ulong(flags), None), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def main() -> None:
    plan = json.loads(sys.argv[1])
    try:
        enter(Path(plan["root"]), {target: tuple(bind) for target, bind in plan["binds"].items()}, network=plan["network"])
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(NOT_ALLOWED)
    os.chdir(plan["cwd"])
    os.execve(plan["argv"][0], plan["argv"], dict(os.environ))


if __name__ == "__main__":
    main()
