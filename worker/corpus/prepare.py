"""Makes a data folder from raw text: reads documents, cleans and encodes them, writes token shards and then the manifest.

The stages: chunks of the corpus become units, in parallel and in any order. Duplicates are found over all units. The units
are written as streams, in reading order. The folder is moved into its place. A killed preparation reuses its finished units.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from state.data_manifest import REPORT_NAME, TOKENIZER_NAME, DataManifest, Recipe, Source, token_bytes_for
from state.errors import DataError, UserError, did_you_mean
from state.files import remove_tree, sha256_of_file, write_atomically
from state.layout import DATA_MANIFEST_NAME
from worker.corpus.assemble import Assembly, UnitPlace
from worker.corpus.chunks import Chunk, ChunkReader
from worker.corpus.documents import file_bytes
from worker.corpus.duplicates import find_duplicates
from worker.corpus.encoding import EncoderSetup, Pack, encode_packs, pack_of
from worker.corpus.parts import check_part_size, describe_parts, lay_out
from worker.corpus.progress import PrepareProgress, Silent
from worker.corpus.report import add_up, make_report
from worker.corpus.sources import SourceFile, find_sources, not_read
from worker.corpus.staging import Staging, remove_leftovers, staging_beside, staging_of
from worker.corpus.units import Example, Portion, UnitHeader, read_header
from worker.tokenizer.tokenizer import Tokenizer, load_tokenizer

PACK_BYTES = 4 * 1024 * 1024  # of text in a unit: some seconds of work, so a kill costs each process only that much
_BYTES_PER_WORKER = 16 * 1024 * 1024  # below this, starting a process takes longer than it saves
_PLACES_IN_MESSAGE = 5
_MAX_LANGUAGES = 10_000  # there are fewer in the world; with more, the language field holds something else


def prepare(
    corpus: Sequence[Path],
    tokenizer: Path,
    out: Path,
    recipe: Recipe | None = None,
    *,
    num_workers: int | None = None,
    replace: bool = False,
    progress: PrepareProgress | None = None,
    pack_bytes: int = PACK_BYTES,
) -> DataManifest:
    """Make a data folder from corpus folders. The same call gives the same bytes, also when it was killed and repeated.

    Args:
        corpus: Corpus folders, each with one folder per language.
        tokenizer: A SentencePiece model.
        out: The data folder. If it already holds the data of this corpus, tokenizer and recipe, nothing is done.
        recipe: How text becomes tokens; None: the defaults.
        num_workers: Processes that encode; None: one for each core, fewer for a small corpus.
        replace: Whether to replace the contents of `out` if they are other data or incomplete.
        progress: Receives the progress.
        pack_bytes: Text in a unit of work; the result does not depend on it.

    Returns:
        The manifest, which is also written to the folder.

    Raises:
        UserError: the corpus, the tokenizer, the recipe or `out` cannot be used, or the disk is full.
        DataError: a file cannot be read, a language has no text, or too many records have no usable text.
        TemporaryError: another process is preparing the same folder, or one of our processes was killed.
    """
    recipe = recipe or Recipe()
    progress = progress or Silent()
    check_part_size(recipe)
    _check_validation(recipe)
    model = load_tokenizer(tokenizer)
    sources = find_sources(corpus, recipe)
    _check_names(recipe, {file.language for file in sources.files})
    if sources.ignored:
        progress.say(not_read(sources.ignored))
    out = out.resolve()
    present = _present(out, sources.files, model, recipe, replace=replace)
    if present is None:
        _check_corpora_stay(out, corpus)
    if present is not None:
        remove_leftovers(out)
        progress.say(f"{out} holds this data already")
        return present
    total_bytes = sum(map(file_bytes, sources.files))
    num_workers = num_workers or max(1, min(_num_cores(), total_bytes // _BYTES_PER_WORKER))
    try:
        with staging_beside(out) as staging:
            work = _Preparation(sources.files, model, recipe, staging, progress)
            manifest = work.run(num_workers, pack_bytes, total_bytes)
            staging.publish()
    except KeyboardInterrupt:
        progress.say(f"stopped; the same command resumes ({staging_of(out)} keeps the finished work)")
        raise
    except OSError as error:  # errors of reading are DataErrors by now
        raise UserError(
            f"{out} cannot be written ({error.strerror})",
            remedy="make room or choose another --out; the same command then resumes",
        ) from error
    return manifest


class _Preparation:
    """One preparation, stage by stage."""

    def __init__(
        self, files: Sequence[SourceFile], model: Tokenizer, recipe: Recipe, staging: Staging, progress: PrepareProgress
    ) -> None:
        self._files = files
        self._model = model
        self._recipe = recipe
        self._staging = staging
        self._progress = progress
        self._packed: list[tuple[Path, tuple[int, ...]]] = []  # each unit, and the sources of its portions
        self._read: list[tuple[int, str]] = []  # size and sha256 of each file
        self._languages: set[str] = set()  # of the units that were read so far

    def run(self, num_workers: int, pack_bytes: int, total_bytes: int) -> DataManifest:
        self._begin()
        setup = EncoderSetup(self._recipe, self._staging.root / TOKENIZER_NAME)
        self._progress.stage("encoding", total_bytes)
        packs = self._missing(self._packs(pack_bytes, setup.digest(self._model.sha256)))
        with contextlib.closing(encode_packs(packs, setup, num_workers)) as units:
            for unit in units:
                self._take_languages(unit.header)
                self._progress.advance(unit.pack_bytes, max(1, unit.header.num_tokens))
        places, sources, examples = self._counted()
        self._check_malformed(sources, examples)
        self._check_languages(sources, examples)
        return self._assemble(places, sources)

    def _begin(self) -> None:
        remove_tree(self._staging.data)  # streams are always written anew, from the finished units
        self._staging.data.mkdir()
        self._staging.units.mkdir(exist_ok=True)
        write_atomically(self._staging.root / TOKENIZER_NAME, self._model.model_bytes)

    def _packs(self, pack_bytes: int, settings: bytes) -> Iterator[Pack]:
        """Read the whole corpus, and yield it in packs."""
        chunks: list[Chunk] = []
        numbers: list[int] = []
        size = num_bytes = 0
        for number, file in enumerate(self._files):
            reader = ChunkReader(file, self._recipe, chunk_bytes=pack_bytes)
            before = 0
            for chunk in reader.chunks():
                chunks.append(chunk)
                numbers.append(number)
                size += len(chunk.data) if isinstance(chunk.data, bytes) else pack_bytes
                num_bytes += reader.bytes_read - before
                before = reader.bytes_read
                if size >= pack_bytes:
                    yield self._pack(chunks, numbers, num_bytes, settings)
                    chunks, numbers, size, num_bytes = [], [], 0, 0
            num_bytes += reader.bytes_read - before
            self._read.append((reader.num_bytes, reader.sha256))
        if chunks:
            yield self._pack(chunks, numbers, num_bytes, settings)

    def _pack(self, chunks: Sequence[Chunk], numbers: Sequence[int], num_bytes: int, settings: bytes) -> Pack:
        pack = pack_of(chunks, num_bytes, self._staging.units, settings)
        self._packed.append((pack.unit, tuple(numbers)))
        return pack

    def _missing(self, packs: Iterator[Pack]) -> Iterator[Pack]:
        """Yield the packs that have no unit yet."""
        making: set[Path] = set()
        said = False
        for pack in packs:
            if pack.unit not in making and not pack.unit.exists():
                making.add(pack.unit)
                yield pack
                continue
            if pack.unit not in making and not said:
                self._progress.say("resuming an earlier preparation")
                said = True
            self._progress.advance(pack.num_bytes)

    def _counted(self) -> tuple[list[UnitPlace], list[Source], dict[int, dict[str, list[Example]]]]:
        """Return the units, the sources with their counts, and examples of records without usable text."""
        places = []
        portions: list[list[Portion]] = [[] for _ in self._files]
        for path, numbers in self._packed:
            header = read_header(path)
            self._take_languages(header)
            places.append(UnitPlace(path, numbers, header.num_documents))
            for number, portion in zip(numbers, header.portions, strict=True):
                portions[number].append(portion)
        sources = [
            Source(
                corpus=file.corpus,
                name=file.name,
                num_bytes=num_bytes,
                sha256=sha256,
                num_records=sum(portion.num_records for portion in mine),
                skipped=add_up(portion.skipped for portion in mine),
            )
            for file, (num_bytes, sha256), mine in zip(self._files, self._read, portions, strict=True)
        ]
        examples = {
            number: {
                reason: [example for portion in mine for example in portion.examples.get(reason, ())]
                for reason in sources[number].skipped
            }
            for number, mine in enumerate(portions)
        }
        return places, sources, examples

    def _take_languages(self, header: UnitHeader) -> None:
        self._languages.update(header.languages)
        if len(self._languages) > _MAX_LANGUAGES:
            some = ", ".join(map(repr, sorted(self._languages)[:_PLACES_IN_MESSAGE]))
            raise DataError(
                f"the corpus has more than {_MAX_LANGUAGES:,} languages: {some}, ...",
                remedy=f"--language-field {self._recipe.language_field} may name the wrong field"
                if self._recipe.language_field
                else "each folder in a corpus folder counts as a language",
            )

    def _check_malformed(self, sources: Sequence[Source], examples: dict[int, dict[str, list[Example]]]) -> None:
        num_records = sum(source.num_records for source in sources)
        num_skipped = sum(sum(source.skipped.values()) for source in sources)
        if num_skipped > self._recipe.max_malformed_share * num_records:
            raise DataError(
                f"{num_skipped} of {num_records} records have no usable text{self._places(examples)}",
                expected=f"at most {self._recipe.max_malformed_share:.2%} (--max-malformed)",
                remedy="correct them, or allow more; the same command then resumes",
            )

    def _check_languages(self, sources: Sequence[Source], examples: dict[int, dict[str, list[Example]]]) -> None:
        """Check that every language that is named by a folder has usable text."""
        usable: dict[str, int] = {}
        for file, source in zip(self._files, sources, strict=True):
            if file.language is not None:
                usable[file.language] = usable.get(file.language, 0) + source.num_records - sum(source.skipped.values())
        empty = sorted(language for language, count in usable.items() if not count)
        if empty or not any(source.num_records for source in sources):
            names = ", ".join(repr(language) for language in empty) or "the corpus"
            raise DataError(
                f"{names} has no usable text in it{self._places(examples)}",
                expected=f'records such as {{"{self._recipe.text_field}": "..."}}',
                remedy="add text, or take the folder out of the corpus",
            )

    def _places(self, examples: dict[int, dict[str, list[Example]]]) -> str:
        places = [
            f"\n  {self._files[number].path}, {self._files[number].kind.record_word} {example.record}: {reason}"
            for number, reasons in examples.items()
            for reason, kept in reasons.items()
            for example in kept
        ]
        return "".join(places[:_PLACES_IN_MESSAGE])

    def _assemble(self, places: Sequence[UnitPlace], sources: Sequence[Source]) -> DataManifest:
        first = None
        if self._recipe.deduplicate:
            self._progress.say("looking for duplicates")
            counts = [place.num_documents for place in places]
            first = find_duplicates([place.path for place in places], counts, self._staging.root / "first.bin")
        self._progress.say("writing shards")
        folder = self._staging.data
        assembled = Assembly(folder, self._recipe, self._model, sources).write(places, first)
        token_bytes = token_bytes_for(self._model.vocab_size)
        manifest = DataManifest.sealed(
            token_bytes=token_bytes,
            vocab_size=self._model.vocab_size,
            bos_id=self._model.bos_id,
            eos_id=self._model.eos_id,
            pad_id=self._model.pad_id,
            unk_id=self._model.unk_id,
            tokenizer_sha256=self._model.sha256,
            recipe=self._recipe,
            languages=lay_out(folder, assembled.languages, self._recipe, token_bytes),
            sources=tuple(sources),
        )
        describe_parts(folder, manifest)
        write_atomically(folder / REPORT_NAME, make_report(manifest, assembled.examples).to_json())
        write_atomically(folder / TOKENIZER_NAME, self._model.model_bytes)
        write_atomically(folder / DATA_MANIFEST_NAME, manifest.to_json())
        return manifest


def _check_validation(recipe: Recipe) -> None:
    if recipe.validation_shares and not recipe.deduplicate:
        raise UserError(
            "--keep-duplicates cannot be combined with a --validation share of single languages",
            expected="one share for all languages, or no duplicates: of a text that two languages have, both copies must be held"
            " out, or none",
            remedy="leave out one of the two",
        )


def _check_names(recipe: Recipe, languages: Set[str | None]) -> None:
    """Check that the validation shares name languages of the corpus, if all languages are known from the folders."""
    known = sorted(language for language in languages if language is not None)
    for name in recipe.validation_shares:
        if name not in known and None not in languages:
            raise UserError(
                f"--validation names {name!r}, and the corpus has no such language",
                expected=f"one of {', '.join(known)}",
                remedy=did_you_mean(name, known),
            )


def _num_cores() -> int:
    """Return how many cores this process may use: of a node that is shared, often fewer than it has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _present(out: Path, files: Sequence[SourceFile], model: Tokenizer, recipe: Recipe, *, replace: bool) -> DataManifest | None:
    """Return the manifest in `out` when it is of this corpus, tokenizer and recipe; None when it is to be made.

    Raises:
        UserError: something else is there, and is not to be replaced.
        DataError: the data there is damaged, and not to be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / DATA_MANIFEST_NAME).is_file():
        raise UserError(f"{out} exists and holds no prepared data", remedy="choose another --out; --replace replaces data only")
    try:
        return _already_prepared(out, files, model, recipe)
    except (UserError, DataError):
        if not replace:
            raise
        return None


def _check_corpora_stay(out: Path, corpora: Sequence[Path]) -> None:
    """Check that no corpus folder lies inside `out`: publishing the data folder would replace it."""
    for corpus in corpora:
        if out in (corpus.resolve(), *corpus.resolve().parents):
            raise UserError(f"the data folder {out} would replace the corpus folder {corpus}", remedy="choose another --out")


def _already_prepared(out: Path, files: Sequence[SourceFile], model: Tokenizer, recipe: Recipe) -> DataManifest:
    path = out / DATA_MANIFEST_NAME
    manifest = DataManifest.from_json(path.read_bytes(), str(path))
    difference = _difference(manifest, files, model, recipe)
    if difference is not None:
        raise UserError(
            f"{out} holds data of {difference}",
            remedy="choose another --out, or --replace it when no run needs it",
        )
    for name, num_bytes in manifest.files.items():
        file = out / name
        if not file.is_file() or file.stat().st_size != num_bytes:
            raise DataError(f"{file} is missing or truncated", remedy="--replace makes the folder anew")
    return manifest


def _difference(manifest: DataManifest, files: Sequence[SourceFile], model: Tokenizer, recipe: Recipe) -> str | None:
    if manifest.tokenizer_sha256 != model.sha256:
        return "another tokenizer"
    if manifest.recipe != recipe:
        fields = [name for name in Recipe.model_fields if getattr(manifest.recipe, name) != getattr(recipe, name)]
        return f"another recipe: {', '.join(f'{name} {getattr(manifest.recipe, name)!r}' for name in fields)}"
    present = [(source.corpus, source.name, source.num_bytes) for source in manifest.sources]
    if present != [(file.corpus, file.name, file_bytes(file)) for file in files]:
        return "another corpus"
    if [source.sha256 for source in manifest.sources] != [_sha256_of_source(file) for file in files]:
        return "another corpus"
    return None


def _sha256_of_source(file: SourceFile) -> str:
    try:
        return sha256_of_file(file.path)
    except OSError as error:
        raise DataError(f"{file.path} cannot be read ({error.strerror})", remedy="make it readable") from error
