"""`gemma-orch data show`: shows exactly which documents a step reads, or what a data folder holds."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from state.data_manifest import DataManifest, Recipe, Source
from state.errors import DataError, ExitCode, UserError
from state.spec import Reading, SessionData, SessionSpec
from worker.cli import VerbParser, write_out
from worker.inspect_data.table import (
    DataHeld,
    DataOverview,
    DocumentPiece,
    LanguageHeld,
    SequenceRead,
    StepRead,
    overview_text,
    step_text,
)

if TYPE_CHECKING:
    from worker.data.blocks import Tokens
    from worker.inspect_data.documents import Piece
    from worker.tokenizer.tokenizer import Tokenizer


def main(arguments: Sequence[str]) -> int:
    """Run `python -m worker data show`: print a table for people, or JSON, on stdout.

    Raises:
        GemmaOrchError: there is no such step, or the data is missing or has changed.
    """
    parser = VerbParser("data show", "Show exactly which documents a step reads; without --step, what the data holds.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--session", type=Path, metavar="FILE", help="a SessionSpec as JSON: the run")
    what.add_argument("--data", type=Path, metavar="DIR", help="a data folder")
    parser.add_argument("--step", type=int, metavar="N", help="the step, counted from 1; needs --session")
    parser.add_argument("--sequence", type=int, metavar="K", help="only one sequence of the step, from 1")
    parser.add_argument("--decode", action="store_true", help="show the text as well")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse(arguments)
    if options.step is None:
        if options.sequence is not None or options.decode:
            raise UserError("--step is missing: --sequence and --decode need it", remedy="add --step N")
        overview = data_overview(options.data) if options.data is not None else run_overview(_read_session(options.session))
        write_out(overview.to_json().decode() if options.json else f"{overview_text(overview)}\n")
        return ExitCode.DONE
    if options.session is None:
        raise UserError("a data folder alone has no steps", remedy="add --session FILE")
    step = read_step(_read_session(options.session), options.step, only=options.sequence, decode=options.decode)
    width = shutil.get_terminal_size((120, 40)).columns
    write_out(step.to_json().decode() if options.json else f"{step_text(step, width=width)}\n")
    return ExitCode.DONE


def read_step(spec: SessionSpec, step: int, *, only: int | None = None, decode: bool = False) -> StepRead:
    """Return what a step of a run reads.

    Args:
        spec: A session of the run.
        step: Counted from 1, as in the status and the metrics.
        only: Return only this sequence of the step, from 1; None: all.
        decode: Whether to decode the tokens into text.

    Raises:
        UserError: the run has no such step, the step has no such sequence, or the folder holds other data.
        DataError: the data is missing or has changed.
    """
    _check_range("step", step, spec.total_steps, f"in run {spec.run}")
    if only is not None:
        _check_range("sequence", only, spec.training.batch_size, f"in step {step}")
    version = _version_at(spec, step)
    reader = _Reader(spec, version, step, decode=decode)
    return StepRead(
        run=spec.run,
        step=step,
        total_steps=spec.total_steps,
        sequence_length=spec.sequence_length,
        data_dir=version.data_dir,
        data_sha256=version.data_sha256,
        sequences=tuple(reader.sequence(place) for place in (range(spec.training.batch_size) if only is None else (only - 1,))),
    )


class _Reader:
    """Reads the sequences of one step, and finds their documents."""

    def __init__(self, spec: SessionSpec, version: SessionData, step: int, *, decode: bool) -> None:
        from worker.data.versions import open_version
        from worker.inspect_data.documents import DocumentIndex

        folder = Path(version.data_dir)
        batches = open_version(spec.evolve(reading=Reading()), version)  # one step needs no scratch
        self._data = batches.data
        self._manifest = batches.data.manifest
        self._languages = batches.order.languages
        self._samples = batches.order.step(step - 1 - version.first_step)
        self._documents = {name: DocumentIndex(folder, stream) for name, stream in self._manifest.languages.items()}
        self._tokenizer = _tokenizer(folder, self._manifest) if decode else None

    def sequence(self, place: int) -> SequenceRead:
        """Return the sequence at a place in the batch, from 0."""
        language, number = self._languages[int(self._samples.language[place])], int(self._samples.sequence[place])
        length = self._data.sequence_length + 1
        first = number * self._data.sequence_length
        tokens = self._data.sequences(language, self._samples.sequence[place : place + 1])[0] if self._tokenizer else None
        return SequenceRead(
            number=place + 1,
            language=language,
            sequence=number,
            epoch=int(self._samples.epoch[place]),
            first_token=first,
            num_tokens=length,
            documents=tuple(self._piece(piece, tokens) for piece in self._documents[language].pieces(first, length)),
        )

    def _piece(self, piece: Piece, tokens: Tokens | None) -> DocumentPiece:
        source = self._manifest.sources[piece.source]
        text = None
        if self._tokenizer is not None and tokens is not None:
            text = decoded(self._tokenizer, tokens[piece.first_token : piece.first_token + piece.num_tokens].tolist())
        return DocumentPiece(
            corpus=source.corpus,
            source=source.name,
            unit=_unit(source, self._manifest.recipe),
            record=piece.record,
            first_token=piece.first_token,
            num_tokens=piece.num_tokens,
            document_offset=piece.document_offset,
            text=text,
        )


def decoded(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Return the text of tokens; special tokens appear by name, such as <bos>."""
    processor = tokenizer.processor
    said: list[str] = []
    for special, group in itertools.groupby(tokens, lambda token: processor.is_control(token) or processor.is_unknown(token)):
        ids = list(group)
        said.append("".join(processor.id_to_piece(ids)) if special else processor.decode(ids))
    return "".join(said)


def run_overview(spec: SessionSpec) -> DataOverview:
    """Return the data that a run reads, version by version.

    Raises:
        DataError: a version's data is missing or has changed.
    """
    versions = [version for version in spec.data if version.first_step < spec.total_steps]
    ends = [*(version.first_step for version in versions[1:]), spec.total_steps]
    return DataOverview(
        run=spec.run, versions=tuple(_held(spec, version, end) for version, end in zip(versions, ends, strict=True))
    )


def _held(spec: SessionSpec, version: SessionData, end_step: int) -> DataHeld:
    manifest = _manifest_of(version)
    samples = (end_step - version.first_step) * spec.training.batch_size
    shares = {name: version.mixture.get(name, 0.0) for name in manifest.languages}
    return DataHeld(
        data_dir=version.data_dir,
        data_sha256=version.data_sha256,
        first_step=version.first_step + 1,
        last_step=end_step,
        languages=tuple(
            _language(manifest, name).evolve(
                share=share, epochs=samples * share / max(1, (manifest.languages[name].num_tokens - 1) // spec.sequence_length)
            )
            for name, share in sorted(shares.items())
        ),
    )


def data_overview(folder: Path) -> DataOverview:
    """Return the contents of a data folder, by language.

    Raises:
        DataError: the folder is not a data folder.
    """
    from worker.data.batches import read_data_manifest

    manifest = read_data_manifest(folder)
    held = DataHeld(
        data_dir=str(folder),
        data_sha256=manifest.data_sha256,
        languages=tuple(_language(manifest, name) for name in sorted(manifest.languages)),
    )
    return DataOverview(versions=(held,))


def _language(manifest: DataManifest, name: str) -> LanguageHeld:
    data = manifest.languages[name]
    return LanguageHeld(
        language=name,
        num_documents=data.num_documents,
        num_tokens=data.num_tokens,
        num_bytes_text=data.num_bytes_text,
        validation_documents=data.validation.num_documents if data.validation else 0,
        validation_tokens=data.validation.num_tokens if data.validation else 0,
    )


def _version_at(spec: SessionSpec, step: int) -> SessionData:
    """Return the data version that a step reads; `step - 1` steps are done when it begins."""
    return [version for version in spec.data if version.first_step < step][-1]


def _manifest_of(version: SessionData) -> DataManifest:
    from worker.data.batches import read_data_manifest

    manifest = read_data_manifest(Path(version.data_dir))
    if manifest.data_sha256 != version.data_sha256:
        raise DataError(
            f"{version.data_dir} holds other data than the run reads: sha256 {manifest.data_sha256}",
            expected=version.data_sha256,
            remedy="restore the data that the run began with",
        )
    return manifest


def _tokenizer(folder: Path, manifest: DataManifest) -> Tokenizer:
    from worker.tokenizer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / manifest.tokenizer_file)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise DataError(
            f"the tokenizer {folder / manifest.tokenizer_file} is not the one that the data was prepared with",
            expected=f"sha256 {manifest.tokenizer_sha256}",
            remedy="restore the tokenizer, or leave out --decode",
        )
    return tokenizer


def _unit(source: Source, recipe: Recipe) -> Literal["line", "row", "document"]:
    """Return the unit that counts the records of a file."""
    from worker.corpus.sources import Form, kind_of

    found = kind_of(source.name)
    form = found[1].form if found is not None else Form.TEXT
    if form is Form.PARQUET:
        return "row"
    return "line" if form is Form.JSONL or recipe.text_documents == "lines" else "document"


def _check_range(what: str, number: int, last: int, where: str) -> None:
    if not 1 <= number <= last:
        raise UserError(f"there is no {what} {number} {where}", expected=f"1 to {last}")


def _read_session(path: Path) -> SessionSpec:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", expected="a SessionSpec as JSON") from error
    return SessionSpec.from_json(content, str(path))
