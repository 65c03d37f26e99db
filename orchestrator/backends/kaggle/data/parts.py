"""Split prepared data into parts, one dataset each, and plan which parts to upload. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from state.data_manifest import DataManifest
from state.document import digest_of
from state.kaggle.names import data_slug
from state.layout import DATA_MANIFEST_NAME

PART_NAME = "part.json"
"""The file that `prepare --max-part-size` writes into each part's folder."""
MOST_FILES = 46
"""Kaggle allows 50 files at the top level of a dataset; four are left for later versions of gemma-orch."""
MOST_BYTES = 20 * 10**9
"""Within Kaggle's limit, and small enough that uploading a part again takes hours, not days."""

_OUR_NOTES = "gemma-orch data"


@dataclass(frozen=True)
class DataFile:
    """One file of a data folder."""

    path: str
    """Path within the data folder, with forward slashes."""
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Its name in a dataset."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class DataPart:
    """The contents of one dataset: in part 0 the manifest and the tokenizer, in the others shards and their indices."""

    number: int
    slug: str
    files: tuple[DataFile, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """File sizes in bytes, by name."""
        return {file.name: file.size_bytes for file in self.files}

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def mark(self) -> str:
        """The start of the version notes that identifies exactly these files."""
        return f"{_OUR_NOTES} {digest_of([[file.name, file.size_bytes, file.sha256] for file in self.files])}"

    def notes_after(self, version: int) -> str:
        """Return the notes of a version that replaces another one; unique, so that a retry can first look for it."""
        return f"{self.mark} after version {version}"


@dataclass(frozen=True)
class Standing:
    """The dataset under a part's slug, as the account shows it."""

    version: int | None
    """The current version; None while the first is processed."""
    is_ready: bool
    sizes: Mapping[str, int]
    """File sizes in bytes, by name, in the current version."""
    notes: str
    """Notes of the current version."""


@dataclass(frozen=True)
class Keep:
    """The part's dataset is complete."""

    part: DataPart
    version: int


@dataclass(frozen=True)
class Create:
    """The part's dataset does not exist yet: create it."""

    part: DataPart


@dataclass(frozen=True)
class Replace:
    """The part's dataset holds something else: upload a new version."""

    part: DataPart
    version: int
    reason: str


@dataclass(frozen=True)
class Await:
    """Kaggle still processes the part's dataset: wait."""

    part: DataPart


Move = Keep | Create | Replace | Await


def part_files(manifest: DataManifest) -> dict[int, tuple[str, ...]]:
    """Return the shards and indices of each part from 1 on: the folder's own parts, else as many files as a dataset allows."""
    parts: dict[int, list[str]] = {}
    for number, names in _placed(manifest):
        parts.setdefault(number, []).extend(names)
    return {number: tuple(names) for number, names in sorted(parts.items())}


def data_slugs(manifest: DataManifest) -> tuple[str, ...]:
    """Return the slugs of all datasets of prepared data, the manifest's first."""
    return tuple(data_slug(manifest.data_sha256, number) for number in (0, *part_files(manifest)))


def data_parts(manifest: DataManifest, beside: Mapping[str, DataFile]) -> tuple[DataPart, ...]:
    """Return the parts of a data folder, part 0 first.

    Args:
        manifest: The folder's manifest.
        beside: The files that no stream lists, by path: the manifest, the tokenizer, and each part's list if it has one.
    """
    digests = _digests(manifest)
    sizes = manifest.files
    parts = [_part(manifest, 0, [beside[DATA_MANIFEST_NAME], beside[manifest.tokenizer_file]])]
    for number, names in part_files(manifest).items():
        folder = names[0].rpartition("/")[0]
        lists = [beside[path] for path in (f"{folder}/{PART_NAME}",) if folder and path in beside]
        parts.append(_part(manifest, number, [*(DataFile(name, sizes[name], digests[name]) for name in names), *lists]))
    return tuple(parts)


def plan_upload(
    parts: Sequence[DataPart], standing: Mapping[str, Standing | None], published: Mapping[str, str]
) -> tuple[Move, ...]:
    """Return the move for each part.

    Args:
        parts: The parts to upload.
        standing: The dataset of each slug, as the account shows it; None if there is none.
        published: The sha256 of this data's files by the manifest on the account, by name; empty without such a manifest.
    """
    return tuple(_move(part, standing[part.slug], published) for part in parts)


def _move(part: DataPart, there: Standing | None, published: Mapping[str, str]) -> Move:
    if there is None:
        return Create(part)
    if there.version is None or not there.is_ready:
        return Await(part)
    reason = difference(part.sizes, there.sizes)
    if not reason and there.notes.startswith(_OUR_NOTES):
        reason = "" if there.notes.startswith(part.mark) else "its files are from another preparation"
    elif not reason and any(published.get(file.name, file.sha256) != file.sha256 for file in part.files):
        # A dataset's first version has no notes of ours; the manifest on the account tells which content it has.
        reason = "its files have other contents"
    return Replace(part, there.version, reason) if reason else Keep(part, there.version)


def difference(expected: Mapping[str, int], found: Mapping[str, int]) -> str:
    """Describe how a list of files differs from the expected one; empty if it does not."""
    missing = [name for name in expected if name not in found]
    foreign = [name for name in found if name not in expected]
    other = [f"{name} has {found[name]} bytes, not {size}" for name, size in expected.items() if found.get(name, size) != size]
    said = [f"{name} is missing" for name in missing] + other + [f"{name} does not belong to it" for name in foreign]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    return ", ".join(said[:3]) + more


def published_digests(manifest: DataManifest, manifest_sha256: str) -> dict[str, str]:
    """Return the sha256 of each file by the manifest on the account, by name in its dataset; the manifest's own is included."""
    named = {path.rpartition("/")[2]: sha256 for path, sha256 in _digests(manifest).items()}
    return {**named, DATA_MANIFEST_NAME: manifest_sha256, manifest.tokenizer_file: manifest.tokenizer_sha256}


def bytes_to_send(moves: Iterable[Move]) -> int:
    """Return how many bytes the moves upload."""
    return sum(move.part.num_bytes for move in moves if isinstance(move, Create | Replace))


def _part(manifest: DataManifest, number: int, files: Sequence[DataFile]) -> DataPart:
    return DataPart(number, data_slug(manifest.data_sha256, number), tuple(files))


def _placed(manifest: DataManifest) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield the part number of each shard, with the names of the shard and its index."""
    sizes = manifest.files
    number, num_files, num_bytes = 1, 0, 0
    for stream in manifest.streams:
        for shard in stream.shards:
            names = (shard.name, shard.index.name)
            if "/" in shard.name:
                yield int(shard.name.partition("/")[0].rpartition("-")[2]), names
                continue
            size = sum(sizes[name] for name in names)
            if num_files and (num_files + 2 > MOST_FILES or num_bytes + size > MOST_BYTES):
                number, num_files, num_bytes = number + 1, 0, 0
            num_files, num_bytes = num_files + 2, num_bytes + size
            yield number, names


def _digests(manifest: DataManifest) -> dict[str, str]:
    shards = [shard for stream in manifest.streams for shard in stream.shards]
    return {shard.name: shard.sha256 for shard in shards} | {shard.index.name: shard.index.sha256 for shard in shards}
