"""How prepared data is spread over datasets: pure, from a data folder's manifest to parts, from parts to what is to be sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from state.data_manifest import DataManifest
from state.document import digest_of
from state.kaggle.names import data_slug
from state.layout import DATA_MANIFEST_NAME

PART_NAME = "part.json"
"""What `prepare --max-part-size` writes into each part's folder."""
MOST_FILES = 46
"""Kaggle takes 50 files at the top level of a dataset; some are left for what a later version may add."""
MOST_BYTES = 20 * 10**9
"""Small enough that Kaggle takes it, and that a part that must be sent again costs hours, not days."""

_OUR_NOTES = "gemma-orch data"


@dataclass(frozen=True)
class DataFile:
    """One file of a data folder."""

    path: str
    """Within the data folder, with forward slashes."""
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Its name in a dataset."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class DataPart:
    """What one dataset holds: part 0 the manifest and the tokenizer, every other one shards and their indices."""

    number: int
    slug: str
    files: tuple[DataFile, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by name."""
        return {file.name: file.size_bytes for file in self.files}

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def mark(self) -> str:
        """How the notes of every version begin that holds exactly these files."""
        return f"{_OUR_NOTES} {digest_of([[file.name, file.size_bytes, file.sha256] for file in self.files])}"

    def notes_after(self, version: int) -> str:
        """Return the notes of a version that replaces another one; unique, so that it is looked for before it is sent again."""
        return f"{self.mark} after version {version}"


@dataclass(frozen=True)
class Standing:
    """What the account has under a part's slug."""

    version: int | None
    """The current one; None while the first is processed."""
    is_ready: bool
    sizes: Mapping[str, int]
    """Bytes by name, of the current version."""
    notes: str
    """Of the current version."""


@dataclass(frozen=True)
class Keep:
    """A part stands as it is."""

    part: DataPart
    version: int


@dataclass(frozen=True)
class Create:
    """A part's dataset does not exist."""

    part: DataPart


@dataclass(frozen=True)
class Replace:
    """A part's dataset holds something else: it gets a new version."""

    part: DataPart
    version: int
    reason: str


@dataclass(frozen=True)
class Await:
    """A part's dataset is still being processed."""

    part: DataPart


Move = Keep | Create | Replace | Await


def part_files(manifest: DataManifest) -> dict[int, tuple[str, ...]]:
    """Return, by part from 1 on, the shards and indices in it: as the folder was laid out, else as many as a dataset takes."""
    parts: dict[int, list[str]] = {}
    for number, names in _placed(manifest):
        parts.setdefault(number, []).extend(names)
    return {number: tuple(names) for number, names in sorted(parts.items())}


def data_slugs(manifest: DataManifest) -> tuple[str, ...]:
    """Return the slugs of all datasets of prepared data; that of the manifest first."""
    return tuple(data_slug(manifest.data_sha256, number) for number in (0, *part_files(manifest)))


def data_parts(manifest: DataManifest, beside: Mapping[str, DataFile]) -> tuple[DataPart, ...]:
    """Return the parts of a data folder, part 0 first.

    Args:
        manifest: The folder's.
        beside: By path, its files that are in no stream: the manifest, the tokenizer, and every part's list where there is one.
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
    """Return what is to be done about each part.

    Args:
        parts: What shall be there.
        standing: By slug, what is there; None: nothing.
        published: By name, the sha256 that the manifest on the account gives to files of this data; empty: there is none.
    """
    return tuple(_move(part, standing[part.slug], published) for part in parts)


def _move(part: DataPart, there: Standing | None, published: Mapping[str, str]) -> Move:
    if there is None:
        return Create(part)
    if there.version is None or not there.is_ready:
        return Await(part)
    reason = difference(part.sizes, there.sizes)
    if not reason and there.notes.startswith(_OUR_NOTES):
        reason = "" if there.notes.startswith(part.mark) else "its files are those of another preparation"
    elif not reason and any(published.get(file.name, file.sha256) != file.sha256 for file in part.files):
        # The first version of a dataset has no notes of ours: there, the manifest on the account tells which content it has.
        reason = "its files have another content"
    return Replace(part, there.version, reason) if reason else Keep(part, there.version)


def difference(expected: Mapping[str, int], found: Mapping[str, int]) -> str:
    """Return in words how a list of files differs from what it should be; empty when it does not."""
    missing = [name for name in expected if name not in found]
    foreign = [name for name in found if name not in expected]
    other = [f"{name} has {found[name]} bytes, not {size}" for name, size in expected.items() if found.get(name, size) != size]
    said = [f"{name} is missing" for name in missing] + other + [f"{name} does not belong to it" for name in foreign]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    return ", ".join(said[:3]) + more


def published_digests(manifest: DataManifest, manifest_sha256: str) -> dict[str, str]:
    """Return, by name in a dataset, the sha256 that a manifest on the account gives to each file, its own included."""
    named = {path.rpartition("/")[2]: sha256 for path, sha256 in _digests(manifest).items()}
    return {**named, DATA_MANIFEST_NAME: manifest_sha256, manifest.tokenizer_file: manifest.tokenizer_sha256}


def bytes_to_send(moves: Iterable[Move]) -> int:
    """Return how many bytes the moves send."""
    return sum(move.part.num_bytes for move in moves if isinstance(move, Create | Replace))


def _part(manifest: DataManifest, number: int, files: Sequence[DataFile]) -> DataPart:
    return DataPart(number, data_slug(manifest.data_sha256, number), tuple(files))


def _placed(manifest: DataManifest) -> Iterator[tuple[int, tuple[str, str]]]:
    """Give every shard with its index, and the part that both are in."""
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
