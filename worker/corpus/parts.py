"""Lays the files of a data folder out as parts: folders of bounded size, each of which can be stored as one dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from state.data_manifest import INDEX_ROW_BYTES, DataManifest, LanguageData, Recipe, Shard, TokenStream
from state.document import Document
from state.errors import UserError
from state.files import rename, write_atomically
from state.layout import FileName

PART_NAME = "part.json"
MAX_PART_FILES = 50  # the smallest limit of the stores that parts are for, at a dataset's top level
_RESERVED_FILES = 4  # part.json, and room for the manifest, the tokenizer and a note of the store


class PartFile(Document):
    """One file of a part."""

    name: FileName
    num_bytes: int
    sha256: str


class Part(Document):
    """`part.json`: the list of a part's files, by which a reader recognises the part wherever it is mounted."""

    schema_version: int = 1
    number: int
    data_sha256: str
    files: tuple[PartFile, ...]


def check_part_size(recipe: Recipe) -> None:
    """Check that a full shard fits into a part.

    Raises:
        UserError: it does not.
    """
    if recipe.max_part_bytes is not None and recipe.max_part_bytes <= recipe.shard_bytes:
        raise UserError(
            f"--max-part-size is too small: {recipe.max_part_bytes} bytes for a shard of {recipe.shard_bytes} and its index",
            expected="--max-part-size larger than --shard-size",
            remedy="a larger --max-part-size, or a smaller --shard-size",
        )


def lay_out(folder: Path, languages: dict[str, LanguageData], recipe: Recipe, token_bytes: int) -> dict[str, LanguageData]:
    """Move the shards and their indices into parts, if the recipe has a part size; return the languages with the new names.

    Raises:
        UserError: a shard and its index together are larger than a part.
    """
    if recipe.max_part_bytes is None:
        return languages
    parts = _Parts(folder, recipe.max_part_bytes, token_bytes)
    return {
        name: data.evolve(shards=parts.place_all(data.shards), validation=data.validation and _placed(data.validation, parts))
        for name, data in languages.items()
    }


def describe_parts(folder: Path, manifest: DataManifest) -> None:
    """Write each part's list of files; write nothing if there are no parts."""
    files: dict[str, list[PartFile]] = {}
    sizes = manifest.files
    for stream in manifest.streams:
        for shard in stream.shards:
            for name, sha256 in ((shard.name, shard.sha256), (shard.index.name, shard.index.sha256)):
                part, _, file = name.rpartition("/")
                files.setdefault(part, []).append(PartFile(name=file, num_bytes=sizes[name], sha256=sha256))
    for part, listed in files.items():
        if part:
            document = Part(number=int(part.rpartition("-")[2]), data_sha256=manifest.data_sha256, files=tuple(listed))
            write_atomically(folder / part / PART_NAME, document.to_json())


def _placed(stream: TokenStream, parts: _Parts) -> TokenStream:
    return stream.evolve(shards=parts.place_all(stream.shards))


class _Parts:
    def __init__(self, folder: Path, max_bytes: int, token_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._token_bytes = token_bytes
        self._number = 0
        self._num_bytes = 0
        self._num_files = MAX_PART_FILES  # so that the first shard begins a part

    def place_all(self, shards: Iterable[Shard]) -> tuple[Shard, ...]:
        return tuple(self._place(shard) for shard in shards)

    def _place(self, shard: Shard) -> Shard:
        size = shard.num_tokens * self._token_bytes + shard.index.num_documents * INDEX_ROW_BYTES
        if size > self._max_bytes:
            raise UserError(
                f"the shard {shard.name} and its index have {size} bytes, and a part at most {self._max_bytes}",
                remedy="a larger --max-part-size, or a smaller --shard-size",
            )
        if self._num_files + 2 > MAX_PART_FILES - _RESERVED_FILES or self._num_bytes + size > self._max_bytes:
            self._number += 1
            self._num_bytes = self._num_files = 0
            (self._folder / self._part).mkdir()
        self._num_bytes += size
        self._num_files += 2
        index = shard.index.evolve(name=self._moved(shard.index.name))
        return shard.evolve(name=self._moved(shard.name), index=index)

    @property
    def _part(self) -> str:
        return f"part-{self._number:03d}"

    def _moved(self, name: str) -> str:
        rename(self._folder / name, self._folder / self._part / name)
        return f"{self._part}/{name}"
