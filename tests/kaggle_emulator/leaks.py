"""Looks for credentials where none may be."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Leak:
    """A credential in the open."""

    secret: str
    """Which one; never its value."""
    place: str


def find_leaks(secrets: Mapping[str, str], texts: Iterable[tuple[str, str]], files: Iterable[tuple[str, Path]]) -> Iterator[Leak]:
    """Search every text and every file for every secret."""
    for place, text in texts:
        for name, secret in secrets.items():
            if secret in text:
                yield Leak(name, place)
    encoded = {name: secret.encode() for name, secret in secrets.items()}
    for place, path in files:
        if not path.is_file() or path.is_symlink() or not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for name, wanted in encoded.items():
                if data.find(wanted) >= 0:
                    yield Leak(name, place)
